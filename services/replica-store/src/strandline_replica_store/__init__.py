"""The replica store: the full copies of data sources, in all their kept states.

Bottom up: `files` (the formats of docs/formats/replica.md and how bytes reach the disk), `replica`
(one replica, its index and its one writer), `reading`, `store` (the root folder), `checking`,
`compaction`, `forgetting`, `service` (the bus), and `__main__` which puts them together.
docs/architecture.md, "Where things live", says more.
"""

__version__ = "0.1.0"

"""The replica store: the full copies of data sources, in all their kept states.

Bottom up: `durable` (what reaches the disk and when), `segment`, `manifest` and `chunk_check` (the
formats of docs/formats/replica.md), `index` and `tree` (the projection and its questions),
`replica` (the one writer of a replica), `reader` and `verify`, `store` (the root folder),
`receive` and `answers` (the bus), and `__main__` which puts them together.
"""

__version__ = "0.1.0"

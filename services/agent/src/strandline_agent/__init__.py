"""The agent of a protected server: finds what changed, ships it to a store, and restores it.

From rules to drivers: `rules`, `changes`, `blocks`, `packing` and `restore_rules` decide and do no
IO; `walk`, `read_files`, `known`, `ship`, `restore` act; `__main__` puts them together.
"""

"""The way out: beside the replicas lies the program that reads them with nothing of Strandline.

Whoever finds this disk, years from now, needs no package, no catalog and no us. The program is the
second reader, written from docs/formats/replica.md alone.
"""

from __future__ import annotations

import os
from importlib.resources import files

from strandline_replica_store.files import durable

NAME = "strandline_reader.py"
_RESOURCE = "second_reader"
"""A link to reader/strandline_reader.py, the file itself in what is installed."""


def leave(root: str) -> bool:
    """Put the second reader of this version into a store's root; tell whether it was not there.

    Raises OSError, after which nothing half lies there.
    """
    program = files(__package__).joinpath(_RESOURCE).read_bytes()
    path = os.path.join(root, NAME)
    try:
        with open(path, "rb") as file:
            if file.read() == program:
                return False
    except FileNotFoundError:
        pass
    durable.write_file_atomically(path, program)
    return True

"""Ships until the process's limit of file sizes stops it; prints the code of the failure."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from strandline_replica_store.errors import StoreError
from support.replicas import SERVER, batch, chunk, open_of, open_replica

replica = open_replica(Path(sys.argv[1]))
replica.open_job(SERVER, open_of(replica, "j2"))
for seq in range(1000):
    message = batch("j2", seq, chunks=[chunk(os.urandom(4096)) for _ in range(8)])
    try:
        replica.take("j2", 1, [message])
    except StoreError as error:
        replica.fail("j2", 1, error)
        print(error.code)
        break
replica.close()

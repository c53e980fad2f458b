"""The machine that is cut off: a Debian kernel, this Python in an initial RAM disk, and QEMU."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from machine.volatile_disk import VolatileDisk

HERE = Path(__file__).parent
KERNEL = "linux-image-cloud-amd64"
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
    "virtio_blk",
)  # fmt: skip
NOT_IN_THE_GUEST = ("site-packages", "test", "idlelib", "lib2to3", "ensurepip", "tkinter")
"""Parts of the standard library's folder that nothing there needs."""
MEMORY_MIB = 1024
START_S = 120
"""A machine that says nothing for so long will never: emulated ones are slow."""
LOOK_AT_THE_DISK_S = 0.05
CONSOLE_BYTES = 4000
"""So much of the end of the console is shown when a machine fails."""

Said = dict[str, Any]


class Broken(Exception):
    """The machine itself does not work, whatever the replica does."""


def fetch_kernel(folder: Path) -> Path:
    """Fetch and unpack the Debian kernel; return the folder that holds its boot/ and lib/."""
    if shutil.which("apt-get") is None:
        raise Broken(f"no apt-get: the kernel of the machine is Debian's package {KERNEL}")
    try:
        package = _download_kernel(folder)
    except Broken as error:
        print(f"{error}; once more after apt-get update", file=sys.stderr)
        _run(["apt-get", "-q", "update"], folder)
        package = _download_kernel(folder)
    unpacked = folder / "kernel"
    _run(["dpkg-deb", "-x", str(package), str(unpacked)], folder)
    return unpacked


def _download_kernel(folder: Path) -> Path:
    names = re.findall(r"Depends: (linux-image-\S+)", _output(["apt-cache", "depends", KERNEL]))
    if not names:
        raise Broken(f"apt-cache depends {KERNEL} names no kernel")
    _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", names[0]], folder)
    return next(folder.glob("linux-image-*.deb"))


def make_guest(folder: Path, kernel: Path, program: ModuleType) -> Path:
    """Make the initial RAM disk that runs `program`, with all that is loaded here; return it."""
    root = folder / "guest"
    for name in ("bin", "dev", "proc", "sys", "tmp", "vault", "modules", "libraries"):
        (root / name).mkdir(parents=True)
    for module in MODULES:
        (found,) = kernel.rglob(f"{module}.ko")
        shutil.copy(found, root / "modules")
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin" / "busybox")
    (root / "bin" / "sh").symlink_to("busybox")
    shutil.copy(HERE / "init", root / "init")
    (root / "init").chmod(0o755)
    python = Path(sys.executable).resolve()
    parts = [python, *_standard_library(), *_loaded()]
    for part in parts:
        _copy(part, root)
    _copy_libraries(root, busybox)
    environment = {
        "PYTHON": str(python),
        "GUEST": program.__name__,
        "PYTHONPATH": ":".join(path for path in sys.path if (root / path.lstrip("/")).is_dir()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_LIBRARY_PATH": "/libraries",
    }
    lines = [f"export {name}='{value}'\n" for name, value in environment.items()]
    (root / "environment").write_text("".join(lines))
    image = folder / "guest.cpio"
    pack = f"find . | {busybox} cpio -o -H newc > '{image}' 2>/dev/null"
    _run(["sh", "-c", pack], root)
    shutil.rmtree(root)
    return image


def _standard_library() -> Iterator[Path]:
    for part in Path(sysconfig.get_path("stdlib")).iterdir():
        if part.name not in NOT_IN_THE_GUEST and not part.name.startswith("config-"):
            yield part


def _loaded() -> list[Path]:
    """Return the packages and modules that are loaded here, without the standard library's."""
    library = Path(sysconfig.get_path("stdlib"))
    found = set()
    for name, module in list(sys.modules.items()):
        if "." in name or name == "__main__":
            continue
        places = list(getattr(module, "__path__", [])) or [getattr(module, "__file__", None)]
        for place in map(Path, filter(None, places)):
            if not place.is_relative_to(library) or "site-packages" in place.parts:
                found.add(place)
    return sorted(found)


def _copy(part: Path, root: Path) -> None:
    """Copy a file or folder to the same path below `root`."""
    target = root / part.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if part.is_dir():
        shutil.copytree(part, target, dirs_exist_ok=True)
    else:
        shutil.copy2(part, target)


def _copy_libraries(root: Path, busybox: str) -> None:
    """Copy the shared libraries that programs and extension modules in `root` need."""
    programs = [str(Path(sys.executable).resolve()), busybox]
    modules = [f"/{path.relative_to(root)}" for path in root.rglob("*.so*")]
    # ldd fails on a static program, but goes on with the others.
    lines = _output(["ldd", *programs, *modules])
    for library in sorted(set(re.findall(r"=> (/\S+) \(", lines))):
        shutil.copy(library, root / "libraries")
    for loader in sorted(set(re.findall(r"^\s+(/\S+) \(", lines, re.MULTILINE))):
        _copy(Path(loader), root)


class Machine:
    """Starts with the power, and ends when it is cut."""

    def __init__(self, folder: Path, kernel: Path, guest: Path, disk: VolatileDisk) -> None:
        self._console = folder / "console"
        self._kernel = next((kernel / "boot").glob("vmlinuz-*"))
        self._guest = guest
        self._disk = disk
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""

    def start(self, environment: dict[str, str]) -> None:
        """Switch the power on; the disk's is on already."""
        words = " ".join(f"{name}={value}" for name, value in environment.items())
        socket = self._disk.socket
        self._heard = b""
        with open(self._console, "wb") as console:
            self._process = subprocess.Popen(
                [
                    "qemu-system-x86_64",
                    *("-accel", "tcg", "-cpu", "max", "-smp", "1"),
                    *("-m", f"{MEMORY_MIB}", "-nodefaults", "-no-user-config", "-no-reboot"),
                    *("-display", "none", "-serial", "stdio", "-serial", "file:/dev/stderr"),
                    *("-kernel", str(self._kernel), "-initrd", str(self._guest)),
                    *("-append", f"console=ttyS1 quiet panic=-1 {words}"),
                    *("-blockdev", f"nbd,node-name=vault,server.type=unix,server.path={socket}"),
                    *("-device", "virtio-blk-pci,drive=vault"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=console,
            )  # fmt: skip

    def listen_until(self, word: str, hear: Callable[[Said], None]) -> None:
        """Hear what is said up to and with the first that has this word."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._disk.stopped.is_set():
                return
            heard = self._words(time.monotonic() + LOOK_AT_THE_DISK_S)
            for said in heard:
                hear(said)
            if any(word in said for said in heard):
                return
        raise Broken(f"the machine did not say {word} in {START_S} s: {self._last_words()}")

    def listen_for(self, seconds: float, hear: Callable[[Said], None]) -> None:
        """Hear what is said for so long, or until the disk has stopped."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._disk.stopped.is_set():
            for said in self._words(min(deadline, time.monotonic() + LOOK_AT_THE_DISK_S)):
                hear(said)

    def cut(self, hear: Callable[[Said], None]) -> None:
        """Cut the power, then hear what is still on the line."""
        assert self._process is not None
        process, self._process = self._process, None
        process.kill()
        assert process.stdout is not None
        with process.stdout:
            self._heard += process.stdout.read()
        process.wait()
        for said in self._lines():
            hear(said)

    def close(self) -> None:
        """Make sure that no machine runs."""
        if self._process is not None:
            self.cut(lambda _: None)

    def _words(self, deadline: float) -> list[Said]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.fileno()
        if select.select([line], [], [], max(0, deadline - time.monotonic()))[0]:
            heard = os.read(line, 65536)
            if not heard:
                raise Broken(f"the machine has stopped by itself: {self._last_words()}")
            self._heard += heard
        return self._lines()

    def _lines(self) -> list[Said]:
        """Return what was said in whole lines; the rest of one may still come, or never."""
        *lines, self._heard = self._heard.split(b"\n")
        return [json.loads(line) for line in lines]

    def _last_words(self) -> str:
        return self._console.read_bytes()[-CONSOLE_BYTES:].decode(errors="replace")


def _run(argv: list[str], folder: Path) -> None:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Broken(f"{' '.join(argv)}: {done.stdout}{done.stderr}")


def _output(argv: list[str]) -> str:
    """Return what a program says, which may fail."""
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

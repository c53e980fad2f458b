"""Keys as files: nkey seeds for the bus, Ed25519 seeds for signatures, and whose of these count.

Secret ones have mode 0600 and are written whole or not at all.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

import msgspec
import nkeys

from strandline_contracts.signing import Authority, public_key
from strandline_runtime.errors import KeyFileError, SettingsError

SIGNING_SEED_BYTES = 32


def make_credential(path: Path) -> str:
    """Make an nkey seed at `path` unless there is one, and return its public nkey (U...)."""
    if not path.exists():
        seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
        _write_secret(path, seed)
    return public_nkey(path)


def read_credential(path: Path) -> str:
    """Return the nkey seed (SU...) that `path` holds, else raise KeyFileError."""
    seed = _read_secret(path).strip()
    if not seed.startswith(b"SU"):
        raise KeyFileError(f"{path} holds no nkey seed of a user")
    return seed.decode("ascii", "replace")


def public_nkey(path: Path) -> str:
    """Return the public nkey of the seed at `path`."""
    try:
        pair = nkeys.from_seed(bytearray(read_credential(path).encode()))
    except (nkeys.NkeysError, ValueError) as error:
        raise KeyFileError(f"{path} holds no valid nkey seed") from error
    return str(pair.public_key.decode())


def make_signing_seed(path: Path) -> bytes:
    """Make an Ed25519 seed at `path` unless there is one, and return its public key (32 bytes)."""
    if not path.exists():
        _write_secret(path, secrets.token_hex(SIGNING_SEED_BYTES).encode() + b"\n")
    return public_key(read_signing_seed(path))


def read_signing_seed(path: Path) -> bytes:
    """Return the 32-byte seed that `path` holds in hexadecimal, else raise KeyFileError."""
    try:
        seed = bytes.fromhex(_read_secret(path).decode("ascii").strip())
    except ValueError as error:
        raise KeyFileError(f"{path} holds no signing seed") from error
    if len(seed) != SIGNING_SEED_BYTES:
        raise KeyFileError(f"{path} holds {len(seed)} bytes, not a signing seed")
    return seed


def trusted_keys(path: Path) -> dict[bytes, Authority]:
    """Return whose signatures count: public key (32 bytes) to authority. Raises SettingsError."""
    try:
        named = msgspec.json.decode(path.read_bytes(), type=dict[str, Authority])
        keys = {bytes.fromhex(key): authority for key, authority in named.items()}
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise SettingsError(f"trusted_keys {path}: {error}") from error
    if any(len(key) != 32 for key in keys):
        raise SettingsError(f"trusted_keys {path}: a public key has 32 bytes")
    return keys


def _read_secret(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise KeyFileError(f"{path} is open to others (mode {mode:04o})")
            return file.read(4096)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error


def _write_secret(path: Path, content: bytes) -> None:
    """Write a new file whole or not at all; whoever was first wins."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

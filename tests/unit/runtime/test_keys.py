"""Key files: made once, private, and refused when they are not."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from strandline_contracts.errors import StrandlineError
from strandline_contracts.signing import public_key
from strandline_runtime.errors import KeyFileError, SettingsError
from strandline_runtime.keys import (
    make_credential,
    make_signing_seed,
    public_nkey,
    read_credential,
    read_signing_seed,
    trusted_keys,
)


def test_a_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    nkey, seed = tmp_path / "a.nk", tmp_path / "a.seed"
    public = make_credential(nkey)
    assert public.startswith("U")
    assert public == make_credential(nkey) == public_nkey(nkey)
    assert read_credential(nkey).startswith("SU")
    verify_key = make_signing_seed(seed)
    assert verify_key == make_signing_seed(seed) == public_key(read_signing_seed(seed))
    for path in (nkey, seed):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nk", "a.seed"]


def test_two_keys_differ(tmp_path: Path) -> None:
    assert make_credential(tmp_path / "a") != make_credential(tmp_path / "b")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.nk"
    make_credential(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="open to others"):
        read_credential(path)


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(KeyFileError):
        read_credential(path)
    path.touch(0o600)
    for content in (b"", b"SU\xff", b"SUAAAA", b"zz", b"00" * 31):
        path.write_bytes(content)
        for read in (public_nkey, read_signing_seed):
            with pytest.raises(KeyFileError) as caught:
                read(path)
            assert isinstance(caught.value, StrandlineError)


def test_trusted_keys(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(f'{{"{"ab" * 32}": "operator", "{"cd" * 32}": "scheduler"}}')
    assert trusted_keys(path) == {b"\xab" * 32: "operator", b"\xcd" * 32: "scheduler"}
    for bad in ('{"ab": "operator"}', '{"%s": "king"}' % ("ab" * 32), "[]", "{", '{"zz": "x"}'):
        path.write_text(bad)
        with pytest.raises(SettingsError):
            trusted_keys(path)

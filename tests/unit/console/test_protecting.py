"""Which paths may be protected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from strandline_console.errors import WrongUse
from strandline_console.protecting import absolute_path


def test_a_link_is_refused_with_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "www").symlink_to("data")
    assert absolute_path(str(tmp_path / "data"), here=True) == os.fsencode(tmp_path / "data")
    with pytest.raises(WrongUse) as caught:
        absolute_path(str(tmp_path / "www") + "/", here=True)
    assert str(tmp_path / "data") in caught.value.hint


def test_a_folder_below_a_link_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "www").symlink_to("data")
    found = absolute_path(str(tmp_path / "www" / "in"), here=True)
    assert found == os.fsencode(tmp_path / "www" / "in")

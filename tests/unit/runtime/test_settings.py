"""Settings: a file, the environment over it, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from strandline_runtime.errors import SettingsError
from strandline_runtime.settings import Settings, load


class Example(Settings, frozen=True, kw_only=True):
    weight: float = 1.5
    eager: bool = False
    stores: list[str]
    limit_bytes: int | None = None


FILE = """
instance = "web-1"
credential = "/etc/strandline/a.nk"
trusted_keys = "/etc/strandline/trusted.json"
state_dir = "/var/lib/strandline"
stores = ["a", "b"]
http_port = 9100
"""


def env(tmp_path: Path, text: str = FILE, **more: str) -> dict[str, str]:
    (tmp_path / "s.toml").write_text(text)
    return {"STRANDLINE_CONFIG": str(tmp_path / "s.toml"), **more}


def test_the_environment_is_over_the_file(tmp_path: Path) -> None:
    settings = load(
        Example,
        env(
            tmp_path,
            STRANDLINE_HTTP_PORT="9200",
            STRANDLINE_STORES="c, d,e",
            STRANDLINE_WEIGHT="2.5",
            STRANDLINE_EAGER="true",
            STRANDLINE_STATE_DIR="/x y",
            STRANDLINE_LIMIT_BYTES="7",
            STRANDLINE_UNRELATED="1",
        ),
    )
    assert settings.http_port == 9200
    assert settings.stores == ["c", "d", "e"]
    assert settings.weight == 2.5
    assert settings.eager is True
    assert settings.state_dir == Path("/x y")
    assert settings.limit_bytes == 7
    assert settings.site == "hq"
    assert settings.credential == Path("/etc/strandline/a.nk")


@pytest.mark.parametrize(
    ("text", "more", "named"),
    [
        (FILE + "colour = 1\n", {}, "colour"),
        (FILE + 'weight = "x"\n', {}, "weight"),
        (FILE.replace("instance", "instant"), {}, "inst"),
        (FILE + "=\n", {}, "s.toml"),
        (FILE, {"STRANDLINE_HTTP_PORT": "many"}, "STRANDLINE_HTTP_PORT"),
        (FILE, {"STRANDLINE_LOG_LEVEL": "loud"}, "STRANDLINE_LOG_LEVEL"),
        (FILE, {"STRANDLINE_CONFIG": "/nowhere/s.toml"}, "/nowhere/s.toml"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, more: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load(Example, env(tmp_path, text) | more)

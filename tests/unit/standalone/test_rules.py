"""The rules of the standalone stack: restarts, versions, settings files, ports."""

from __future__ import annotations

import signal
import socket
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_standalone.binaries import find_nats, version_in, version_of
from strandline_standalone.errors import BadStateFolder, NoBinary
from strandline_standalone.layout import prepare
from strandline_standalone.options import (
    Choice,
    NatsOptions,
    PostgresOptions,
    StoreOptions,
    choose,
    free_port,
    keep,
    read_choice,
    read_options,
)
from strandline_standalone.restart import MAX_DELAY_S, RESET_AFTER_S, deaths_in_a_row, delay_s, why
from strandline_standalone.services import service_units, to_toml, write_configs


def test_delays_double_up_to_a_limit() -> None:
    delays = [delay_s(deaths) for deaths in range(1, 40)]
    assert delays[:4] == [0.2, 0.4, 0.8, 1.6]
    assert delays == sorted(delays)
    assert delays[-1] == MAX_DELAY_S


def test_a_long_life_forgets_earlier_deaths() -> None:
    assert deaths_in_a_row(7, RESET_AFTER_S - 1) == 8
    assert deaths_in_a_row(7, RESET_AFTER_S) == 1


def test_why_a_process_ended() -> None:
    assert why(0) == "ended with exit code 0"
    assert why(70) == "ended with exit code 70"
    assert why(-signal.SIGKILL) == "was killed by SIGKILL"
    assert why(-99) == "was killed by signal 99"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("nats-server: v2.15.1", (2, 15, 1)),
        ("nats-server: v2.9.10-beta.3", (2, 9, 10)),
        ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", (15, 18)),
        ("postgres (PostgreSQL) 19devel", (19,)),
        ("no version at all", ()),
    ],
)
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert version_in(text) == version


def test_an_old_nats_server_is_not_taken(tmp_path: Path) -> None:
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho nats-server: v2.9.10\n")
    old.chmod(0o755)
    assert version_of(old) == (2, 9, 10)
    with pytest.raises(NoBinary, match=r"2\.12 or newer, found 2\.9\.10"):
        find_nats(NatsOptions(binary=str(old)))


_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,10}", fullmatch=True),
        st.one_of(_text, st.integers(-(2**63), 2**63 - 1), st.lists(_text, max_size=4)),
    )
)
def test_settings_files_are_read_as_they_were_written(values: dict[str, str | int]) -> None:
    assert tomllib.loads(to_toml(values)) == values


def test_services_are_stopped_agents_first_and_catalog_last() -> None:
    names = [unit.name for unit in service_units(["a", "b"])]
    assert names == ["agent-a", "agent-b", "scheduler-1", "store-1", "catalog-1"]


def test_a_port_is_kept_while_it_is_free() -> None:
    port = free_port(0)
    assert free_port(port) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert free_port(taken.getsockname()[1]) != taken.getsockname()[1]


def test_asked_servers_are_kept(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "state")
    assert choose(layout, ["b", "a", "b"]).servers == ["b", "a"]
    assert choose(layout, []).servers == ["b", "a"]
    assert choose(layout, ["c"]).servers == ["c"]
    assert read_choice(layout.choice).servers == ["c"]


def test_a_damaged_choice_is_told(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "state")
    keep(layout, Choice(servers=["a"]))
    layout.choice.write_text("{")
    with pytest.raises(BadStateFolder, match=r"stack\.json"):
        read_choice(layout.choice)


def test_the_first_settings_file_says_only_defaults(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "state")
    options = read_options(layout.options)
    assert options.site == "hq"
    assert options.nats == NatsOptions()
    lines = layout.options.read_text().splitlines()[1:]
    uncommented = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))
    assert uncommented["nats"]["store_bytes"] == NatsOptions().store_bytes
    assert set(uncommented["postgres"]) == set(PostgresOptions.__struct_fields__)
    assert set(uncommented["nats"]) == set(NatsOptions.__struct_fields__)
    assert set(uncommented["store"]) == set(StoreOptions.__struct_fields__)
    prepare(tmp_path / "state")


def test_the_store_gets_its_settings_and_no_others(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "state")
    layout.of("store-1").parent.mkdir(exist_ok=True)
    for text, own in (
        ("[store]\ndelete_delay_days = 0.5\nscrub_days = 7\n", {"delete_delay_days", "scrub_days"}),
        ("[store]\nhousekeeping_every_s = 1\n", {"housekeeping_every_s"}),
        ("", set()),
    ):
        layout.options.write_text(text)
        write_configs(layout, read_options(layout.options), ["web-1"], "nats://127.0.0.1:4222")
        written = tomllib.loads((layout.config / "store-1.toml").read_text())
        agents = tomllib.loads((layout.config / "agent-web-1.toml").read_text())
        assert written.keys() - agents.keys() == own
    assert "delete_delay_days" not in (layout.config / "scheduler-1.toml").read_text()


@pytest.mark.parametrize(
    "text",
    ["delete_delay_days = -1", "scrub_days = 'x'", "housekeeping_every_s = 0", "delay_days = 7"],
)
def test_settings_that_cannot_be_are_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "strandline.toml"
    path.write_text(f"[store]\n{text}\n")
    with pytest.raises(BadStateFolder, match=text.split()[0]):
        read_options(path)


def test_a_foreign_folder_is_not_adopted(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    mode = tmp_path.stat().st_mode
    with pytest.raises(BadStateFolder, match="not a state folder"):
        prepare(tmp_path)
    assert tmp_path.stat().st_mode == mode

"""The shell around a service's process: starts, answers, stops, and exits with the right code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from strandline_contracts.errors import StrandlineError
from strandline_contracts.queries import SourceList, Sources, Status, StatusIs
from strandline_runtime.bus import Bus
from support.nats import SiteBus
from support.waiting import until

TINY_SERVICE = Path(__file__).with_name("tiny_service.py")
Connect = Callable[..., Awaitable[Bus]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(site: SiteBus, tmp_path: Path) -> Iterator[Start]:
    """Starts tiny services as the catalog of the site."""
    settings = site.settings("catalog")
    started: list[subprocess.Popen[str]] = []

    def start_service(*, pass_fds: tuple[int, ...] = (), **more: str) -> subprocess.Popen[str]:
        environ = os.environ | {
            "STRANDLINE_INSTANCE": settings.instance,
            "STRANDLINE_NATS_URLS": settings.nats_urls[0],
            "STRANDLINE_CREDENTIAL": str(settings.credential),
            "STRANDLINE_TRUSTED_KEYS": str(settings.trusted_keys),
            "STRANDLINE_STATE_DIR": str(settings.state_dir),
            "STRANDLINE_LOG_LEVEL": "debug",
        }
        process = subprocess.Popen(
            [sys.executable, str(TINY_SERVICE)],
            env=environ | {f"STRANDLINE_{key.upper()}": value for key, value in more.items()},
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        started.append(process)
        return process

    yield start_service
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        assert process.stderr is not None
        process.stderr.close()


def get(site: SiteBus, page: str) -> tuple[int, str]:
    port_file = site.settings("catalog").state_dir / "http.port"
    if not port_file.exists():
        return 0, ""
    url = f"http://127.0.0.1:{port_file.read_text().strip()}{page}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except urllib.error.URLError:
        return 0, ""


async def is_up(site: SiteBus) -> None:
    async def ready() -> bool:
        status, _ = await asyncio.to_thread(get, site, "/readyz")
        return status == 200

    await until(ready, "the service")


async def ends(process: subprocess.Popen[str], within_s: float = 15.0) -> int:
    return await asyncio.to_thread(process.wait, within_s)


async def says(process: subprocess.Popen[str], words: str) -> None:
    """Wait for a line of the log with these words."""
    assert process.stderr is not None
    async with asyncio.timeout(10):
        while line := await asyncio.to_thread(process.stderr.readline):
            if words in line:
                return
    raise AssertionError(f"it ended without saying {words}")


async def test_health_status_and_a_clean_end(site: SiteBus, start: Start, connect: Connect) -> None:
    process = start()
    await is_up(site)
    for page, status in (("/healthz", 200), ("/nothing", 404)):
        assert (await asyncio.to_thread(get, site, page))[0] == status
    _, text = await asyncio.to_thread(get, site, "/metrics")
    assert "strandline_bus_connected 1.0" in text
    operator = await connect("operator")
    found = await operator.call("catalog", "1", "status", Status(), StatusIs)
    assert (found.role, found.ready, found.detail) == ("catalog", True, {"jobs": "0"})
    process.send_signal(signal.SIGTERM)
    assert await ends(process) == 0
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    assert lines
    assert all('"role": "catalog"' in line and '"instance": "1"' in line for line in lines)


async def test_a_connection_closed_for_good_ends_the_process_with_70(
    site: SiteBus, start: Start, connect: Connect
) -> None:
    process = start()
    await is_up(site)
    operator = await connect("operator")
    with contextlib.suppress(StrandlineError):  # its answer may be lost with the connection
        await operator.call("catalog", "1", "close_for_good", Sources(), SourceList, timeout_s=0.5)
    assert await ends(process) == 70


async def test_a_lost_bus_makes_it_unready_and_does_not_end_it(site: SiteBus, start: Start) -> None:
    process = start()
    await is_up(site)
    site.server.kill()

    async def unready() -> bool:
        return (await asyncio.to_thread(get, site, "/readyz"))[0] == 503

    await until(unready, "unready")
    assert (await asyncio.to_thread(get, site, "/healthz"))[0] == 200
    site.server.start()
    await is_up(site)
    process.send_signal(signal.SIGINT)
    assert await ends(process) == 0


async def test_it_dies_with_its_supervisor(site: SiteBus, start: Start) -> None:
    reading, writing = os.pipe()
    process = start(pass_fds=(reading,), watch_fd=str(reading))
    os.close(reading)
    await is_up(site)
    assert process.poll() is None
    os.close(writing)
    assert await ends(process, 5) == 1


async def test_a_second_signal_ends_at_once(site: SiteBus, start: Start) -> None:
    process = start(behave="linger")
    await is_up(site)
    process.send_signal(signal.SIGTERM)
    await says(process, "service.stopping")
    process.send_signal(signal.SIGTERM)
    assert await ends(process, 3) == 128 + signal.SIGTERM


async def test_a_failure_exits_1_and_wrong_settings_78(site: SiteBus, start: Start) -> None:
    assert await ends(start(behave="fail")) == 1
    wrong = start(http_port="many")
    assert await ends(wrong) == 78
    assert wrong.stderr is not None
    assert "STRANDLINE_HTTP_PORT" in wrong.stderr.read()


async def test_a_signal_while_connecting_ends_it(site: SiteBus, start: Start) -> None:
    site.server.stop()
    process = start()
    await says(process, "bus.error")
    process.send_signal(signal.SIGTERM)
    assert await ends(process, 5) == 0

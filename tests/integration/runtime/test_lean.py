"""Receiving in pieces is what nats-py's own receiving is, byte for byte."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from strandline_runtime.lean import HELD_BYTES, LeanParser, PieceReader

Got = tuple[int, bytes, bytes, bytes, bytes | None]


class Recorder:
    """Stands for nats-py's client: what its parser calls."""

    def __init__(self) -> None:
        self.got: list[Got | str] = []

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, payload: bytes, header: bytes | None
    ) -> None:
        self.got.append((sid, bytes(subject), bytes(reply), bytes(payload), header))

    async def _process_ping(self) -> None:
        self.got.append("ping")

    async def _process_pong(self) -> None:
        self.got.append("pong")

    async def _process_err(self, error: str) -> None:
        self.got.append(error)

    async def _process_info(self, info: Any) -> None:
        self.got.append(str(info))


def message(payload: bytes, header: bytes | None) -> bytes:
    if header is None:
        return b"MSG a.b 7 re.ply %d\r\n%s\r\n" % (len(payload), payload)
    head = b"NATS/1.0\r\nK: " + header + b"\r\n\r\n"
    return b"HMSG a.b 7 %d %d\r\n%s%s\r\n" % (len(head), len(head) + len(payload), head, payload)


ITEMS = st.one_of(
    st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'x'\r\n", b'INFO {"a":1}\r\n']),
    st.builds(message, st.binary(max_size=60), st.none() | st.sampled_from([b"", b"61", b"6162"])),
)


async def parsed(parser_type: type[Parser], pieces: list[bytes]) -> list[Got | str]:
    recorder = Recorder()
    parser = parser_type(recorder)
    for piece in pieces:
        await parser.parse(piece)
    return recorder.got


@settings(max_examples=300, deadline=None)
@given(items=st.lists(ITEMS, max_size=8), cuts=st.lists(st.integers(1, 40), min_size=1))
def test_any_cut_gives_the_same_messages(items: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(items)
    pieces: list[bytes] = []
    at = 0
    for turn in range(len(stream)):
        if at >= len(stream):
            break
        pieces.append(stream[at : at + cuts[turn % len(cuts)]])
        at += len(pieces[-1])
    whole = asyncio.run(parsed(Parser, [stream]))
    assert asyncio.run(parsed(LeanParser, pieces)) == whole
    assert asyncio.run(parsed(LeanParser, [stream])) == whole


async def test_a_large_message_with_a_header_in_many_pieces() -> None:
    payload = random.Random(1).randbytes(1 << 20)
    stream = message(payload, b"61") + message(b"", None) + message(payload, None)
    pieces = [stream[at : at + 65_536] for at in range(0, len(stream), 65_536)]
    assert await parsed(LeanParser, pieces) == await parsed(Parser, [stream])


async def test_a_reset_forgets_half_a_message() -> None:
    recorder = Recorder()
    parser = LeanParser(recorder)
    await parser.parse(message(b"x" * 100, None)[:60])
    parser.reset()
    await parser.parse(message(b"y", None))
    assert recorder.got == [(7, b"a.b", b"re.ply", b"y", None)]


async def test_the_socket_is_stopped_while_much_waits() -> None:
    calls: list[str] = []

    class Socket(asyncio.Transport):
        def pause_reading(self) -> None:
            calls.append("pause")

        def resume_reading(self) -> None:
            calls.append("resume")

    reader = PieceReader(asyncio.get_running_loop())
    reader.set_transport(Socket())
    piece = bytes(HELD_BYTES // 4)
    for _ in range(6):
        reader.feed_data(piece)
    assert calls == ["pause"]
    while calls == ["pause"]:
        assert await reader.read() == piece
    assert calls == ["pause", "resume"]


async def test_lines_then_pieces_then_the_end() -> None:
    reader = PieceReader(asyncio.get_running_loop())
    for piece in (b"INF", b"O x\r\nPO", b"NG\r\nrest"):
        reader.feed_data(piece)
    assert [await reader.readline() for _ in range(2)] == [b"INFO x\r\n", b"PONG\r\n"]
    reader.feed_eof()
    assert not reader.at_eof()
    assert [await reader.read(), await reader.read()] == [b"rest", b""]
    assert reader.at_eof()


async def test_a_lost_connection_is_raised() -> None:
    reader = PieceReader(asyncio.get_running_loop())
    reading = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    reader.set_exception(ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError):
        await reading

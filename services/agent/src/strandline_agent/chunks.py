"""Chunks as they travel: compressed where that makes them less, and believed by their digest."""

from __future__ import annotations

import sys

from blake3 import blake3

from strandline_contracts.points import CHUNK_BYTES, CODEC_RAW, CODEC_ZSTD
from strandline_contracts.reading import StoredChunk

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_LEVEL = 1


class Compressor:
    """Compresses chunks, one after the other. For one thread."""

    def __init__(self) -> None:
        self._compressor = zstd.ZstdCompressor(level=_LEVEL)

    def stored(self, plain: bytes | memoryview) -> tuple[int, bytes]:
        """Return the codec and stored bytes of a chunk: raw unless compressing makes it less."""
        data = self._compressor.compress(plain, zstd.ZstdCompressor.FLUSH_FRAME)
        return (CODEC_ZSTD, data) if len(data) < len(plain) else (CODEC_RAW, bytes(plain))


def plain_of(chunk: StoredChunk) -> bytes | memoryview | None:
    """Return the plain bytes of a stored chunk, None when they are not what its digest says."""
    if not 0 < chunk.plain_bytes <= CHUNK_BYTES:
        return None
    plain: bytes | memoryview = chunk.data
    if chunk.codec == CODEC_ZSTD:
        try:
            plain = zstd.ZstdDecompressor().decompress(chunk.data, max_length=CHUNK_BYTES + 1)
        except zstd.ZstdError:
            return None
    elif chunk.codec != CODEC_RAW:
        return None
    if len(plain) != chunk.plain_bytes or blake3(plain).digest() != chunk.digest:
        return None
    return plain

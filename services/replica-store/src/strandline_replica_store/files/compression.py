"""Zstandard, from the standard library where that has it; and how it is used here."""

from __future__ import annotations

import sys

from strandline_contracts.points import CODEC_RAW, CODEC_ZSTD

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["compressed", "decompressed", "zstd"]

_LEVEL = 1
_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
"""A frame that claims a larger window than 8 MiB is refused before memory is taken for it."""


def compressed(plain: bytes) -> tuple[int, bytes]:
    """Return codec and bytes to store: as it is what would not become smaller."""
    smaller = zstd.compress(plain, _LEVEL)
    return (CODEC_ZSTD, smaller) if len(smaller) < len(plain) else (CODEC_RAW, plain)


def decompressed(stored: bytes | memoryview, plain_bytes: int) -> bytes:
    """Return what one frame holds, never more than a byte beyond `plain_bytes`.

    Raises ZstdError for all that is not exactly one frame of at most this length.
    """
    decompressor = zstd.ZstdDecompressor(options=_OPTIONS)
    plain = decompressor.decompress(stored, max_length=plain_bytes + 1)
    if not decompressor.eof or decompressor.unused_data:
        raise zstd.ZstdError("not exactly one Zstandard frame of its length")
    return plain

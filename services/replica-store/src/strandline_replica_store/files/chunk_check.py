"""Whether a chunk's bytes are what its record says."""

from __future__ import annotations

from blake3 import blake3

from strandline_contracts.points import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    CODEC_RAW,
    CODEC_ZSTD,
    DIGEST_BYTES,
)
from strandline_replica_store.errors import BadChunk
from strandline_replica_store.files.compression import decompressed, zstd

STORED_MAX_BYTES = 132096
"""The most stored bytes of a chunk: its plain bytes and room for a cipher's tag."""


def plain_of(codec: int, plain_bytes: int, stored: bytes | memoryview) -> bytes | memoryview:
    """Return the plain bytes of `stored`; raise BadChunk when codec or length do not fit.

    Never makes more than CHUNK_BYTES, whatever `stored` claims.
    """
    if not 0 < plain_bytes <= CHUNK_BYTES or plain_bytes % BLOCK_BYTES:
        raise BadChunk(f"a chunk of {plain_bytes} plain bytes")
    if len(stored) > STORED_MAX_BYTES:
        raise BadChunk(f"a chunk of {len(stored)} stored bytes")
    if codec == CODEC_RAW:
        plain: bytes | memoryview = stored
    elif codec == CODEC_ZSTD:
        try:
            plain = decompressed(stored, plain_bytes)
        except zstd.ZstdError as error:
            raise BadChunk(f"a chunk that cannot be decompressed: {error}") from error
    else:
        raise BadChunk(f"a chunk of unknown codec {codec}")
    if len(plain) != plain_bytes:
        raise BadChunk(f"a chunk of {len(plain)} plain bytes that should be {plain_bytes}")
    return plain


def check_chunk(
    digest: bytes,
    plain_bytes: int,
    codec: int,
    stored: bytes | memoryview,
    *,
    stored_digest: bytes = b"",
) -> bytes | memoryview:
    """Return the plain bytes of `stored`; raise BadChunk unless they are `plain_bytes` bytes with
    BLAKE3 `digest`.

    `stored_digest` is that of `stored` where it is known: what is stored as it is has no other.
    """
    if len(digest) != DIGEST_BYTES:
        raise BadChunk(f"a digest of {len(digest)} bytes")
    plain = plain_of(codec, plain_bytes, stored)
    known = stored_digest if codec == CODEC_RAW else b""
    if (known or blake3(plain).digest()) != digest:
        raise BadChunk(f"chunk {digest[:8].hex()} does not match its digest")
    return plain

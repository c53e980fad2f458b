"""Ed25519 signatures over commands, grants and policies, each for one purpose only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import nacl.exceptions
import nacl.signing

from strandline_contracts.codec import Message
from strandline_contracts.errors import BadSignature

Purpose = Literal["command", "grant", "policy"]
Authority = Literal["operator", "scheduler"]

MAY_SIGN: dict[Authority, frozenset[Purpose]] = {
    "operator": frozenset({"command", "grant", "policy"}),
    "scheduler": frozenset({"command"}),
}
"""What each authority may sign at all; which verbs a scheduler may command: commands.py."""


class Signed(Message, frozen=True, kw_only=True, tag="signed"):
    """A message with its signature; `key` is the signer's public key (32 bytes)."""

    body: bytes
    purpose: Purpose
    key: bytes
    signature: bytes


def _signed_bytes(purpose: str, body: bytes) -> bytes:
    return b"strandline.v1." + purpose.encode() + b"\0" + body


def sign(seed: bytes, purpose: Purpose, body: bytes) -> Signed:
    """Sign `body` for `purpose` with a 32-byte seed."""
    key = nacl.signing.SigningKey(seed)
    signature = key.sign(_signed_bytes(purpose, body)).signature
    return Signed(body=body, purpose=purpose, key=bytes(key.verify_key), signature=signature)


def public_key(seed: bytes) -> bytes:
    """Return the public key (32 bytes) of a seed."""
    return bytes(nacl.signing.SigningKey(seed).verify_key)


def verify(signed: Signed, purpose: Purpose, trusted: Mapping[bytes, Authority]) -> Authority:
    """Return who signed, or raise BadSignature.

    `trusted` maps public keys to what their holders are. The body may be read only afterwards.
    """
    authority = trusted.get(signed.key)
    if authority is None:
        raise BadSignature(f"signed by an unknown key {signed.key[:8].hex()}")
    if signed.purpose != purpose or purpose not in MAY_SIGN[authority]:
        raise BadSignature(f"a {signed.purpose} signed by {authority} is no {purpose} here")
    try:
        nacl.signing.VerifyKey(signed.key).verify(
            _signed_bytes(purpose, signed.body), signed.signature
        )
    except (nacl.exceptions.BadSignatureError, ValueError, TypeError) as error:
        raise BadSignature("the signature does not match") from error
    return authority

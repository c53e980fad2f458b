"""Which sources the policy bucket assigns; what is not signed changes nothing."""

from __future__ import annotations

from strandline_catalog.sources import read_sources
from strandline_contracts.codec import encode
from strandline_contracts.policy import Assignment, server_key
from strandline_contracts.signing import Authority, public_key, sign
from strandline_contracts.subjects import policy_subject
from support.examples import THE_SOURCE

SEED = b"\x01" * 32
TRUSTED: dict[bytes, Authority] = {public_key(SEED): "operator"}


def test_a_forged_document_is_named_and_not_read() -> None:
    document = Assignment(server="web-1", revision=1, sources=[THE_SOURCE])
    good = encode(sign(SEED, "policy", encode(document)))
    bad = encode(sign(b"\x02" * 32, "policy", encode(document)))
    subject = policy_subject(server_key("web-1"))
    assert read_sources({subject: good}, TRUSTED) == ([THE_SOURCE], [])
    assert read_sources({subject: bad}, TRUSTED) == ([], ["web-1"])
    assert read_sources({policy_subject(server_key("web-2")): good}, TRUSTED) == ([], ["web-2"])

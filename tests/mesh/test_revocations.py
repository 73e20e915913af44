"""Lists of revocations only grow, name exactly whom they end, and are enforced on all that is signed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulation.credentials import Credentials
from mesh.bundles import make_bundle, open_bundle
from mesh.errors import ConfigError, LimitError, RecordError
from mesh.identity import Authority
from mesh.ids import Address, Origin
from mesh.own_record import OwnRecord
from mesh.records import RecordVerifier
from mesh.revocations import (
    ENTRIES_MAX,
    Revocations,
    RevokedEnrolment,
    open_revocations,
    parse_fingerprint,
    parse_serial,
    sign_revocations,
)
from mesh.rows import Row

MESH = Credentials(1)
NODE_B = RevokedEnrolment("node", "node-b", 2)


def test_a_list_names_enrolments_up_to_a_number_and_nobody_else() -> None:
    listed = Revocations().with_more([NODE_B], [], [])
    assert "enroll it anew" in (listed.refusal("node", "node-b", 1) or "")
    assert listed.refusal("node", "node-b", 2)
    for role, name, enrolment in (("node", "node-b", 3), ("operator", "node-b", 1), ("node", "node-c", 1)):
        assert listed.refusal(role, name, enrolment) is None


def test_certificates_are_named_in_any_spelling() -> None:
    listed = Revocations().with_more([], ["0x00:1A:2b"], ["AB:" * 31 + "ab"])
    assert listed.refusal_of_tls("1a2b", "")
    assert listed.refusal_of_tls("", "ab" * 32)
    assert listed.refusal_of_tls("", "") is None
    assert listed.refusal_of_tls("1a2c", "cd" * 32) is None
    for wrong in ("", "xyz", "1" * 41):
        with pytest.raises(ConfigError):
            parse_serial(wrong)
    for wrong in ("", "ab" * 31, "zz" * 32):
        with pytest.raises(ConfigError):
            parse_fingerprint(wrong)


_ENTRIES = st.lists(st.builds(RevokedEnrolment, st.just("node"), st.sampled_from("abc"), st.integers(1, 5)), max_size=6)


@given(_ENTRIES, _ENTRIES)
def test_what_was_revoked_stays_revoked_whatever_is_added(before: list[RevokedEnrolment], after) -> None:
    first = Revocations().with_more(before, [], [])
    second = first.with_more(after, [], [])
    assert second.number == 2
    for entry in [*before, *after]:
        assert second.refusal(entry.role, entry.name, entry.enrolment)
    again = Revocations(first.number).with_more([*after, *before], [], [])
    assert again == second


def test_a_list_arrives_as_it_was_signed_and_has_a_limit() -> None:
    listed = Revocations().with_more([NODE_B], ["1a"], ["ab" * 32])
    opened, _ = open_revocations(Authority(MESH.ca_public_key), sign_revocations(MESH.ca_key, MESH.cluster, listed))
    assert opened == listed
    many = [f"{number:x}" for number in range(1, ENTRIES_MAX + 1)]
    full = Revocations().with_more([], many, [])
    open_revocations(Authority(MESH.ca_public_key), sign_revocations(MESH.ca_key, MESH.cluster, full))
    with pytest.raises(LimitError):
        full.with_more([], ["ffffffff"], [])


def test_records_and_bundles_of_the_revoked_hold_no_more_also_when_they_held_before() -> None:
    authority, identity = Authority(MESH.ca_public_key), MESH.identity("node-b", 2)
    address = Address("127.0.0.1", 17_888)
    record = OwnRecord(identity, boot=1, process=5, address=address, rpc_address=address).current
    row = Row(table="steps", namespace="n", key="k", hlc=1, node="node-b", origin=Origin("node-b", 5), seq=1, values={})
    bundle = make_bundle(identity, [row], 1, 1)
    verifier = RecordVerifier(authority)
    verifier.verify(record.raw)
    open_bundle(authority, bundle)

    authority.refusal = Revocations().with_more([NODE_B], [], []).refusal

    with pytest.raises(RecordError, match="was revoked"):
        verifier.verify(record.raw)
    with pytest.raises(RecordError, match="was revoked"):
        open_bundle(authority, bundle)
    authority.check(MESH.identity("node-b", 3).certificate)

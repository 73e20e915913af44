"""A bundle carries rows of its signer and of nobody else."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.bundles import BUNDLE_BYTES_MAX, BUNDLE_ROWS_MAX, BUNDLE_SPAN_MAX, make_bundle, open_bundle
from mesh.errors import RecordError
from mesh.identity import Authority, Identity, cluster_id, issue
from mesh.ids import Origin
from mesh.rows import Row

CA = Ed25519PrivateKey.from_private_bytes(bytes(32))
CA_PUBLIC = CA.public_key().public_bytes_raw()


def identity(name="node-a", *, role="node", ca=CA, seed=1):
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    public = ca.public_key().public_bytes_raw()
    certificate = issue(
        ca,
        cluster=cluster_id(public),
        role=role,
        name=name,
        enrolment=1,
        public_key=key.public_key().public_bytes_raw(),
    )
    return Identity(certificate=certificate, private_key=key, ca_public_key=public)


NODE_A = identity()


def row(seq=1, node="node-a", incarnation=1, **values):
    return Row(
        table="t",
        namespace="default",
        key=f"k{seq}",
        hlc=5,
        node=node,
        origin=Origin(node, incarnation),
        seq=seq,
        values=values,
    )


@pytest.fixture
def authority():
    return Authority(CA_PUBLIC)


def test_a_bundle_gives_back_its_rows_and_its_range(authority):
    rows = [row(3, text="a"), row(5, text="b")]

    bundle = open_bundle(authority, make_bundle(NODE_A, rows, 3, 6))

    assert (bundle.rows, bundle.origin, bundle.lo, bundle.hi) == (rows, Origin("node-a", 1), 3, 6)


def test_a_small_bundle_leaves_room_in_a_datagram():
    assert len(make_bundle(NODE_A, [row(values="x" * 100)], 1, 1)) < 500


def test_rows_of_another_node_do_not_pass(authority):
    forger = identity("node-b", seed=2)
    with pytest.raises(AssertionError):
        make_bundle(forger, [row()], 1, 1)

    # A forger leaves our assertions out: the same bytes, signed by a certified node that did not write them.
    own = msgspec.msgpack.decode(make_bundle(forger, [row(node="node-b")], 1, 1))
    foreign = msgspec.msgpack.decode(make_bundle(NODE_A, [row()], 1, 1))
    with pytest.raises(RecordError):
        open_bundle(authority, msgspec.msgpack.encode([own[0], *foreign[1:]]))
    signed = (1).to_bytes(8, "big") * 2 + foreign[3]
    forged = [own[0], 1, 1, foreign[3], forger.sign(b"relaymesh row bundle", signed)]
    with pytest.raises(RecordError, match="signed by 'node-b'"):
        open_bundle(authority, msgspec.msgpack.encode(forged))


def test_signers_of_another_mesh_and_operators_do_not_pass(authority):
    stranger = identity(ca=Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32))
    operator = identity("node-a", role="operator")

    for signer in (stranger, operator):
        with pytest.raises(RecordError):
            open_bundle(authority, make_bundle(signer, [row()], 1, 1))


def raw_bundle(rows, lo, hi):
    from mesh.row_codec import encode_rows

    encoded = encode_rows(rows)
    signature = NODE_A.sign(b"relaymesh row bundle", lo.to_bytes(8, "big") + hi.to_bytes(8, "big") + encoded)
    return msgspec.msgpack.encode([NODE_A.certificate, lo, hi, encoded, signature])


@pytest.mark.parametrize(
    ("rows", "lo", "hi"),
    [
        ([], 1, 1),
        ([row(1), row(2, incarnation=2)], 1, 2),
        ([row(1), row(3)], 1, 2),
        ([row(1)], 2, 2),
        ([row(1)], 1, BUNDLE_SPAN_MAX + 1),
        ([row(seq) for seq in range(1, BUNDLE_ROWS_MAX + 2)], 1, BUNDLE_ROWS_MAX + 1),
    ],
)
def test_even_a_signed_bundle_must_make_sense(authority, rows, lo, hi):
    with pytest.raises(RecordError):
        open_bundle(authority, raw_bundle(rows, lo, hi))


def test_limits_hold_at_the_limit(authority):
    rows = [row(seq) for seq in range(1, BUNDLE_ROWS_MAX + 1)]

    assert len(open_bundle(authority, raw_bundle(rows, 1, BUNDLE_SPAN_MAX)).rows) == BUNDLE_ROWS_MAX
    with pytest.raises(RecordError):
        open_bundle(authority, bytes(BUNDLE_BYTES_MAX + 1))


@given(st.binary(max_size=300))
@example(b"\x95" + b"\x91" * 5_000)
def test_random_bytes_raise_only_record_error(data):
    with pytest.raises(RecordError):
        open_bundle(Authority(CA_PUBLIC), data)


@given(st.data())
def test_a_changed_byte_anywhere_is_noticed(data):
    good = make_bundle(NODE_A, [row(text="a")], 1, 1)
    position = data.draw(st.integers(0, len(good) - 1))
    changed = bytearray(good)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(RecordError):
        open_bundle(Authority(CA_PUBLIC), bytes(changed))

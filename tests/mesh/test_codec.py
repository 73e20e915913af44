import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import codec
from mesh.errors import PacketError
from mesh.messages import (
    Ack,
    Claim,
    Digest,
    Item,
    Nack,
    Outline,
    Ping,
    PingRequest,
    Reason,
    Rumor,
    SignedRecord,
    VectorHint,
)

TAG = st.binary(min_size=16, max_size=16)
NONCE = st.integers(0, 2**63 - 1)
VECTOR = st.binary(max_size=8)
BYTE = st.integers(0, 255)
RANGE_END = st.binary(min_size=8, max_size=8)
INCARNATION = st.integers(0, 2**32 - 1)
ITEM = st.one_of(
    st.builds(Outline, st.binary(min_size=8, max_size=512)),
    st.builds(Ping, NONCE, VECTOR),
    st.builds(Ack, NONCE, VECTOR),
    st.builds(PingRequest, NONCE, TAG),
    st.builds(Nack, NONCE),
    st.builds(SignedRecord, st.binary(max_size=512)),
    st.builds(Claim, TAG, NONCE, INCARNATION, TAG, BYTE, st.booleans()),
    st.builds(Digest, RANGE_END, RANGE_END, st.booleans(), st.binary(max_size=200)),
    st.builds(VectorHint, VECTOR),
    st.builds(Rumor, TAG, NONCE, NONCE, BYTE, BYTE, BYTE, st.binary(max_size=200)),
)


@given(st.lists(ITEM, max_size=codec.ITEMS_MAX))
def test_items_survive_the_wire(items: list[Item]) -> None:
    assert codec.decode(codec.encode(items)) == items


@given(st.lists(ITEM, max_size=5))
def test_a_body_is_plain_msgpack(items: list[Item]) -> None:
    read = msgpack.unpackb(codec.encode(items))
    assert [payload for _, payload in read] == [list(msgspec.structs.astuple(item)) for item in items]
    assert codec.decode(msgpack.packb(read)) == items


@given(st.binary(max_size=300))
def test_random_bodies_decode_or_raise_a_packet_error(body: bytes) -> None:
    try:
        items = codec.decode(body)
    except PacketError:
        return
    assert codec.decode(codec.encode(items)) == items


@given(st.lists(ITEM, min_size=1, max_size=3), st.data())
def test_a_cut_body_never_decodes_to_other_items(items: list[Item], data: st.DataObject) -> None:
    body = codec.encode(items)
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(PacketError):
        codec.decode(body[:cut])


def test_unknown_kinds_are_skipped_so_that_newer_nodes_can_say_more() -> None:
    body = msgpack.packb([[200, {"new": [1, 2]}], [4, [7]], [-1, None]])
    assert codec.decode(body) == [Nack(7)]


def test_a_known_kind_with_more_fields_than_we_know_is_read_as_far_as_we_know() -> None:
    assert codec.decode(msgpack.packb([[4, [7, "later addition"]]])) == [Nack(7)]


@pytest.mark.parametrize(
    "body",
    [
        [[1, [-1, b""]]],
        [[1, [2**63, b""]]],
        [[1, [1, b"nine bytes"]]],
        [[3, [1, b"short tag"]]],
        [[6, [bytes(16), 1, 2**32, bytes(16), 0, False]]],
        [[5, [bytes(513)]]],
        [[1]],
        {"a": 1},
        [1, 2],
    ],
)
def test_values_beyond_their_limits_refuse_the_body(body: object) -> None:
    with pytest.raises(PacketError, match="malformed"):
        codec.decode(msgpack.packb(body))


def test_the_largest_number_of_items_decodes_and_one_more_does_not() -> None:
    assert len(codec.decode(msgpack.packb([[4, [1]]] * codec.ITEMS_MAX))) == codec.ITEMS_MAX
    with pytest.raises(PacketError):
        codec.decode(msgpack.packb([[4, [1]]] * (codec.ITEMS_MAX + 1)))


@pytest.mark.parametrize("opening", [b"\x91", b"\x92\x01", b"\x81\x01"])
def test_a_packet_of_nested_containers_is_refused(opening: bytes) -> None:
    with pytest.raises(PacketError):
        codec.decode(b"\x91\x92\x01" + opening * 1_000)


def test_a_claim_that_is_none_is_refused() -> None:
    claim = Claim(bytes(16), 1, 2, bytes(16), Reason.PROBE_TIMEOUT, False)
    assert codec.decode_claim(codec.encode_claim(claim)) == claim
    with pytest.raises(PacketError):
        codec.decode_claim(b"\xc1")


def test_a_reason_of_a_newer_version_reads_as_other() -> None:
    assert Claim(bytes(16), 1, 2, bytes(16), 99, False).cause() is Reason.OTHER
    assert Claim(bytes(16), 1, 2, bytes(16), 1, False).cause().label == "probe-timeout"

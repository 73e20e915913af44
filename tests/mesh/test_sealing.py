import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError, PacketError
from mesh.ids import make_life, node_tag
from mesh.sealing import (
    BODY_BYTES_MAX,
    HEADER_BYTES,
    MAC_BYTES,
    PACKET_BYTES_MAX,
    REASONS,
    KeyRing,
    KeyState,
    RingKey,
    Sealer,
    receiver_tag,
)

OLD = RingKey(b"o" * 32, KeyState.RETIRING)
NEW = RingKey(b"n" * 32, KeyState.PRIMARY)
RING = KeyRing([OLD, NEW])
CLUSTER = b"cluster1"


def sealer(*, ring: KeyRing = RING, cluster: bytes = CLUSTER, process: int = 7, encrypt: bool = True) -> Sealer:
    return Sealer(
        ring=ring, cluster=cluster, sender=node_tag("a"), life=make_life(1, 1), process=process, encrypt=encrypt
    )


@given(st.binary(max_size=BODY_BYTES_MAX), st.integers(0, 2**32 - 1), st.booleans())
def test_what_is_sealed_opens_to_the_same(body: bytes, receiver: int, encrypt: bool) -> None:
    packet = sealer().open(sealer(encrypt=encrypt).seal(body, receiver))
    assert (packet.body, packet.receiver, packet.sender) == (body, receiver, node_tag("a"))
    assert (packet.life, packet.process) == (make_life(1, 1), 7)


def test_the_largest_body_makes_the_largest_packet_and_one_byte_more_is_our_own_mistake() -> None:
    assert len(sealer().seal(bytes(BODY_BYTES_MAX), 0)) == PACKET_BYTES_MAX
    with pytest.raises(AssertionError):
        sealer().seal(bytes(BODY_BYTES_MAX + 1), 0)


@given(st.binary(max_size=1_400))
def test_random_bytes_raise_nothing_but_a_packet_error_with_a_known_reason(data: bytes) -> None:
    with pytest.raises(PacketError) as refused:
        sealer().open(data)
    assert refused.value.reason in REASONS


@given(st.data())
def test_a_packet_changed_in_any_bit_is_refused(data: st.DataObject) -> None:
    packet = bytearray(sealer().seal(b"hello", 1))
    bit = data.draw(st.integers(0, len(packet) * 8 - 1))
    packet[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PacketError):
        sealer().open(bytes(packet))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (bytes(HEADER_BYTES + MAC_BYTES - 1), "truncated"),
        (bytes(PACKET_BYTES_MAX + 1), "oversized"),
        (bytes(HEADER_BYTES + MAC_BYTES), "version"),
        (b"\x01" + bytes(HEADER_BYTES + MAC_BYTES), "unknown-key"),
    ],
)
def test_each_refusal_names_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PacketError, match=reason):
        sealer().open(data)


def test_a_wrong_mac_and_a_wrong_cluster_are_told_apart() -> None:
    sealed = sealer().seal(b"hello", 1)
    with pytest.raises(PacketError, match="bad-mac"):
        sealer().open(sealed[:-1] + bytes((sealed[-1] ^ 1,)))
    with pytest.raises(PacketError, match="wrong-cluster"):
        sealer(cluster=b"cluster2").open(sealed)


def test_a_body_shorter_than_its_tag_is_unsealable() -> None:
    plain = sealer(encrypt=False)
    plain._flags = 1  # claims to be encrypted, but seals the body as it is
    plain._keys.cipher = lambda *_: type("Plain", (), {"encrypt": staticmethod(lambda _n, body, _h: body)})()
    with pytest.raises(PacketError, match="unsealable"):
        sealer().open(plain.seal(b"short", 0))


def test_the_body_is_not_readable_on_the_wire_and_two_packets_never_look_alike() -> None:
    one = sealer()
    first, second = one.seal(b"secret words" * 3, 0), one.seal(b"secret words" * 3, 0)
    assert b"secret words" not in first
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]


def test_two_processes_of_one_life_use_different_sequences() -> None:
    first, second = sealer(process=1), sealer(process=2)
    assert first.open(first.seal(b"", 0)).sequence != first.open(second.seal(b"", 0)).sequence


def test_a_packet_under_a_retiring_key_opens_and_ours_go_out_under_the_primary_one() -> None:
    old = sealer(ring=KeyRing([RingKey(OLD.secret, KeyState.PRIMARY)]))
    assert sealer().open(old.seal(b"from before", 0)).body == b"from before"
    with pytest.raises(PacketError, match="unknown-key"):
        old.open(sealer().seal(b"", 0))


def test_a_ring_needs_exactly_one_primary_key_and_no_key_twice() -> None:
    with pytest.raises(ConfigError, match="0 primary"):
        KeyRing([OLD])
    with pytest.raises(ConfigError, match="2 primary"):
        KeyRing([NEW, RingKey(b"x" * 32, KeyState.PRIMARY)])
    with pytest.raises(ConfigError, match="twice"):
        KeyRing([NEW, RingKey(NEW.secret, KeyState.RETIRING)])
    with pytest.raises(ConfigError, match="32 bytes"):
        RingKey(b"short", KeyState.PRIMARY)


def test_a_ring_finds_keys_by_id_and_lists_them_in_order() -> None:
    assert RING.get(OLD.key_id) is OLD
    assert RING.keys() == (OLD, NEW)
    assert RING.primary is NEW
    assert "oooo" not in repr(OLD)


def test_the_tag_of_a_receiver_changes_with_its_life_and_is_never_zero() -> None:
    tags = {receiver_tag(node_tag("a"), life) for life in range(200)}
    assert len(tags) == 200
    assert 0 not in tags

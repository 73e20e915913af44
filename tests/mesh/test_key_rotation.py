"""Key rings change one step at a time: a key is installed, then used, then retired, and gone a day later."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulation.credentials import Credentials
from mesh.errors import ConfigError, ConflictError, NotFoundError, RecordError
from mesh.identity import Authority
from mesh.key_rotation import (
    GRACE_MS,
    KEYS_MAX,
    add,
    key_name,
    only_grew,
    open_ring,
    parse_key_name,
    promote,
    retire,
    sign_ring,
)
from mesh.sealing import KeyRing, KeyState, RingKey

MESH = Credentials(1)
FIRST = KeyRing([RingKey(bytes(32), KeyState.PRIMARY)])
NEW = RingKey(b"n" * 32, KeyState.INSTALLED).key_id


def states(ring: KeyRing) -> dict[int, KeyState]:
    return {key.key_id: key.state for key in ring}


def test_a_rotation_takes_four_rings_and_leaves_one_key() -> None:
    former = FIRST.primary.key_id
    added = add(FIRST, b"n" * 32)
    promoted = promote(added, NEW)
    retiring = retire(promoted, former, 1_000)
    removed = retire(retiring, former, 1_000 + GRACE_MS)

    assert [ring.number for ring in (FIRST, added, promoted, retiring, removed)] == [0, 1, 2, 3, 4]
    assert (added.primary.key_id, promoted.primary.key_id) == (former, NEW)
    assert states(retiring) == {former: KeyState.RETIRING, NEW: KeyState.PRIMARY}
    assert states(removed) == {NEW: KeyState.PRIMARY}


def test_a_retiring_key_stays_for_its_day_and_may_be_promoted_again() -> None:
    ring = retire(promote(add(FIRST, b"n" * 32), NEW), FIRST.primary.key_id, 1_000)
    with pytest.raises(ConflictError, match=r"accepted for 24\.0 h more"):
        retire(ring, FIRST.primary.key_id, 1_001)
    back = promote(ring, FIRST.primary.key_id)
    assert back.primary.retiring_since_ms == 0
    assert states(back)[NEW] is KeyState.INSTALLED


def test_what_would_leave_the_mesh_without_a_key_to_seal_with_is_refused() -> None:
    with pytest.raises(ConflictError, match="promote another one first"):
        retire(FIRST, FIRST.primary.key_id, 0)
    with pytest.raises(ConflictError, match="is the primary key already"):
        promote(FIRST, FIRST.primary.key_id)
    with pytest.raises(NotFoundError, match=f"the ring has {key_name(FIRST.primary.key_id)}"):
        promote(FIRST, NEW)


def test_a_ring_has_a_bounded_number_of_keys() -> None:
    ring = FIRST
    for number in range(KEYS_MAX - 1):
        ring = add(ring, bytes([number + 1]) * 32)
    assert len(ring.keys()) == KEYS_MAX
    with pytest.raises(ConflictError, match="retire one first"):
        add(ring, b"z" * 32)


def test_only_a_ring_that_keeps_every_key_as_it_was_has_merely_grown() -> None:
    added = add(FIRST, b"n" * 32)
    promoted = promote(added, NEW)
    assert only_grew(FIRST, added)
    assert not only_grew(added, promoted)
    assert not only_grew(promoted, retire(promoted, FIRST.primary.key_id, 0))
    assert not only_grew(added, FIRST)


@given(st.sets(st.binary(min_size=32, max_size=32), min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 2**50))
def test_a_ring_arrives_as_it_was_signed(secrets: set[bytes], number: int, since_ms: int) -> None:
    first, *rest = sorted(secrets)
    keys = [RingKey(first, KeyState.PRIMARY), *(RingKey(secret, KeyState.RETIRING, since_ms) for secret in rest)]
    ring = KeyRing(keys, number=number)
    opened, statement = open_ring(Authority(MESH.ca_public_key), sign_ring(MESH.ca_key, MESH.cluster, ring))
    assert (opened.keys(), opened.number, statement.number) == (ring.keys(), number, number)


def test_a_ring_of_another_mesh_is_refused() -> None:
    raw = sign_ring(MESH.ca_key, MESH.cluster, add(FIRST, b"n" * 32))
    with pytest.raises(RecordError):
        open_ring(Authority(Credentials(2).ca_public_key), raw)


def test_key_names_read_back_and_tell_nothing_of_the_secret() -> None:
    assert parse_key_name(key_name(NEW)) == NEW
    for text in ("", "xyz", "123456789", "-1234567", "1234 678"):
        with pytest.raises(ConfigError, match="mesh keys list"):
            parse_key_name(text)
    assert (b"n" * 32).hex() not in repr(add(FIRST, b"n" * 32).keys())

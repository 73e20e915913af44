"""Version vectors behave like the sets of dots that they stand for. Each law is checked against plain Python sets."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.errors import RecordError
from mesh.ids import Origin
from mesh.version_vector import ORIGIN_RANGES_MAX, ORIGINS_MAX, WIRE_BYTES_MAX, VersionVector

A, B, C = Origin("node-a", 1), Origin("node-a", 2), Origin("node-b", 1)

additions = st.lists(
    st.tuples(st.sampled_from([A, B, C]), st.integers(1, 40), st.integers(0, 6)).map(
        lambda each: (each[0], each[1], each[1] + each[2])
    ),
    max_size=25,
)


def build(adds):
    vector = VersionVector()
    for origin, lo, hi in adds:
        vector.add(origin, lo, hi)
    return vector


def dots(adds):
    return {(origin, seq) for origin, lo, hi in adds for seq in range(lo, hi + 1)}


def dots_of(ranges):
    return {(origin, seq) for origin, pairs in ranges.items() for lo, hi in pairs for seq in range(lo, hi + 1)}


@given(additions)
def test_a_vector_covers_exactly_what_was_added_in_the_fewest_ranges(adds):
    vector, expected = build(adds), dots(adds)

    assert dots_of({origin: vector.ranges(origin) for origin in vector.origins()}) == expected
    assert vector.count() == len(expected)
    for origin in (A, B, C):
        assert vector.head(origin) == max((seq for other, seq in expected if other == origin), default=0)
        assert all(vector.covers(origin, seq) == ((origin, seq) in expected) for seq in range(1, 50))
        ranges = vector.ranges(origin)
        assert all(later[0] > earlier[1] + 1 for earlier, later in itertools.pairwise(ranges))


@given(additions, additions)
def test_missing_is_the_set_difference(adds, other_adds):
    missing = build(adds).missing_from(build(other_adds))

    assert dots_of(missing) == dots(other_adds) - dots(adds)
    assert list(missing) == sorted(missing)


@given(additions, additions, additions)
def test_join_is_union_commutative_associative_and_idempotent(x, y, z):
    def join(*vectors):
        total = VersionVector()
        for vector in vectors:
            total.join(vector)
        return total

    vx, vy, vz = build(x), build(y), build(z)

    assert join(vx, vy) == join(vy, vx) == build(x + y)
    assert join(join(vx, vy), vz) == join(vx, join(vy, vz))
    assert join(vx, vx) == vx


@given(additions, st.randoms(use_true_random=False))
def test_digest_depends_on_the_dots_and_not_on_their_order(adds, rng):
    shuffled = list(adds)
    rng.shuffle(shuffled)

    assert build(adds).digest() == build(shuffled).digest()
    grown = build(adds)
    grown.add(C, 1_000, 1_000)
    assert grown.digest() != build(adds).digest()
    assert len(grown.digest()) == 8


@given(additions)
def test_the_wire_form_gives_the_same_vector_back(adds):
    vector = build(adds)

    assert VersionVector.from_wire(vector.to_wire()) == vector


@given(additions)
def test_a_copy_goes_its_own_way(adds):
    vector = build(adds)
    twin = vector.copy()
    twin.add(A, 100, 100)

    assert vector == build(adds)
    assert twin != vector


@given(st.binary(max_size=200))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x91" * 5_000)
@example(msgspec.msgpack.encode([["a\xff", 1, [1, 0]]]))
def test_random_bytes_raise_only_record_error(data):
    try:
        vector = VersionVector.from_wire(data)
    except RecordError:
        return
    assert VersionVector.from_wire(vector.to_wire()) == vector


@pytest.mark.parametrize(
    "wire",
    [
        [["node-a", 1, [0, 0]]],  # sequence numbers begin at 1
        [["node-a", 1, [1, 0, 1, 0]]],  # touching ranges: 1..1 and 2..2
        [["node-a", 1, [1, 0, 0, 5]]],  # overlapping ranges
        [["node-a", 1, [1]]],  # half a range
        [["node-a", 1, [(1 << 63) - 1, 5]]],  # beyond 63 bits
        [["node-a", 1, [1, 0]], ["node-a", 1, [5, 0]]],  # one origin twice
    ],
)
def test_a_vector_in_another_than_the_one_canonical_form_is_refused(wire):
    with pytest.raises(RecordError):
        VersionVector.from_wire(msgspec.msgpack.encode(wire))


def test_wire_limits_hold_at_the_limit_and_one_past_it():
    at_limit = [[f"n{number}", 1, [1, 0]] for number in range(ORIGINS_MAX)]
    assert len(VersionVector.from_wire(msgspec.msgpack.encode(at_limit)).origins()) == ORIGINS_MAX
    with pytest.raises(RecordError):
        VersionVector.from_wire(msgspec.msgpack.encode([*at_limit, ["x", 1, [1, 0]]]))

    ranges = [2, 0] * ORIGIN_RANGES_MAX
    assert len(VersionVector.from_wire(msgspec.msgpack.encode([["n", 1, ranges]])).ranges(Origin("n", 1))) == 1_024
    with pytest.raises(RecordError):
        VersionVector.from_wire(msgspec.msgpack.encode([["n", 1, [*ranges, 2, 0]]]))

    with pytest.raises(RecordError):
        VersionVector.from_wire(bytes(WIRE_BYTES_MAX + 1))


def test_a_vector_past_the_wire_limits_claims_less_and_never_more():
    vector = VersionVector()
    for number in range(ORIGIN_RANGES_MAX + 1):
        vector.add(A, 2 * number + 1, 2 * number + 1)

    received = VersionVector.from_wire(vector.to_wire())

    assert received.missing_from(vector) == {A: [(2 * ORIGIN_RANGES_MAX + 1, 2 * ORIGIN_RANGES_MAX + 1)]}
    assert vector.missing_from(received) == {}


def test_unbroken_ends_at_the_first_gap():
    a, b, c = Origin("a", 1), Origin("b", 1), Origin("c", 1)
    vector = VersionVector({a: [(1, 4), (6, 9)], b: [(2, 3)]})
    assert [vector.unbroken(origin) for origin in (a, b, c)] == [4, 0, 0]

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.digests import (
    DIGEST_OVERHEAD_BYTES,
    ENTRY_BYTES,
    Difference,
    compare,
    make_digest,
    part_that_fits,
    read_entries,
    view_of,
    whole_digest,
)
from mesh.errors import PacketError
from mesh.ids import Life
from mesh.membership import Member, Status
from mesh.messages import Digest
from tests.mesh.test_membership import record, table

LOW, HIGH = bytes(8), b"\xff" * 8
TEMPLATE = table("b").get("b")
assert TEMPLATE is not None


def member(tag: int, *, life: int = 1, incarnation: int = 0, status: Status = Status.ALIVE) -> Member:
    return dataclasses.replace(
        TEMPLATE,
        node_id=f"m{tag}",
        tag=tag.to_bytes(8, "big") + bytes(8),
        life=Life(life),
        incarnation=incarnation,
        status=status,
    )


def space_for(entries: int) -> int:
    return DIGEST_OVERHEAD_BYTES + entries * ENTRY_BYTES


def digest(members: list[Member], entries: int = 100, low: bytes = LOW, high: bytes = HIGH) -> Digest:
    return make_digest(members, low=low, high=high, space=space_for(entries), answer=False)


OWN = member(0)
OTHERS = [member(tag) for tag in (10, 20, 30, 40, 50)]


def test_equal_views_differ_in_nothing() -> None:
    difference = compare([OWN, *OTHERS], digest([OWN, *OTHERS]), OWN)
    assert difference.ours_newer == []
    assert difference.theirs_newer == 0
    assert difference.of_us == (OWN.life, 0, 0)


@pytest.mark.parametrize(
    "newer",
    [
        {"life": 2},
        {"incarnation": 1},
        {"status": Status.SUSPECT},
        {"status": Status.DEAD},
        {"status": Status.LEFT},
    ],
)
def test_each_kind_of_newer_view_is_seen_from_both_sides(newer: dict) -> None:
    old, new = member(10), member(10, **newer)
    assert compare([OWN, new], digest([OWN, old]), OWN).ours_newer == [new]
    assert compare([OWN, old], digest([OWN, new]), OWN).theirs_newer == 1


def test_left_is_newer_than_any_incarnation_of_its_life() -> None:
    left, alive = member(10, status=Status.LEFT), member(10, incarnation=5)
    assert compare([OWN, left], digest([OWN, alive]), OWN).ours_newer == [left]
    assert compare([OWN, left], digest([OWN, member(10, life=2)]), OWN).theirs_newer == 1


def test_members_unknown_to_either_side_are_seen() -> None:
    assert compare([OWN, member(10)], digest([OWN]), OWN).ours_newer == [member(10)]
    assert compare([OWN], digest([OWN, member(10)]), OWN).theirs_newer == 1


def test_what_fits_exactly_is_whole_and_one_more_shortens_the_range() -> None:
    whole = digest([OWN, *OTHERS], entries=6)
    assert (whole.low, whole.high, len(read_entries(whole))) == (LOW, HIGH, 6)
    part = digest([OWN, *OTHERS], entries=5)
    assert (part.low, part.high) == (LOW, (40).to_bytes(8, "big"))
    difference = compare([OWN, *OTHERS], part, OWN)
    assert difference.ours_newer == []
    assert difference.theirs_newer == 0


def test_a_range_may_wrap_round() -> None:
    low, high = (35).to_bytes(8, "big"), (34).to_bytes(8, "big")
    part = digest([OWN, *OTHERS], entries=3, low=low, high=high)
    assert [int.from_bytes(tag, "big") for tag in read_entries(part)] == [40, 50, 0]
    assert part.high == bytes(8)
    assert compare([OWN, *OTHERS, member(2**64 - 1)], part, OWN).ours_newer == [member(2**64 - 1)]


def test_a_range_that_wraps_round_covers_both_ends() -> None:
    low, high = (30).to_bytes(8, "big"), (10).to_bytes(8, "big")
    assert set(read_entries(digest([OWN, *OTHERS], low=low, high=high))) == {
        tag.to_bytes(8, "big") for tag in (0, 10, 30, 40, 50)
    }


def test_a_whole_view_is_told_if_it_fits_and_else_not_at_all() -> None:
    members = [OWN, *OTHERS]
    told = whole_digest(members, space_for(6))
    assert told is not None
    assert compare(members, told, OWN) == Difference([], 0, (OWN.life, 0, 0))
    assert whole_digest(members, space_for(6) - 1) is None


def test_a_range_that_does_not_fit_begins_anywhere_in_it_but_never_too_late_to_fill_the_digest() -> None:
    rng = random.Random(1)
    begins = {part_that_fits([OWN, *OTHERS], LOW, HIGH, space_for(4), rng) for _ in range(50)}
    assert begins == {tag.to_bytes(8, "big") for tag in (0, 10, 20)}
    assert part_that_fits([OWN, *OTHERS], LOW, HIGH, space_for(6), rng) == LOW


def test_one_member_is_found_in_a_digest_or_not() -> None:
    assert view_of(digest(OTHERS), OTHERS[1]) == (OTHERS[1].life, 0, 0)
    assert view_of(digest(OTHERS), OWN) is None


def test_entries_that_are_not_whole_are_refused() -> None:
    with pytest.raises(PacketError, match="malformed"):
        compare([OWN], Digest(LOW, HIGH, False, bytes(ENTRY_BYTES + 1)), OWN)


@settings(max_examples=60)
@given(
    st.dictionaries(st.integers(1, 40), st.tuples(st.integers(1, 2), st.integers(0, 2), st.sampled_from(Status))),
    st.dictionaries(st.integers(1, 40), st.tuples(st.integers(1, 2), st.integers(0, 2), st.sampled_from(Status))),
    st.integers(0, 50),
)
def test_what_one_side_lacks_the_other_has(one: dict, other: dict, start: int) -> None:
    def view(entries: dict) -> list[Member]:
        return [OWN] + [member(t, life=e[0], incarnation=e[1], status=e[2]) for t, e in sorted(entries.items())]

    low, high = start.to_bytes(8, "big"), ((start - 1) % 2**64).to_bytes(8, "big")
    theirs = compare(view(one), digest(view(other), low=low, high=high), OWN)
    ours = compare(view(other), digest(view(one), low=low, high=high), OWN)
    assert len(theirs.ours_newer) == ours.theirs_newer
    assert len(ours.ours_newer) == theirs.theirs_newer


def test_a_digest_of_a_real_table_reads_back() -> None:
    members = table("b", "c")
    members.apply_record(record("b", incarnation=1, left=True), 1.0)
    entries = read_entries(digest(members.in_tag_order()))
    left = members.get("b")
    assert left is not None
    assert entries[left.tag[:8]] == (left.life, 1, 3)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import PacketError
from mesh.membership import Membership
from mesh.messages import OUTLINE_HASH_BYTES, RANGE_BYTES, Outline
from mesh.outlines import RANGE_MEMBERS, Outlines
from tests.mesh.test_membership import claim, member, record, table

NAMES = [f"m{index}" for index in range(2 * RANGE_MEMBERS)]


def ranges_of(members: Membership) -> int:
    return len(Outlines(members).own().hashes) // OUTLINE_HASH_BYTES


@pytest.fixture(scope="module")
def large() -> Membership:
    return table(*NAMES)


def test_a_small_mesh_is_one_range_and_a_larger_one_a_range_for_about_thirty_two_members(large: Membership) -> None:
    assert ranges_of(table()) == 1
    assert ranges_of(table(*NAMES[: RANGE_MEMBERS - 1])) == 1
    assert ranges_of(table(*NAMES[:RANGE_MEMBERS])) == 2
    assert ranges_of(large) == 4


def test_equal_views_differ_nowhere_in_whatever_order_they_were_learned(large: Membership) -> None:
    assert Outlines(table(*reversed(NAMES))).differing(Outlines(large).own()) == []


@given(st.sampled_from(NAMES))
def test_one_member_less_is_found_in_the_one_range_that_holds_it(missing: str) -> None:
    # The ranges are the sender's, whatever number of them the receiver would choose.
    fewer = table(*(name for name in NAMES if name != missing))
    (found,) = Outlines(fewer).differing(Outlines(table(*NAMES)).own())
    low, high = found
    assert low <= record(missing).tag[:RANGE_BYTES] <= high


@pytest.mark.parametrize("what", ["suspicion", "incarnation", "life"])
def test_every_change_of_a_view_shows(what: str) -> None:
    members, before = table("b"), Outlines(table("b")).own()
    outlines = Outlines(members)
    assert outlines.differing(before) == []
    if what == "suspicion":
        members.accuse(claim(member(members)), "c", 1.0)
    else:
        members.apply_record(record(incarnation=1) if what == "incarnation" else record(boot=2), 1.0)
    assert outlines.differing(before) != []


@pytest.mark.parametrize("size", [7, 9, 3 * OUTLINE_HASH_BYTES])
def test_what_is_no_outline_is_malformed(size: int) -> None:
    with pytest.raises(PacketError, match="malformed"):
        Outlines(table()).differing(Outline(bytes(size)))

"""When a deletion may be forgotten: laws of two looks, and of what travels."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mesh.errors import RecordError
from mesh.ids import Origin
from mesh.stability import Stable, look, may_adopt, settle, was_away_too_long
from mesh.version_vector import VersionVector

A, B = Origin("a", 1), Origin("b", 2)

dots = st.sets(st.tuples(st.sampled_from([A, B]), st.integers(1, 12)))


def vector(*covered: tuple[Origin, int]) -> VersionVector:
    found = VersionVector()
    for origin, seq in covered:
        found.add(origin, seq, seq)
    return found


@given(dots, dots)
def test_a_meet_covers_what_both_cover_and_nothing_else(ours, theirs):
    common = vector(*ours).meet(vector(*theirs))
    assert {(origin, seq) for origin in (A, B) for seq in range(1, 13) if common.covers(origin, seq)} == ours & theirs
    assert common == vector(*theirs).meet(vector(*ours))


@given(dots, dots)
def test_including_is_missing_nothing(ours, theirs):
    assert vector(*ours).includes(vector(*theirs)) == (theirs <= ours)


@given(st.lists(dots, min_size=1, max_size=4), st.lists(dots, min_size=1, max_size=4))
def test_what_is_settled_was_seen_by_all_before_and_what_is_complete_has_all_of_that_time(before, after):
    first = look(vector(*seen) for seen in before)
    second = look(vector(*seen) for seen in after)
    assert first is not None
    assert second is not None
    found = settle(Stable(), first, second)
    if set().union(*before) <= set.intersection(*after):
        assert found.settled == vector(*set.intersection(*before))
        assert found.complete.includes(vector(*set().union(*before)))
        assert found.complete == vector(*set.intersection(*after))
    else:
        assert found == Stable()


@given(dots, dots, dots, dots)
def test_knowledge_only_grows(one, more, other, others):
    mine = Stable(vector(*one), vector(*(one | more)))
    theirs = Stable(vector(*other), vector(*(other | others)))
    both = mine.joined(theirs)
    assert both.includes(mine)
    assert both.includes(theirs)
    assert both.complete.includes(both.settled)
    assert (both.digest() == mine.digest()) == mine.includes(theirs)
    assert Stable.from_wire(both.to_wire()) == both


stables = st.builds(
    lambda settled, complete, collapsed: Stable().joined(
        Stable(vector(*settled), vector(*(settled | complete)), vector(*collapsed))
    ),
    dots,
    dots,
    dots,
)


@given(stables, stables)
def test_collapsed_dots_are_in_no_other_vector_and_knowledge_still_only_grows(mine, theirs):
    both = mine.joined(theirs)
    assert both == theirs.joined(mine)
    assert both.includes(mine)
    assert both.includes(theirs)
    assert both.joined(mine) == both
    assert both.collapsed.meet(both.complete).is_empty
    assert both.complete.includes(both.settled)
    assert (both.digest() == mine.digest()) == mine.includes(theirs)
    assert Stable.from_wire(both.to_wire()) == both
    news = mine.news_in(theirs)
    assert mine.joined(news) == both
    assert mine.collapsed.meet(news.complete).is_empty


@given(st.sets(st.tuples(st.sampled_from([A, B]), st.integers(1, 12)), min_size=1), dots, stables)
def test_who_may_adopt_does_not_depend_on_what_it_has_collapsed(seen, gone, theirs):
    everything, collapsed = vector(*seen), vector(*(seen & gone))
    left = everything.without(collapsed)
    assume(A in left.origins())  # else it holds nothing but what it wrote itself
    wanted = theirs.complete.copy()
    wanted.join(theirs.collapsed)
    assert may_adopt(left, B, Stable(collapsed=collapsed).news_in(theirs)) == everything.includes(wanted)


def test_with_an_unknown_member_nobody_can_say_what_all_have_seen():
    assert look([vector((A, 1)), None]) is None


def test_only_what_covers_it_or_holds_nothing_of_others_may_adopt():
    stable = Stable(vector((A, 1)), vector((A, 1), (A, 2)))
    assert may_adopt(vector((A, 1), (A, 2), (B, 1)), B, stable)
    assert not may_adopt(vector((A, 1)), B, stable)
    assert may_adopt(vector((B, 1)), B, stable)
    assert not may_adopt(vector((B, 1)), Origin("b", 3), stable)  # what an earlier disk of ours wrote is of the past
    assert was_away_too_long(vector((A, 1)), B, stable, same_stable=False)
    assert not was_away_too_long(vector((A, 1)), B, stable, same_stable=True)


@pytest.mark.parametrize(
    "data", [b"", b"\x90", b"\xc0", Stable(vector((A, 1)), vector((A, 2))).to_wire(), b"\x92\xc4\x01x\xc4\x00"]
)
def test_nonsense_is_refused(data):
    with pytest.raises(RecordError):
        Stable.from_wire(data)

"""Support: at no moment do two holders have it, whatever is lost, late, paused or started anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.support import MARGIN, Ballot, Holder, Support, Supporter, Vote, majority, may_vote

FENCE_S = 2.0
WORK = "work"
A, B = Holder("a", b"1"), Holder("b", b"1")


def supporter(self_fence_s: float = FENCE_S, now: float = -100.0) -> Supporter:
    return Supporter(self_fence_s=self_fence_s, now=now)


def ask(member: Supporter, holder: Holder, now: float, work: str = WORK) -> bool:
    return member.support(work, holder, self_fence_s=FENCE_S, now=now)


@given(st.integers(3, 100))
def test_two_majorities_of_a_roster_share_a_member(size):
    assert 2 * majority(["x"] * size) > size


def test_a_member_supports_one_holder_until_that_one_has_stopped_counting():
    member = supporter()
    assert ask(member, A, 0.0)
    assert not ask(member, B, FENCE_S)
    assert ask(member, B, MARGIN * FENCE_S)
    assert not ask(member, A, MARGIN * FENCE_S)


def test_other_work_and_the_same_holder_are_supported_meanwhile():
    member = supporter()
    assert ask(member, A, 0.0)
    assert ask(member, B, 0.0, work="other")
    assert ask(member, A, 1.0)
    assert not ask(member, B, 1.0 + FENCE_S)


def test_another_process_of_the_holder_is_another_holder():
    member = supporter()
    assert ask(member, A, 0.0)
    assert not ask(member, Holder("a", b"2"), 0.1)


def test_a_member_that_has_just_started_supports_nobody():
    member = supporter(now=10.0)
    assert not ask(member, A, 10.0 + MARGIN * FENCE_S - 0.01)
    assert ask(member, A, 10.0 + MARGIN * FENCE_S)


@pytest.mark.parametrize("fence_s", [0.0, -1.0, 1e9])
def test_a_senseless_fence_time_is_not_supported(fence_s):
    assert not supporter().support(WORK, A, self_fence_s=fence_s, now=0.0)


def test_old_grants_are_forgotten_and_new_ones_kept():
    member = supporter()
    ask(member, A, 0.0, work="old")
    ask(member, A, 2.0, work="new")
    member.forget_old(3.0)
    assert member.size == 1
    assert not ask(member, B, 3.0, work="new")


def test_support_lapses_with_the_request_that_makes_the_majority():
    held = Support(self_fence_s=FENCE_S)
    roster = ["a", "b", "c", "d", "e"]
    for member, sent_at in (("a", 3.0), ("b", 1.0)):
        held.heard(WORK, member, sent_at=sent_at)
    assert held.lapses_at(WORK, roster) == float("-inf")
    held.heard(WORK, "c", sent_at=2.0)
    held.heard(WORK, "stranger", sent_at=9.0)
    assert held.lapses_at(WORK, roster) == 1.0 + FENCE_S
    assert held.supporters(WORK, roster, 3.5) == ["a", "c"]


def test_a_late_answer_to_an_early_request_counts_from_the_request():
    held = Support(self_fence_s=FENCE_S)
    held.heard(WORK, "a", sent_at=5.0)
    held.heard(WORK, "a", sent_at=1.0)
    assert held.lapses_at(WORK, ["a"]) == 5.0 + FENCE_S
    held.keep_only(["other"])
    assert held.lapses_at(WORK, ["a"]) == float("-inf")


BALLOTS = st.builds(Ballot, st.integers(0, 2), st.integers(0, 3))


@given(st.lists(st.builds(Vote, BALLOTS, st.sampled_from("xyz"))))
def test_a_voter_chooses_one_taker_for_each_turn(wanted):
    stands: Vote | None = None
    chosen: dict[Ballot, str] = {}
    for vote in wanted:
        if may_vote(stands, vote):
            assert chosen.setdefault(vote.ballot, vote.taker) == vote.taker
            stands = vote


# --- all interleavings of a small mesh ---


class World(NamedTuple):
    """Members a, b and c. Holder A lives at a, holder B at b, each of which supports its own for ever: both need c.

    Times are ages in ticks; what is older than any rule looks at is None. Messages are (holder, age of the request);
    they may arrive late, in any order, or never. A pause of a holder is a late answer, one of c a late request.
    """

    started: int | None = None
    granted: tuple[int, int] | None = None
    heard: tuple[int | None, int | None] = (None, None)
    """By holder, the age of the request that c answered."""
    asked: frozenset[tuple[int, int]] = frozenset()
    answers: frozenset[tuple[int, int]] = frozenset()


OLD = 3
"""Ticks after which both times of a fence of two ticks are over."""
IN_FLIGHT_MAX = 3


def _aged(age: int | None) -> int | None:
    return None if age is None or age + 1 >= OLD else age + 1


def _tick(world: World) -> World:
    granted = None
    if world.granted is not None and world.granted[1] + 1 < OLD:
        granted = world.granted[0], world.granted[1] + 1
    late = [frozenset((holder, min(age + 1, OLD)) for holder, age in sent) for sent in (world.asked, world.answers)]
    return World(_aged(world.started), granted, (_aged(world.heard[0]), _aged(world.heard[1])), *late)


def _member(world: World, *, silent: bool) -> Supporter:
    started = 100 if world.started is None or not silent else world.started
    if world.granted is None:
        return supporter(now=-float(started))
    member = supporter()
    assert ask(member, (A, B)[world.granted[0]], -float(world.granted[1]))
    return member


def _moves(world: World, *, silent: bool, from_answer: bool) -> Iterator[World]:
    yield _tick(world)
    yield world._replace(started=0, granted=None)
    for holder in (0, 1):
        if len(world.asked) + len(world.answers) < IN_FLIGHT_MAX:
            yield world._replace(asked=world.asked | {(holder, 0)})
    for message in world.asked:
        left = world._replace(asked=world.asked - {message})
        if ask(_member(world, silent=silent), (A, B)[message[0]], 0.0):
            yield left._replace(granted=(message[0], 0), answers=left.answers | {message})
    for message in world.answers:
        heard = list(world.heard)
        before = heard[message[0]]
        age = 0 if from_answer else message[1]
        heard[message[0]] = age if before is None else min(age, before)
        yield world._replace(answers=world.answers - {message}, heard=(heard[0], heard[1]))


def _has_support(world: World, holder: int) -> bool:
    held = Support(self_fence_s=FENCE_S)
    held.heard(WORK, "ab"[holder], sent_at=0.0)
    age = world.heard[holder]
    if age is not None:
        held.heard(WORK, "c", sent_at=-float(age))
    return held.lapses_at(WORK, ["a", "b", "c"]) > 0.0


def _two_hold_somewhere(*, silent: bool = True, from_answer: bool = False) -> bool:
    """Whether any sequence of moves, of any length, leads to two holders with support."""
    level, known = {World()}, {World()}
    while level:
        level = {move for world in level for move in _moves(world, silent=silent, from_answer=from_answer)} - known
        if any(_has_support(world, 0) and _has_support(world, 1) for world in level):
            return True
        known |= level
    return False


def test_no_interleaving_gives_two_holders_support():
    assert not _two_hold_somewhere()


def test_the_enumeration_finds_a_member_that_forgets_at_a_restart():
    assert _two_hold_somewhere(silent=False)


def test_the_enumeration_finds_support_that_is_counted_from_the_answer():
    assert _two_hold_somewhere(from_answer=True)


# --- random courses of larger ones, with clocks of their own ---

Move = tuple[str, int, int, float]
MOVES = st.tuples(
    st.sampled_from(["ask", "ask", "ask", "restart"]), st.integers(0, 4), st.integers(0, 4), st.floats(0, 2)
)


class Mesh:
    """Members with clocks that run up to a per cent wrong. Every member is a holder, too."""

    def __init__(self, size: int, rates: list[float]) -> None:
        self.names = "abcde"[:size]
        self.rates = rates
        self.members = [Supporter(self_fence_s=FENCE_S, now=self.clock(index, -100.0)) for index in range(size)]
        self.held = [Support(self_fence_s=FENCE_S) for _ in range(size)]

    def clock(self, index: int, true_s: float) -> float:
        return 1000.0 * index + true_s * self.rates[index]

    def holders(self, true_s: float) -> list[str]:
        return [
            name
            for index, name in enumerate(self.names)
            if self.clock(index, true_s) < self.held[index].lapses_at(WORK, self.names)
        ]


@given(
    st.integers(3, 5),
    st.lists(st.floats(0.99, 1.01), min_size=5, max_size=5),
    st.lists(MOVES, max_size=60),
    st.lists(st.floats(0, 1.5), min_size=60, max_size=60),
)
def test_at_most_one_holder_whatever_clocks_and_delays_are(size, rates, moves, delays):
    mesh = Mesh(size, rates)
    now = 0.0
    for (kind, who, whom, pause_s), delay_s in zip(moves, delays, strict=False):
        who, whom = who % size, whom % size
        if kind == "restart":
            mesh.members[who] = Supporter(self_fence_s=FENCE_S, now=mesh.clock(who, now))
            continue
        sent_at = mesh.clock(who, now)
        now += delay_s if pause_s > 1.5 else 0.0
        holder = Holder(mesh.names[who], b"1")
        if mesh.members[whom].support(WORK, holder, self_fence_s=FENCE_S, now=mesh.clock(whom, now)):
            now += pause_s / 4
            mesh.held[who].heard(WORK, mesh.names[whom], sent_at=sent_at)
        assert len(mesh.holders(now)) <= 1

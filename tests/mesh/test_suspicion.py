import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.suspicion import Suspicion


def suspicion(wanted: int = 3) -> Suspicion:
    return Suspicion(
        started=100.0, shortest_s=2.0, longest_s=12.0, refutable_s=1.0, wanted=wanted, accusers={"first": None}
    )


def test_unconfirmed_it_lasts_longest_and_fully_confirmed_shortest() -> None:
    running = suspicion()
    assert running.deadline() == 112.0
    for accuser in ("b", "c", "d"):
        assert running.confirm(accuser)
    assert running.deadline() == pytest.approx(102.0)


def test_the_first_confirmations_shorten_most() -> None:
    running = suspicion()
    ends = [running.deadline()]
    for accuser in ("b", "c", "d"):
        running.confirm(accuser)
        ends.append(running.deadline())
    steps = [before - after for before, after in itertools.pairwise(ends)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == pytest.approx(5.0)


def test_the_same_accuser_counts_once_and_more_than_wanted_are_no_news() -> None:
    running = suspicion(wanted=1)
    assert not running.confirm("first")
    assert running.confirm("b")
    assert not running.confirm("c")


def test_in_a_mesh_too_small_for_confirmations_the_shortest_time_applies_at_once() -> None:
    assert suspicion(wanted=0).deadline() == 102.0


def test_our_own_pause_is_forgiven_and_a_freeze_holds_the_verdict() -> None:
    running = suspicion(wanted=0)
    running.shift(10.0)
    assert running.deadline() == 112.0
    running.held_until = 150.0
    assert running.deadline() == 150.0


def test_agreement_leaves_only_the_time_to_refute_and_ends_no_freeze() -> None:
    running = suspicion()
    running.agreed = True
    assert running.deadline() == 101.0
    running.held_until = 150.0
    assert running.deadline() == 150.0


@given(st.integers(0, 6), st.lists(st.sampled_from("abcdefgh"), max_size=12))
def test_no_accusation_moves_the_end_later_or_out_of_its_bounds(wanted: int, accusers: list[str]) -> None:
    running = suspicion(wanted)
    before = running.deadline()
    for accuser in accusers:
        running.confirm(accuser)
        assert 102.0 <= running.deadline() <= before <= 112.0
        before = running.deadline()

"""Take-over errs towards waiting, goes in order, and never mistakes a partition for poison."""

from __future__ import annotations

import pytest

from mesh.ids import make_life
from mesh.takeover import LOST_LEASES_MAX, LostLease, OwnerState, ended_processes, is_poison, is_takeable, plan, wait_s


@pytest.mark.parametrize("state", [OwnerState.DEAD, OwnerState.LEFT, OwnerState.STORE_FAILED])
def test_a_gone_owner_is_takeable_at_once(state):
    assert is_takeable(state, unknown_for_s=0.0, dead_time_s=3.0)


def test_a_present_owner_is_never_takeable():
    assert not is_takeable(OwnerState.PRESENT, unknown_for_s=1e9, dead_time_s=3.0)


def test_an_unknown_owner_gets_one_dead_time_to_show_up():
    assert not is_takeable(OwnerState.UNKNOWN, unknown_for_s=2.9, dead_time_s=3.0)
    assert is_takeable(OwnerState.UNKNOWN, unknown_for_s=3.0, dead_time_s=3.0)


def test_candidates_wait_three_ticks_for_each_place_before_them():
    takes = [plan("step", me=node, order=["a", "b", "c"], now=10.0, tick_s=0.1) for node in "abc"]

    assert [take.at for take in takes if take is not None] == pytest.approx([10.0, 10.3, 10.6])
    assert plan("step", me="z", order=["a", "b"], now=10.0, tick_s=0.1) is None
    assert wait_s(2, tick_s=0.5) == 3.0


def test_only_a_later_life_proves_that_the_process_ended():
    lost = [LostLease("a", 5), LostLease("b", 5), LostLease("c", 5)]
    lives = {"a": 6, "b": 5}

    assert ended_processes(lost, lives.get) == 1


def test_a_node_that_goes_on_under_a_later_enrolment_has_not_ended():
    lost = [LostLease("a", make_life(1, 7))] * LOST_LEASES_MAX
    assert not is_poison(lost, {"a": make_life(2, 7)}.get)
    assert is_poison(lost, {"a": make_life(2, 8)}.get)


def test_the_fifth_ended_process_is_poison_and_five_partitions_are_not():
    lost = [LostLease("a", life) for life in range(LOST_LEASES_MAX)]

    assert is_poison(lost, {"a": 99}.get)
    assert not is_poison(lost[1:], {"a": 99}.get)
    assert not is_poison(lost, {"a": 0}.get)

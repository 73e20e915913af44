"""The scenario of a hunt comes from its seed, and leaves something to hunt."""

from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.real.driver import LINE_KINDS_OF
from chaos.real.hunt import CUTS_MAX, draw
from chaos.real.trouble import PROCESS_KINDS

seeds = st.integers(0, 2**32)
CUTS = ("partition", "one-way")
KINDS = {"kill", "pause", "stop", "epoch-bump", *CUTS}


@given(seeds)
@settings(max_examples=50)
def test_a_seed_gives_one_schedule_within_the_time(seed):
    scenario = draw(seed, seconds=30)
    assert scenario == draw(seed, seconds=30)
    assert 3 <= scenario.nodes <= 5
    for fault in scenario.faults:
        assert fault.kind in KINDS
        assert 0 < fault.at_s <= fault.until_s <= 30 + 1e-9
        members = [node for side in (fault.nodes, *fault.groups) for node in side]
        assert len(members) == len(set(members))
        assert set(members) <= set(scenario.node_names())


@given(seeds)
@settings(max_examples=50)
def test_a_node_has_one_fault_at_a_time_and_but_for_blackouts_one_node_runs(seed):
    scenario = draw(seed, seconds=60, nodes=4)
    for fault in scenario.faults:
        now = [other for other in scenario.faults if other.at_s <= fault.at_s < other.until_s]
        busy = [node for other in now if other.kind not in CUTS for node in other.nodes]
        assert len(busy) == len(set(busy))
        assert len(busy) < 4 or any(len(other.nodes) == 4 for other in now)
        assert sum(other.kind in CUTS for other in now) <= CUTS_MAX


def test_every_kind_of_fault_happens_and_the_driver_plays_it():
    assert {fault.kind for fault in draw(1, seconds=300).faults} == KINDS
    assert {*LINE_KINDS_OF["loopback"], *PROCESS_KINDS} >= KINDS


def test_where_lines_cannot_be_cut_the_rest_of_the_schedule_stays():
    with_cuts, without = draw(5, seconds=60), draw(5, seconds=60, cuts=False)
    assert without.faults == tuple(fault for fault in with_cuts.faults if fault.kind not in CUTS)
    assert len(without.faults) < len(with_cuts.faults)

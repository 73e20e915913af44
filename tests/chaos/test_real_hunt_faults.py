"""The schedule of a hunt comes from its seed, and leaves something to hunt."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.real.hunt.faults import CUTS_MAX, KINDS, schedule

NODES = ["n1", "n2", "n3", "n4"]
seeds = st.integers(0, 2**32)


@given(seeds)
@settings(max_examples=50)
def test_a_seed_gives_one_schedule_within_the_time(seed):
    faults = schedule(random.Random(seed), NODES, 30, every_s=0.5)
    assert faults == schedule(random.Random(seed), NODES, 30, every_s=0.5)
    for fault in faults:
        assert fault.kind in KINDS
        assert 0 < fault.at_s <= fault.until_s <= 30
        assert not set(fault.here) & set(fault.there)


@given(seeds)
@settings(max_examples=50)
def test_a_node_has_one_fault_at_a_time_and_but_for_blackouts_one_node_runs(seed):
    faults = schedule(random.Random(seed), NODES, 60, every_s=0.3)
    for fault in faults:
        now = [other for other in faults if other.at_s <= fault.at_s < other.until_s]
        busy = [node for other in now if not other.there and other.kind != "bump" for node in other.here]
        assert len(busy) == len(set(busy))
        assert len(busy) < len(NODES) or "blackout" in [other.kind for other in now]
        assert sum(bool(other.there) for other in now) <= CUTS_MAX


def test_every_kind_of_fault_happens():
    faults = schedule(random.Random(1), NODES, 300, every_s=0.5)
    assert {fault.kind for fault in faults} == set(KINDS)

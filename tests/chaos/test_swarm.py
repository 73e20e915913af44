from __future__ import annotations

import dataclasses
from collections import Counter

from chaos import swarm
from chaos.fault_menu import MENU
from chaos.scenario import RandomFaults, Scenario

DRAWN = [swarm.draw(seed) for seed in range(300)]


def test_a_seed_is_a_scenario():
    assert swarm.draw(7) == swarm.draw(7) != swarm.draw(8)
    assert all(scenario.random is None for scenario in DRAWN)


def test_sizes_stay_within_what_was_asked_for():
    assert {swarm.draw(seed, nodes=(4, 5)).nodes for seed in range(40)} == {4, 5}


def test_every_kind_that_can_be_drawn_is_drawn_and_no_pending_one():
    kinds = Counter(fault.kind for scenario in DRAWN for fault in scenario.faults)
    drawable = {kind for kind, entry in MENU.items() if entry.weight and not entry.pending and "node" in entry.scales}
    assert kinds.keys() == drawable | {"long-absence"}  # which belongs to long lives


def test_faults_lie_inside_of_the_run_and_leave_a_majority_of_disks():
    for scenario in DRAWN:
        lossy = set()
        for fault in scenario.faults:
            assert 0 <= fault.at_s <= fault.until_s <= scenario.duration_s
            lossy |= set(fault.nodes) if fault.kind in ("wipe", "stale-image", "lying-sync") else set()
        assert len(lossy) < scenario.nodes / 2


def test_a_host_has_one_fault_of_its_process_or_disk_at_a_time():
    kinds = ("kill", "stop", "pause", "power-cut", "wipe", "stale-image", "disk-full")
    for scenario in DRAWN:
        faults = [fault for fault in scenario.faults if fault.kind in kinds]
        for one in faults:
            for other in faults:
                if one is not other and set(one.nodes) & set(other.nodes):
                    assert one.at_s >= other.until_s or other.at_s >= one.until_s


def test_one_fault_less_changes_none_of_the_others():
    scenario = Scenario(name="x", random=RandomFaults(faults=6, menu={"loss": 1, "partition": 1}))
    fewer = dataclasses.replace(scenario, random=RandomFaults(faults=5, menu={"loss": 1, "partition": 1}))
    six, five = (swarm.expand(each, 3).faults for each in (scenario, fewer))
    assert set(map(repr, five)) < set(map(repr, six))


def test_faults_that_are_listed_already_stay():
    scenario = dataclasses.replace(DRAWN[0], random=RandomFaults(faults=2, menu={"clog": 1}))
    assert set(map(repr, DRAWN[0].faults)) < set(map(repr, swarm.expand(scenario, 1).faults))

from __future__ import annotations

from dataclasses import replace

from chaos import shrink, swarm
from chaos.scenario import Fault, NetSpec, Scenario


def loss(at_s: float, for_s: float = 3.0) -> Fault:
    return Fault(kind="loss", at_s=at_s, for_s=for_s, options={"share": 0.5})


CULPRIT = Fault(kind="kill", at_s=17.23, for_s=4.71, nodes=("n1", "n3"))
DRAWN = Scenario(
    name="x",
    nodes=6,
    duration_s=48.7,
    net=NetSpec(loss=0.1),
    faults=(loss(1), loss(4), CULPRIT, loss(20), loss(25), loss(30), loss(33)),
)


def test_what_does_not_matter_goes():
    small = shrink.shrink(DRAWN, lambda scenario: any(fault.kind == "kill" for fault in scenario.faults))
    assert [fault.kind for fault in small.faults] == ["kill"]
    assert (small.nodes, small.net, small.workload.rate, small.workload.clients) == (2, NetSpec(), 0.0, 1)
    assert small.faults[0].nodes == ("n1",)
    assert small.duration_s < 25


def test_a_large_mesh_is_halved_before_it_loses_one_after_the_other():
    sizes = []

    def fails(scenario: Scenario) -> bool:
        sizes.append(scenario.nodes)
        return scenario.nodes >= 6

    assert shrink.shrink(Scenario(name="x", scale="protocol", nodes=1_000), fails).nodes == 6
    assert len(sizes) < 60


def test_times_become_round_as_long_as_it_still_fails():
    small = shrink.shrink(DRAWN, lambda scenario: any(f.kind == "kill" and f.at_s > 15 for f in scenario.faults))
    assert small.faults[0].at_s in (20.0, 17.0)


def test_faults_that_matter_only_together_both_stay():
    def fails(scenario: Scenario) -> bool:
        starts = [fault.at_s for fault in scenario.faults if fault.kind == "loss"]
        return any(3.5 <= at_s <= 4.5 for at_s in starts) and any(29 <= at_s <= 31 for at_s in starts)

    assert [fault.kind for fault in shrink.shrink(DRAWN, fails).faults] == ["loss", "loss"]


def test_the_result_fails_and_the_number_of_runs_is_bounded():
    tries = []

    def fails(scenario: Scenario) -> bool:
        tries.append(scenario)
        return len(scenario.faults) >= 2

    drawn = replace(swarm.draw(3), faults=DRAWN.faults * 8)
    small = shrink.shrink(drawn, fails)
    assert len(small.faults) == 2
    assert len(tries) <= shrink.TRIES_MAX


def test_what_fails_for_no_reason_at_all_ends_small_and_without_faults():
    assert shrink.shrink(DRAWN, lambda scenario: True).faults == ()

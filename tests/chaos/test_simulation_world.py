"""Whole nodes under a seed: what the simulator itself promises."""

from __future__ import annotations

import time

import pytest
import trio

from chaos.observations import Committed, HostEnded, HostStarted, RunStarted
from chaos.scenario import Fault, Scenario, WorkloadSpec
from chaos.simulation import played
from chaos.simulation.played import Play, play
from node.node import Node

QUIET = WorkloadSpec(rate=0.0)


def scenario(*faults: Fault, **fields) -> Scenario:
    chosen = {"nodes": 3, "duration_s": 12.0, "settle_s": 60.0, **fields}
    return Scenario(name="test", faults=faults, **chosen)


def seen_of(scenario: Scenario, seed: int = 1):
    """The result of a run, and all that was seen of it."""
    seen = []
    run = Play(scenario, seed, until_s=None, tell=None)
    run._judge.see = seen.append
    run._judge.judge = lambda rest: None
    return run.run(), seen


def test_one_seed_is_one_run_and_another_seed_another():
    faults = [
        Fault(kind="kill", at_s=2, for_s=2, nodes=("n0",)),
        Fault(kind="power-cut", at_s=5, for_s=2, nodes=("n1",), options={"image": "subset"}),
        Fault(kind="partition", at_s=6, for_s=4, groups=(("n0",), ("n1", "n2"))),
    ]
    first, again, other = (play(scenario(*faults), seed) for seed in (1, 1, 2))
    assert first.trace_hash == again.trace_hash != other.trace_hash
    assert first.timeline == again.timeline
    assert first.logs == again.logs
    assert first.settled_ms is not None


def test_a_node_that_reads_the_real_clock_dies_of_it_and_the_run_says_where(monkeypatch):
    async def leaking(node: Node) -> None:
        time.time()

    monkeypatch.setattr(Node, "_keep_boot", leaking)
    result, seen = seen_of(scenario(workload=QUIET, duration_s=1.0, settle_s=5.0))
    ends = [each for each in seen if isinstance(each, HostEnded) and each.how == "failed"]
    assert ends
    assert "n0 used time.time" in ends[0].detail or "used time.time" in ends[0].detail
    assert "leaking" in ends[0].detail
    assert result.settled_ms is None


def test_a_paused_process_does_nothing_and_goes_on_afterwards():
    result, seen = seen_of(scenario(Fault(kind="pause", at_s=3, for_s=6, nodes=("n1",))))
    during = [each for each in seen if each.host == "n1" and 3_001 < each.at_ms < 8_999]
    assert not [each for each in during if isinstance(each, Committed | RunStarted)]
    assert [each for each in seen if each.host == "n1" and isinstance(each, Committed) and each.at_ms > 9_000]
    assert result.settled_ms is not None


@pytest.mark.parametrize("kind", ["kill", "power-cut", "stop"])
def test_a_host_that_goes_down_comes_back_with_what_it_had_committed(kind):
    options = {"image": "torn"} if kind == "power-cut" else {}
    result, seen = seen_of(scenario(Fault(kind=kind, at_s=4, for_s=2, nodes=("n2",), options=options)))
    starts = [each for each in seen if isinstance(each, HostStarted) and each.host == "n2"]
    ends = [each for each in seen if isinstance(each, HostEnded) and each.host == "n2"]
    assert [end.how for end in ends] == [kind]
    assert starts[1].life > starts[0].life
    # The drive may have forgotten what was not synced, so a power cut begins a new origin; a killed process does not.
    assert (starts[1].origin != starts[0].origin) == (kind == "power-cut")
    assert all(start.integrity == "ok" for start in starts)
    assert result.settled_ms is not None


def test_an_exception_in_one_node_ends_that_node_only(monkeypatch):
    async def failing(node: Node) -> None:
        if node.spec.node_id == "n1":
            await trio.sleep(1)
            raise RuntimeError("on purpose")
        await trio.sleep_forever()

    monkeypatch.setattr(Node, "_keep_boot", failing)
    _, seen = seen_of(scenario(workload=QUIET, duration_s=1.5, settle_s=5.0))
    ends = [each for each in seen if isinstance(each, HostEnded) and each.how == "failed"]
    assert {end.host for end in ends} == {"n1"}
    assert "on purpose" in ends[0].detail


def test_a_run_can_be_looked_at_up_to_a_time():
    whole, part = play(scenario()), play(scenario(), until_s=5.0)
    assert part.simulated_s < whole.simulated_s
    assert part.settled_ms is None
    assert [event for event in whole.timeline if (event.until_ms or event.at_ms) < 4_900] == [
        event for event in part.timeline if (event.until_ms or event.at_ms) < 4_900
    ]


def test_every_fault_of_the_menu_can_be_played_or_says_why_not():
    from chaos.fault_menu import MENU
    from chaos.simulation.faulting import PLAYERS

    playable = {kind for kind, entry in MENU.items() if "node" in entry.scales}
    missing = playable - PLAYERS.keys()
    assert all(MENU[kind].pending for kind in missing), missing
    assert PLAYERS.keys() <= MENU.keys()


def test_a_mesh_that_never_becomes_whole_is_a_violation(monkeypatch):
    monkeypatch.setattr(played, "START_MAX_S", 0.1)
    assert [violation.invariant for violation in play(scenario()).violations] == ["liveness"]

import dataclasses

import pytest

from chaos.fault_menu import MENU
from chaos.line_faults import LINE_KINDS
from chaos.protocol.engines import ProtocolWorld
from chaos.protocol.promises import TOPIC, ViewsJudge
from chaos.protocol.scenarios import PLAYERS, run_protocol
from chaos.scenario import Fault, NetSpec, Scenario, Value
from mesh.effects import MemberChanged, RumorReceived
from mesh.profiles import LOCAL
from mesh.verdicts import Verdicts

NAMES = tuple(f"n{index}" for index in range(8))


def fault(
    kind: str, at_s: float, for_s: float, *nodes: str, groups: tuple[tuple[str, ...], ...] = (), **options: Value
) -> Fault:
    defaults = {name: option.default for name, option in MENU[kind].options.items()}
    return Fault(kind=kind, at_s=at_s, for_s=for_s, nodes=nodes, groups=groups, options={**defaults, **options})


def scenario(*faults: Fault, **changes: object) -> Scenario:
    base = Scenario(name="test", scale="protocol", nodes=len(NAMES), duration_s=25.0, settle_s=30.0, faults=faults)
    return dataclasses.replace(base, **changes)


def test_every_fault_of_this_scale_is_played() -> None:
    of_this_scale = {kind for kind, entry in MENU.items() if "protocol" in entry.scales}
    assert of_this_scale <= {*LINE_KINDS, *PLAYERS}


@pytest.mark.parametrize(
    "faults",
    [
        [fault("partition", 2, 15, groups=(NAMES[:4], NAMES[4:]))],
        [fault("kill", 2, 10, "n1", "n2"), fault("stop", 3, 10, "n3"), fault("pause", 4, 12, "n4")],
        [fault("starve", 2, 15, "n5"), fault("flap", 2, 15, "n6"), fault("clog", 5, 5, "n7")],
        [fault("loss", 1, 15), fault("mutate", 1, 15), fault("forge-packets", 2, 15), fault("replay-packets", 2, 15)],
        [fault("one-way", 1, 15, "n0", groups=(NAMES[1:5],)), fault("duplicate", 1, 15), fault("reorder", 1, 15)],
    ],
    ids=lambda faults: "+".join(fault.kind for fault in faults),
)
def test_a_mended_mesh_agrees_again_and_its_run_repeats(faults: list[Fault]) -> None:
    result = run_protocol(scenario(*faults), 1)
    assert [str(violation) for violation in result.violations] == []
    assert result.settled_ms is not None
    assert result.trace_hash == run_protocol(scenario(*faults), 1).trace_hash
    assert result.simulated_s >= 25.0
    assert [event for event in result.timeline if event.lane == "faults"]


def test_what_was_met_is_counted() -> None:
    result = run_protocol(scenario(fault("partition", 2, 15, groups=(NAMES[:4], NAMES[4:]))), 1)
    assert result.coverage["dead-returned"] > 0


def test_loss_all_the_time_is_no_excuse_for_disagreeing_at_the_end() -> None:
    result = run_protocol(scenario(net=NetSpec(loss=0.2)), 1)
    assert result.verdict == "ok"


def test_a_node_that_calls_the_answering_dead_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    # It takes no answer for one, and leaves no time to refute.
    monkeypatch.setattr("mesh.profiles.Profile.dead_after_s", lambda _self, _n: 0.0001)
    monkeypatch.setattr("mesh.detector.Detector.on_ack", lambda *_: False)
    monkeypatch.setattr("mesh.detector.Detector.on_stream", lambda *_: False)
    result = run_protocol(scenario(settle_s=1.0, duration_s=5.0), 1)
    assert "the-answering-live" in {violation.invariant for violation in result.violations}


def test_a_mesh_that_never_calls_the_dead_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.redial.Redial._find_missing", lambda *_: [])
    result = run_protocol(scenario(fault("partition", 2, 20, groups=(NAMES[:4], NAMES[4:])), settle_s=10.0), 1)
    assert {violation.invariant for violation in result.violations} == {"members-are-the-living"}


def test_a_mesh_that_never_refutes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verdicts, "refute", lambda *_args, **_more: None)
    result = run_protocol(scenario(fault("pause", 2, 10, "n4"), settle_s=10.0), 1)
    assert result.verdict == "violated"


class JudgeOf:
    """A judge, and a small world to tell it about."""

    def __init__(self) -> None:
        self.world = ProtocolWorld(1, profile=LOCAL)
        self.world.start_whole(len(NAMES))
        self.judge = ViewsJudge(self.world, scenario(fault("loss", 1, 1)))

    def found(self) -> list[str]:
        return [violation.invariant for violation in self.judge.violations]


def test_a_rumor_that_comes_twice_or_not_at_all_is_caught() -> None:
    told = JudgeOf()
    engine = told.world.engines["n1"]
    told.judge.hear(engine, RumorReceived(TOPIC, b"x", "n0"))
    assert told.found() == []
    told.judge.hear(engine, RumorReceived(TOPIC, b"x", "n0"))
    assert told.found() == ["rumors-once"]
    told.judge.judge("", 1.0, b"x")
    assert told.found() == ["rumors-once", "rumors-reach-all"]


def test_a_view_that_goes_back_is_caught() -> None:
    told = JudgeOf()
    engine = told.world.engines["n1"]
    member = engine.gossip.members.get("n2")
    assert member is not None
    member.incarnation = 5
    told.judge.hear(engine, MemberChanged("n2", "SUSPECT", "ALIVE", "refuted"))
    member.incarnation = 4
    told.judge.hear(engine, MemberChanged("n2", "SUSPECT", "ALIVE", "refuted"))
    assert told.found() == ["views-rise"]
    told.judge.judge("", 1.0, None)
    assert told.found() == ["views-rise", "views-rise"]  # it never signed that incarnation


def test_a_death_at_rest_is_caught() -> None:
    told = JudgeOf()
    told.judge.hear(told.world.engines["n1"], MemberChanged("n2", "SUSPECT", "DEAD", "suspicion-expired"))
    assert told.found() == []
    told.judge.settled = True
    told.judge.hear(told.world.engines["n1"], MemberChanged("n2", "SUSPECT", "DEAD", "suspicion-expired"))
    assert told.found() == ["the-answering-live"]

"""What bare engines promise, judged while a world runs and again when it has come to rest.

The promises of `chaos.invariants` are about rows and clients, which are not here. These are about views: who is held
for alive, which news of a member wins, and whom a rumor reaches.
"""

from __future__ import annotations

from collections.abc import Iterator

from chaos.protocol.engines import Engine, ProtocolWorld
from chaos.runs import Violation
from chaos.scenario import Fault, Scenario
from mesh.effects import Effect, MemberChanged, RumorReceived
from mesh.relayed_probes import RELAYS_MAX
from mesh.rumors import RUMORS_MAX

TOPIC = 200
"""Of the rumors that a run spreads."""
VIOLATIONS_MAX = 100
"""More of them say nothing new."""
SILENT_KINDS = ("kill", "stop", "pause", "starve")
"""Faults of nodes: who is hit may rightly be held DEAD."""


class ViewsJudge:
    """Hears the effects of all engines; `violations` has what was broken so far."""

    def __init__(self, world: ProtocolWorld, scenario: Scenario) -> None:
        self._world = world
        self._names = scenario.node_names()
        self._answering = None if _lines_fail(scenario) else _never_silent(scenario)
        self._began_s = world.now
        self._newest: dict[tuple[str, int, str], tuple[int, int]] = {}
        self._heard: dict[bytes, dict[tuple[str, int], None]] = {}
        self.violations: list[Violation] = []
        self.settled = False
        """Set when the mended mesh has come to rest: from here on nobody doubts anybody."""

    def hear(self, engine: Engine, effect: Effect) -> None:
        """Part of `ProtocolWorld.on_effect`."""
        if isinstance(effect, MemberChanged):
            self._changed(engine, effect)
        elif isinstance(effect, RumorReceived) and effect.topic == TOPIC:
            self._rumor(engine, effect)

    def _violate(self, promise: str, detail: str) -> None:
        if len(self.violations) < VIOLATIONS_MAX:
            at_ms = round((self._world.now - self._began_s) * 1000, 3)
            self.violations.append(Violation(promise, at_ms, detail))

    def _changed(self, engine: Engine, change: MemberChanged) -> None:
        member = engine.gossip.members.get(change.node_id)
        if member is not None:
            key = (engine.name, engine.boot, change.node_id)
            news = (member.life, member.incarnation)
            if news < self._newest.get(key, news):
                self._violate("views-rise", f"{engine.name} went back from {self._newest[key]} to {news} of {key[2]}")
            self._newest[key] = news
        if change.after != "DEAD":
            return
        if self._answering is not None and change.node_id in self._answering:
            detail = f"{engine.name} holds {change.node_id} DEAD ({change.reason}), which always answered"
            self._violate("the-answering-live", detail)
        elif self.settled:
            self._violate("the-answering-live", f"{engine.name} holds {change.node_id} DEAD in a mesh at rest")

    def _rumor(self, engine: Engine, rumor: RumorReceived) -> None:
        heard = self._heard.setdefault(rumor.payload, {})
        if (engine.name, engine.boot) in heard:
            self._violate("rumors-once", f"{engine.name} was given {rumor.payload.decode()} twice")
        heard[engine.name, engine.boot] = None

    def look(self) -> None:
        """Check the levels of all engines now."""
        for engine in self._world.running():
            levels = engine.gossip.statistics()
            if levels.rumors_queued > 2 * RUMORS_MAX or levels.relayed_probes > RELAYS_MAX:
                self._violate("levels-bounded", f"{engine.name}: {levels}")
            if len(engine.gossip.members.in_tag_order()) > self._world.profile.members_max:
                self._violate("levels-bounded", f"{engine.name} knows more members than its table may hold")

    def unsettled(self) -> str:
        """Why the views do not agree with the truth yet; empty when they do."""
        for name in self._names:
            engine = self._world.engines[name]
            if not engine.runs:
                return f"{name} does not run"
            members = engine.gossip.members
            if members.size() != len(self._names):
                return f"{name} holds {members.size()} of {len(self._names)} for members"
            doubted = next(iter(members.suspected()), None)
            if doubted is not None:
                return f"{name} suspects {doubted.node_id}"
        return ""

    def judge(self, unsettled: str, settle_s: float, to_all: bytes | None) -> None:
        """Look at the world at rest. `to_all` is a rumor that went out in a mesh without cuts, long enough ago."""
        if unsettled:
            self._violate("members-are-the-living", f"not within {settle_s:g} s: {unsettled}")
        for text in self._wrong_views():
            self._violate("views-rise", text)
        if to_all is not None and not unsettled:
            missed = len(self._names) - 1 - len(self._heard.get(to_all, {}))
            if missed:
                self._violate("rumors-reach-all", f"{to_all.decode()} did not reach {missed} of {len(self._names)}")

    def _wrong_views(self) -> Iterator[str]:
        """Views that know of a later life or incarnation than their subject ever signed, or of an earlier one."""
        for name in self._names:
            own = self._world.engines[name].gossip.members.own
            for viewer in self._names:
                member = self._world.engines[viewer].gossip.members.get(name)
                if member is not None and (member.life, member.incarnation) > (own.life, own.incarnation):
                    yield f"{viewer} knows {name} in an incarnation that it never signed"


def _lines_fail(scenario: Scenario) -> bool:
    """Whether packets of the members themselves may get lost: then silence is no proof of anything."""
    return scenario.net.loss > 0 or any(not _is_silent(fault) for fault in scenario.faults)


def _is_silent(fault: Fault) -> bool:
    return fault.kind in SILENT_KINDS


def _never_silent(scenario: Scenario) -> frozenset[str]:
    hit = {name for fault in scenario.faults for name in fault.nodes}
    return frozenset(name for name in scenario.node_names() if name not in hit)

"""Plays a scenario of the `protocol` scale: a whole mesh of bare engines, trouble, mending, rest, judgement.

The same scenario files as whole nodes, without what needs a disk or work: rumors take the place of clients.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from chaos.coverage import Coverage
from chaos.line_faults import LINE_KINDS, bad_times, overlay
from chaos.observations import FaultBegan, FaultEnded, Healed, HostEnded, MemberSeen, Seen, Settled
from chaos.protocol.engines import SEEDS, Engine, ProtocolWorld, address_of
from chaos.protocol.promises import TOPIC, ViewsJudge
from chaos.runs import RunResult
from chaos.scenario import Fault, Scenario
from chaos.simulation.attackers import RECORDED_MAX, forged
from chaos.simulation.datagrams import host_of
from chaos.simulation.links import Conditions
from chaos.simulation.seeds import stream
from chaos.timeline import TimelineKeeper
from mesh.effects import Effect, MemberChanged
from mesh.ids import Address
from mesh.profiles import PROFILES

WARM_UP_S = 5.0
"""A mesh that has just started still calls its members."""
LOOK_EVERY_S = 0.5
RUMORS = 3
"""Spread in times of trouble, evenly, unless the scenario asks for no work at all."""
REST_S = 10.0
"""How long a settled mesh is watched for false verdicts, and a last rumor may travel."""
MEMBERS_SHOWN_MAX = 20_000
"""Changes of views that a timeline holds: a cut through a thousand members makes a million of them."""


class ProtocolPlay:
    """One run. `run_protocol` is what callers use."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        net = scenario.net
        self._scenario = scenario
        self._seed = seed
        self._world = ProtocolWorld(
            seed,
            profile=PROFILES[scenario.profile],
            conditions=Conditions(
                loss=net.loss,
                duplicate=net.duplicate,
                reorder=net.reorder,
                delay_min_s=net.delay_min_ms / 1000,
                delay_mean_s=net.delay_mean_ms / 1000,
            ),
            share_crypto=True,
        )
        self._names = scenario.node_names()
        self._coverage = Coverage()
        self._timeline = TimelineKeeper()
        self._members_shown = 0
        self._views_until_ms: float | None = None
        self._began_s = 0.0
        self._settled_ms: float | None = None
        self._recorded: deque[tuple[bytes, Address, Address]] = deque(maxlen=RECORDED_MAX)

    def run(self) -> RunResult:
        """Play it from beginning to end."""
        began = time.process_time()
        world, scenario = self._world, self._scenario
        world.start_whole(scenario.nodes)
        self._set_clocks()
        world.run(WARM_UP_S)
        self._began_s = world.now
        judge = ViewsJudge(world, scenario)
        world.on_effect += [judge.hear, self._tell_change]
        self._plan()
        self._run_looking(scenario.duration_s, judge)
        # A fault may end a little later than the scenario: a pause that began in its last second.
        self._run_looking(max([0.0, *(fault.until_s - scenario.duration_s for fault in scenario.faults)]), judge)
        healed_ms = self._mend()
        unsettled = self._come_to_rest(judge)
        judge.judge(unsettled, scenario.settle_s, self._last_rumor(judge, unsettled))
        return RunResult(
            scenario=scenario,
            violations=judge.violations,
            coverage=self._counts(),
            trace_hash=world.trace_hash(),
            simulated_s=round(world.now, 3),
            cpu_s=round(time.process_time() - began, 3),
            healed_ms=healed_ms,
            settled_ms=self._settled_ms,
            timeline=self._timeline.events(),
            views_until_ms=self._views_until_ms,
            facts={
                "datagrams": sum(engine.datagrams_sent for engine in world.engines.values()),
                "bytes": sum(engine.bytes_sent for engine in world.engines.values()),
            },
        )

    # --- phases -----------------------------------------------------------------------------------------------------

    def _set_clocks(self) -> None:
        drift_ppm = self._scenario.clock.drift_ppm
        if drift_ppm:
            draws = stream(self._seed, "drifts")
            for name in self._names:
                self._world.set_drift(name, draws.uniform(-drift_ppm, drift_ppm))

    def _plan(self) -> None:
        for fault in self._scenario.faults:
            self._at(fault.at_s, partial(self._tell_fault, fault, began=True))
            self._at(fault.until_s, partial(self._tell_fault, fault, began=False))
            if fault.kind in LINE_KINDS:
                self._plan_lines(fault)
            else:
                self._at(fault.at_s, partial(PLAYERS[fault.kind], self, fault))
        if self._scenario.workload.rate > 0:
            draws = stream(self._seed, "rumors")
            for number in range(RUMORS):
                at_s = self._scenario.duration_s * (number + 0.5) / RUMORS
                self._at(at_s, partial(self._publish, draws.choice(self._names), _rumor(number)))

    def _plan_lines(self, fault: Fault) -> None:
        laid = overlay(fault, self._names)
        for begins_s, ends_s in bad_times(fault):
            self._at(begins_s, partial(self._world.links.lay, laid))
            self._at(ends_s, partial(self._world.links.lift, laid))

    def _run_looking(self, seconds: float, judge: ViewsJudge) -> None:
        end = self._world.now + seconds
        while self._world.now < end:
            self._world.run(min(LOOK_EVERY_S, end - self._world.now))
            judge.look()

    def _mend(self) -> float:
        self._world.links.heal()
        for name in self._names:
            self.start(name)
        healed_ms = self._now_ms()
        self._tell(Healed(at_ms=healed_ms))
        return healed_ms

    def _come_to_rest(self, judge: ViewsJudge) -> str:
        limit_s = self._world.now + self._scenario.settle_s
        unsettled = judge.unsettled()
        while unsettled and self._world.now < limit_s:
            self._run_looking(LOOK_EVERY_S, judge)
            unsettled = judge.unsettled()
        if not unsettled:
            self._settled_ms = self._now_ms()
            self._tell(Settled(at_ms=self._settled_ms))
        return unsettled

    def _last_rumor(self, judge: ViewsJudge, unsettled: str) -> bytes | None:
        """Spread one in the mended mesh, and watch it; None when it did not settle."""
        if unsettled:
            return None
        # Where packets get lost all the time, now and then even a stream does, and doubts are no fault.
        judge.settled = self._scenario.net.loss == 0
        self._publish(self._names[0], _rumor(RUMORS))
        self._run_looking(REST_S, judge)
        return _rumor(RUMORS)

    def _publish(self, name: str, payload: bytes) -> None:
        if self._world.engines[name].runs:
            self._world.publish(name, TOPIC, payload)

    # --- what is seen -----------------------------------------------------------------------------------------------

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        self._world.heap.at(self._began_s + at_s, action)

    def _now_ms(self) -> float:
        return round((self._world.now - self._began_s) * 1000, 3)

    def _tell(self, seen: Seen) -> None:
        self._coverage.see(seen)
        if isinstance(seen, MemberSeen):
            self._members_shown += 1
            if self._members_shown > MEMBERS_SHOWN_MAX:
                self._views_until_ms = self._views_until_ms or seen.at_ms
                return
        self._timeline.see(seen)

    def _tell_change(self, engine: Engine, effect: Effect) -> None:
        if isinstance(effect, MemberChanged):
            self._tell(MemberSeen(at_ms=self._now_ms(), host=engine.name, change=effect))

    def _tell_fault(self, fault: Fault, *, began: bool) -> None:
        kind = FaultBegan if began else FaultEnded
        self._tell(kind(at_ms=self._now_ms(), fault=fault))

    def _counts(self) -> Mapping[str, int]:
        # How many others a host has is not told here: a thousand of them would be told to a thousand.
        return {point: count for point, count in self._coverage.counts.items() if point != "most-others-failing"}

    # --- faults of processes ----------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a node again that does not run, with the members that it remembers."""
        last = self._world.engines[name]
        if not last.up:
            known = [member.record for member in last.gossip.members.all()]
            self._world.restart(name, seeds=self._names[:SEEDS], known=known)

    def _later(self, fault: Fault, action: Callable[[str], None]) -> None:
        for name in fault.nodes:
            self._world.heap.after(fault.for_s, partial(action, name))

    def kill(self, fault: Fault) -> None:
        """Kill processes; they start again when the fault ends."""
        for name in fault.nodes:
            if self._world.engines[name].up:
                self._world.kill(name)
                self._tell(HostEnded(at_ms=self._now_ms(), host=name, how="kill"))
        self._later(fault, self.start)

    def stop(self, fault: Fault) -> None:
        """Stop nodes in order; they start again when the fault ends."""
        for name in fault.nodes:
            if self._world.engines[name].runs:
                self._world.leave(name)
        self._later(fault, self._end_and_start)

    def _end_and_start(self, name: str) -> None:
        if self._world.engines[name].up and self._world.engines[name].gossip.members.own.active:
            return  # it stood still when it was to be stopped
        if self._world.engines[name].up:
            self._world.kill(name)
        self.start(name)

    def pause(self, fault: Fault) -> None:
        """Have processes stand still."""
        for name in fault.nodes:
            self._world.pause(name, fault.for_s)

    def starve(self, fault: Fault) -> None:
        """Have processes run only now and then."""
        share, slice_s = _number(fault, "share"), _number(fault, "slice_s")
        for name in fault.nodes:
            self._world.starve(name, share=share, slice_s=slice_s, for_s=fault.for_s)

    # --- attackers --------------------------------------------------------------------------------------------------

    def attack(self, fault: Fault) -> None:
        """Somebody on the lines records packets, and sends them again or makes up his own."""
        self._world.on_send.append(self._record)
        self._attack_once(fault, self._began_s + fault.until_s)

    def _record(self, sender: str, receiver: str, data: bytes) -> None:
        self._recorded.append((data, address_of(sender), address_of(receiver)))

    def _attack_once(self, fault: Fault, until_s: float) -> None:
        if self._world.now >= until_s:
            self._world.on_send.remove(self._record)
            return
        draws = stream(self._seed, f"attack {self._world.now!r}")
        sender, receiver = draws.choice(self._names), draws.choice(self._names)
        if fault.kind == "forge-packets":
            self._world.transmit(sender, receiver, forged(draws, self._recorded))
        elif self._recorded:
            data, source, target = draws.choice(self._recorded)
            self._world.transmit(host_of(source), host_of(target) if draws.random() < 0.5 else receiver, data)
        self._world.heap.after(draws.expovariate(_number(fault, "rate")), partial(self._attack_once, fault, until_s))


PLAYERS: Mapping[str, Callable[[ProtocolPlay, Fault], None]] = {
    "kill": ProtocolPlay.kill,
    "stop": ProtocolPlay.stop,
    "pause": ProtocolPlay.pause,
    "starve": ProtocolPlay.starve,
    "replay-packets": ProtocolPlay.attack,
    "forge-packets": ProtocolPlay.attack,
}
"""What the faults that are no overlay over lines do."""


def _rumor(number: int) -> bytes:
    return f"rumor {number}".encode()


def _number(fault: Fault, option: str) -> float:
    value = fault.options[option]
    assert isinstance(value, int | float), (option, value)
    return float(value)


def run_protocol(scenario: Scenario, seed: int) -> RunResult:
    """Play a scenario whose faults are all explicit and of the `protocol` scale."""
    assert scenario.random is None, "swarm.expand draws random faults before a run"
    with _garbage_kept():
        return ProtocolPlay(scenario, seed).run()


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """A thousand engines are millions of objects and hardly any garbage: looking for it would take a fifth of a run."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

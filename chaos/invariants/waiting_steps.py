"""Steps that wait on a partition: they run in one place at a time, and have one taker for each turn.

Judged are steps of one roster: where two nodes that knew different members were given the same task at once, nothing
was promised. Nor is it where a member of the mesh was there twice: each of the two would answer for the one roster
place. A run whose node stands still is not judged until the node goes on, since nobody can stop it; the outside
refuses what it writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chaos.invariants.mirror import Mirror
from chaos.invariants.one_writer import takes_over
from chaos.invariants.oracle import told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, FaultBegan, FaultEnded, HostEnded, RunEnded, RunStarted, Seen
from mesh.rows import Row

STANDS_STILL = frozenset({"pause", "starve"})
DOUBLES = frozenset({"clone"})
STOPS_MS = 50.0
"""How long a node that is awake may take to stop a run."""


class Rosters:
    """The rosters that steps were ever seen with."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, None]] = {}

    def learn(self, step: Row) -> None:
        """Note the roster of this version."""
        if step.table == "steps" and step.values.get("roster"):
            self._known.setdefault(step.key, {})[str(step.values["roster"])] = None

    def waits(self, step_id: str) -> bool:
        """Whether the step has one roster."""
        return len(self._known.get(step_id, {})) == 1


@dataclass(frozen=True, slots=True)
class _Run:
    host: str
    fence: str
    began_ms: float


class WaitingStepsRunOnceAtATime(Promise):
    """No two nodes that are awake run one waiting step at the same time."""

    name = "waiting-steps-run-once-at-a-time"
    hears = (Committed, RunStarted, RunEnded, FaultBegan, FaultEnded, HostEnded)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._rosters = Rosters()
        self._runs: dict[str, list[_Run]] = {}
        self._still: dict[str, int] = {}
        """Faults that hold a host right now."""
        self._asleep_ms: dict[str, float] = {}
        self._awake_ms: dict[str, float] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Note who runs what, and judge each run as it ends."""
        match seen:
            case Committed():
                for change in seen.changes:
                    self._rosters.learn(change.after)
            case RunStarted() if self._rosters.waits(seen.job.step_id):
                run = _Run(seen.host, seen.job.fence, seen.at_ms)
                self._runs.setdefault(seen.job.step_id, []).append(run)
            case RunEnded():
                yield from self._ended(seen)
            case FaultBegan() | FaultEnded():
                self._fault(seen)
            case _:
                pass

    def _fault(self, seen: FaultBegan | FaultEnded) -> None:
        began = isinstance(seen, FaultBegan)
        for name in seen.fault.nodes if seen.fault.kind in STANDS_STILL else ():
            self._still[name] = self._still.get(name, 0) + (1 if began else -1)
            if began and self._still[name] == 1:
                self._asleep_ms[name] = seen.at_ms
            elif not self._still[name]:
                self._awake_ms[name] = seen.at_ms

    def _ended(self, seen: RunEnded) -> Iterator[str]:
        runs = self._runs.get(seen.job.step_id, [])
        for run in [run for run in runs if run.host == seen.host and run.fence == seen.job.fence]:
            runs.remove(run)
            for other in runs:
                together_ms = self._until(run, other, seen.at_ms) - self._since(run, other)
                if together_ms > STOPS_MS and self._is_judged(seen.job.step_id):
                    yield (
                        f"{seen.job.step_id} ran on {run.host} since {run.began_ms:.0f} ms ({run.fence}) and on "
                        f"{other.host} since {other.began_ms:.0f} ms ({other.fence}): {together_ms:.0f} ms together"
                    )

    def _since(self, *runs: _Run) -> float:
        return max(max(run.began_ms, self._awake_ms.get(run.host, run.began_ms)) for run in runs)

    def _until(self, run: _Run, other: _Run, now_ms: float) -> float:
        still = [self._asleep_ms[each.host] for each in (run, other) if self._still.get(each.host)]
        return min([now_ms, *still])

    def _is_judged(self, step_id: str) -> bool:
        return self._rosters.waits(step_id) and not self.mirror.has_met(DOUBLES)


class WaitingStepsHaveOneTaker(Promise):
    """No two nodes take one waiting step at the same lease epoch."""

    name = "waiting-steps-have-one-taker"
    hears = (Committed,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._rosters = Rosters()
        self._takers: dict[tuple[str, int, int], tuple[str, str]] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Hold each take-over against those at the same turn."""
        assert isinstance(seen, Committed)
        for change in seen.changes:
            step = change.after
            self._rosters.learn(step)
            if not change.local or step.table != "steps" or not self._rosters.waits(step.key):
                continue
            if not takes_over(change) or step.values.get("status") == "RUNNING":
                continue  # claimed in the same commit: the epoch is a later one
            turn = step.key, step.generation, step.lease_epoch
            node, version = self._takers.setdefault(turn, (step.node, told(step)))
            if node != step.node and not self._may_have_forgotten():
                yield f"{step.node} took {told(step)}, and {node} had taken it at that epoch: {version}"

    def _may_have_forgotten(self) -> bool:
        """Whether a vote may have gone with a disk, or a member of the mesh was there twice."""
        return any(host.was_doubled or host.has_lost for host in self.mirror.hosts.values())

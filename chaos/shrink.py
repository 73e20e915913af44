"""Makes a failing scenario small: fewer faults, nodes and clients, a shorter run, round numbers.

Delta debugging (Zeller's ddmin) over the faults, then one simplification after the other, as long as any of them still
fails. Deterministic, and bounded by TRIES_MAX runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

from chaos.scenario import NODES_MIN, ClockSpec, DiskSpec, Fault, NetSpec, Scenario, WorkloadSpec

TRIES_MAX = 150
_ROUND_TO_S = (10.0, 5.0, 1.0, 0.1)


class _EnoughError(Exception):
    """The tries are used up; the smallest scenario found so far is the answer."""


class _Search:
    """The smallest scenario so far that fails, and how many runs it took."""

    def __init__(self, best: Scenario, fails: Callable[[Scenario], bool], progress: Callable[[str], None]) -> None:
        self.best = best
        self.tries = 0
        self._fails = fails
        self._progress = progress

    def try_out(self, candidate: Scenario) -> bool:
        """Whether the candidate fails, too; then it is the best."""
        if candidate == self.best:
            return False
        if self.tries >= TRIES_MAX:
            raise _EnoughError
        self.tries += 1
        failed = self._fails(candidate)
        if failed:
            self.best = candidate
        self._progress(
            f"try {self.tries}: {len(candidate.faults)} faults, {candidate.nodes} nodes, {candidate.duration_s:g} s: "
            f"{'still fails' if failed else 'holds'}"
        )
        return failed


def shrink(
    scenario: Scenario, fails: Callable[[Scenario], bool], *, progress: Callable[[str], None] = lambda line: None
) -> Scenario:
    """The smallest scenario found that still fails. `fails` plays one; the scenario itself is known to fail."""
    search = _Search(scenario, fails, progress)
    try:
        changed = True
        while changed:
            before = search.best
            _fewer_faults(search)
            for simplify in (_shorter, _fewer_nodes, _less_work, _plainer, _rounder):
                for candidate in simplify(search.best):
                    # The next candidates were made from a scenario that is not the best any more: begin again.
                    if search.try_out(candidate):
                        break
            changed = search.best != before
    except _EnoughError:
        progress(f"stopped after {TRIES_MAX} tries")
    return search.best


def _fewer_faults(search: _Search) -> None:
    """ddmin: leave out halves, then quarters, down to single faults."""
    parts = 2
    while len(search.best.faults) > 0 and parts <= 2 * len(search.best.faults):
        faults = search.best.faults
        size = max(1, len(faults) // parts)
        for start in range(0, len(faults), size):
            kept = faults[:start] + faults[start + size :]
            if search.try_out(replace(search.best, faults=kept)):
                parts = max(2, parts - 1)
                break
        else:
            if size == 1:
                return
            parts *= 2


def _shorter(scenario: Scenario) -> Iterator[Scenario]:
    """End soon after the last fault; then shorten faults."""
    last_s = max((fault.until_s for fault in scenario.faults), default=0.0)
    for duration_s in (last_s + 0.5, last_s + 5.0, (last_s + scenario.duration_s) / 2, scenario.duration_s / 2):
        if last_s < duration_s < scenario.duration_s:
            yield replace(scenario, duration_s=round(duration_s + 0.1, 1))
    for number, fault in enumerate(scenario.faults):
        if fault.for_s > 1.0:
            yield _with_fault(scenario, number, replace(fault, for_s=round(fault.for_s / 2, 1)))


def _fewer_nodes(scenario: Scenario) -> Iterator[Scenario]:
    """Without the last half of the hosts, or the last one; what names them loses them first."""
    names = scenario.node_names()
    for count in sorted({max(NODES_MIN, scenario.nodes // 2), scenario.nodes - 1}):
        if NODES_MIN <= count < scenario.nodes:
            faults = [_among(fault, names[:count]) for fault in scenario.faults]
            yield replace(scenario, nodes=count, faults=tuple(fault for fault in faults if fault is not None))


def _among(fault: Fault, hosts: Sequence[str]) -> Fault | None:
    """The fault with these hosts only; None when too little of it is left."""
    kept = frozenset(hosts)
    nodes = tuple(name for name in fault.nodes if name in kept)
    groups = tuple(group for side in fault.groups if (group := tuple(name for name in side if name in kept)))
    if (fault.nodes and not nodes) or len(groups) != len(fault.groups):
        return None
    return replace(fault, nodes=nodes, groups=groups)


def _less_work(scenario: Scenario) -> Iterator[Scenario]:
    """Fewer kinds of requests, fewer clients, fewer requests."""
    work, plain = scenario.workload, WorkloadSpec()
    for field in fields(WorkloadSpec):
        value = getattr(work, field.name)
        if field.name.endswith("share") and value:
            yield replace(scenario, workload=replace(work, **{field.name: 0.0}))  # type: ignore[arg-type]
    if work.replicas:
        yield replace(scenario, workload=replace(work, replicas=0))
    if work.clients > 1:
        yield replace(scenario, workload=replace(work, clients=1))
    if work.rate > 0.5:
        yield replace(scenario, workload=replace(work, rate=round(work.rate / 2, 2)))
    if work.rate:
        yield replace(scenario, workload=replace(work, rate=0.0))
    if work.run_s != plain.run_s:
        yield replace(scenario, workload=replace(work, run_s=plain.run_s))


def _plainer(scenario: Scenario) -> Iterator[Scenario]:
    """Network, clocks, disks and profile as they are by default."""
    yield replace(scenario, net=NetSpec())
    yield replace(scenario, clock=ClockSpec())
    yield replace(scenario, disk=DiskSpec())
    yield replace(scenario, settings=Scenario(name="").settings)
    yield replace(scenario, profile="local")


def _rounder(scenario: Scenario) -> Iterator[Scenario]:
    """Times that a person would have written."""
    for number, fault in enumerate(scenario.faults):
        for step_s in _ROUND_TO_S:
            at_s, for_s = (_rounded(value, step_s) for value in (fault.at_s, fault.for_s))
            whole = replace(fault, at_s=at_s, for_s=for_s)
            if whole.until_s <= scenario.duration_s and (for_s or not fault.for_s):
                yield _with_fault(scenario, number, whole)


def _rounded(value: float, step: float) -> float:
    return round(round(value / step) * step, 2)


def _with_fault(scenario: Scenario, number: int, fault: Fault) -> Scenario:
    faults: Sequence[Fault] = [fault if index == number else other for index, other in enumerate(scenario.faults)]
    return replace(scenario, faults=tuple(faults))

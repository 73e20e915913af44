"""Queueing: nothing of a held scope starts, and every step begins within the time that its submit gave it.

Clocks of hosts differ, so a time is judged by two measures at once: the stamp of the node that acts, and how long the
step has been known in the world's time. Only who is wrong by both has broken a promise.
"""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import HostMirror, Mirror
from chaos.invariants.oracle import CANCELLED, is_claim, told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, Logged, Seen
from mesh.rows import Row
from node.storage.transaction import Change

SLOW_MS = 2_500.0
"""From when a node decides until its commit is seen, at the most; each on its way, too."""
DRIFT = 0.03
"""How much faster or slower than the world a clock may run."""
UPSETS_CLOCKS = frozenset({"pause", "starve", "clock-jump", "no-clock", "slow-disk", "clone", "stale-image"})
"""A host that met one of these may have decided long before its commit, or by another clock than it began with."""


_COPIES = "away for too long to catch up by news"


class NothingHeldStarts(Promise):
    """A node that has stored a hold of the mesh, of itself or of an agent claims nothing of that scope.

    One that the mesh did not count, or that copied everything anew, may have dropped a hold that ended long ago.
    """

    name = "nothing-held-starts"
    hears = (Committed, Logged)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._copied: dict[str, None] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Hold each claim against the holds that were stored before it, also in the same commit."""
        if isinstance(seen, Logged):
            if _COPIES in seen.text:
                self._copied[seen.host] = None
            return
        assert isinstance(seen, Committed)
        host = self.mirror.host(seen.host)
        if seen.host in self._copied or len(self.mirror.of_node(host.node_id)) > 1:
            return
        changed: dict[str, Row] = {}
        for change in seen.changes:
            if change.after.table == "holds":
                changed[change.after.key] = change.after
            elif is_claim(change):
                step = change.after
                for scope in ("mesh", f"node {step.node}", f"drain {step.node}", f"agent {step.text('agent')}"):
                    if _stands(host, changed, scope):
                        yield f"{seen.host} claimed {told(step)}, and knew of the hold {scope!r}"


def _stands(host: HostMirror, changed: dict[str, Row], scope: str) -> bool:
    row = changed.get(scope) or host.rows.get(("holds", "_mesh", scope))
    return row is not None and not row.deleted


class StepsBeginInTheirTime(Promise):
    """No step is claimed before its delay is over, nor for the first time after its expiry, nor expires before that."""

    name = "steps-begin-in-their-time"
    hears = (Committed,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._known: dict[tuple[str, str, int], float] = {}
        """By host, step and its first stamp: since when the host has it; under no host: since when anybody has."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Judge claims and expiries by the times of their steps."""
        assert isinstance(seen, Committed)
        host = self.mirror.host(seen.host)
        for change in seen.changes:
            step = change.after
            if step.table != "steps" or not (step.integer("delay_ms") or step.integer("expires_ms")):
                continue
            for name in (seen.host, ""):
                self._known.setdefault((name, step.key, step.integer("created_hlc")), seen.at_ms)
            if change.local and UPSETS_CLOCKS.isdisjoint(host.met):
                here_ms = seen.at_ms - max(self._since(seen.host, step), host.began_ms)
                yield from self._judge(change, here_ms, seen.at_ms - self._since("", step))

    def _since(self, name: str, step: Row) -> float:
        return self._known[name, step.key, step.integer("created_hlc")]

    def _judge(self, change: Change, here_ms: float, anywhere_ms: float) -> Iterator[str]:
        step = change.after
        aged_ms = (step.hlc - step.integer("created_hlc")) >> 16
        delay_ms, expires_ms = step.integer("delay_ms"), step.integer("expires_ms")
        is_first = change.before is None or not change.before.integer("claim_life")
        if is_claim(change):
            if aged_ms < delay_ms and anywhere_ms < delay_ms * (1 - DRIFT) - SLOW_MS:
                yield f"{step.node} claimed {told(step)} after {aged_ms} ms, before its {delay_ms} ms of delay"
            too_late_ms = expires_ms * (1 + DRIFT) + SLOW_MS
            if expires_ms and is_first and min(aged_ms, here_ms) > too_late_ms:
                yield f"{step.node} first claimed {told(step)} after {aged_ms} ms: it expired at {expires_ms} ms"
        elif step.rank == CANCELLED and step.text("last_error").startswith("expired"):
            if not expires_ms or not is_first:
                yield f"{step.node} let {told(step)} expire, which had begun or never expires"
            elif aged_ms < expires_ms and anywhere_ms < expires_ms * (1 - DRIFT) - SLOW_MS:
                yield f"{step.node} let {told(step)} expire after {aged_ms} ms, before its {expires_ms} ms"

"""The gate: after a start, a node touches nothing that it owned before until it has heard what happened meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import is_open, owner_of, told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, HostEnded, Seen
from mesh.rows import Row

SLACK = 0.8
"""Clocks of hosts may run a fifth too fast."""
START_MS = 700.0
"""The gate counts from a little before the first sign of a process."""


class GateHolds(Promise):
    """A started node writes no version of an open step that it owned, until a pull ended or nobody answered for long.

    Long is one dead time. It may always obey a cancel.
    """

    name = "gate-holds"
    hears = (Committed, HostEnded)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._owned: dict[str, dict[str, Row]] = {}
        """By host, the open steps that it owns."""
        self._left: dict[str, dict[str, Row]] = {}
        """By host, those that its former process left behind."""
        self._quiet_ms = SLACK * mirror.dead_time_s * 1000 - START_MS

    def see(self, seen: Seen) -> Iterator[str]:
        """Note what is owned, and who goes on with it too early."""
        if isinstance(seen, HostEnded):
            owned = self._owned.pop(seen.host, {})
            self._left[seen.host] = {} if seen.durable_lost else self._left.get(seen.host, {}) | owned
            return
        assert isinstance(seen, Committed)
        host = self.mirror.host(seen.host)
        began_ms = host.began_ms if host.is_up else seen.at_ms
        is_early = seen.pulls == 0 and seen.at_ms - began_ms < self._quiet_ms
        left, owned = self._left.setdefault(seen.host, {}), self._owned.setdefault(seen.host, {})
        for change in seen.changes:
            step = change.after
            if step.table != "steps":
                continue
            was_left = left.pop(step.key, None)
            if change.local and is_early and was_left is not None and step.text("status") != "CANCELLED":
                yield (
                    f"{seen.host} wrote {told(step)} {seen.at_ms - began_ms:.0f} ms after its start, before it had "
                    f"heard from anybody; its former process left {told(was_left)}"
                )
            if is_open(step) and owner_of(step) == host.node_id:
                owned[step.key] = step
            else:
                owned.pop(step.key, None)

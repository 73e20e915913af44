"""Rest: a mesh that has nothing to do writes nothing, and no write of any time is without a change."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, MemberSeen, RunStarted, Sampled, Seen, Settled
from mesh.rows import Row

_RETENTION = ("attemptRetentionMs", "diskBudgetBytes")
"""Settings of a scenario by which nodes delete while it lasts, and a little longer."""


def _is_retention(mirror: Mirror, seen: Committed) -> bool:
    """Whether this only deletes, where the scenario asks for that: what is due then need not be so before the rest."""
    rows = [change.after for change in seen.changes]
    asked = any(mirror.scenario.settings.get(name) for name in _RETENTION)
    return asked and bool(rows) and all(row.deleted for row in rows)


class IdleWhenSettled(Promise):
    """Once all work has ended and all replicas agree, nothing is committed and nothing is run.

    Retention goes on, where a scenario has a short one.
    """

    name = "idle-when-settled"
    hears = (Committed, RunStarted)

    def see(self, seen: Seen) -> Iterator[str]:
        """Wait for what should not come any more."""
        if self.mirror.settled_ms is None:
            return
        if isinstance(seen, Committed):
            if _is_retention(self.mirror, seen):
                return
            rows = ", ".join(told(change.after) for change in seen.changes[:3])
            yield f"{seen.host} committed {rows or 'a vector'} at rest"
        elif isinstance(seen, RunStarted):
            yield f"{seen.host} ran {seen.job.step_id} at rest"


LAST_WRITES_MS = 8_000.0
"""A database that has been quiet for `node.storage.store.CHECKPOINT_IDLE_S` is checkpointed, once. A slow disk and a
drifting clock may add to that."""


class DisksRest(Promise):
    """A settled mesh soon writes nothing to its disks: flash wears out, and what asks again and again wears it out.

    News of members are written down: a node that was suspected after all has told so by a record of its own. What short
    retention deletes is forgotten a few seconds later.
    """

    name = "disks-rest"
    hears = (Sampled, MemberSeen, Settled, Committed)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._writes: dict[str, int] = {}
        self._quiet_from_ms = float("inf")

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare each look at a disk with the first one after the last checkpoint."""
        if isinstance(seen, Committed) and not _is_retention(self.mirror, seen):
            return
        if not isinstance(seen, Sampled):
            if isinstance(seen, Settled) or self.mirror.settled_ms is not None:
                self._quiet_from_ms = seen.at_ms + LAST_WRITES_MS
                self._writes.clear()
        elif seen.at_ms > self._quiet_from_ms:
            before = self._writes.setdefault(seen.host, seen.disk_writes)
            if seen.disk_writes != before:
                self._writes[seen.host] = seen.disk_writes
                yield f"{seen.host} wrote {seen.disk_writes - before} times to its disk at rest"


class WritesChangeSomething(Promise):
    """A node never writes a row again only to stamp it anew: a lease lives as long as its holder, without a beat."""

    name = "writes-change-something"
    hears = (Committed,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare each own write with what it replaced, stamps apart."""
        assert isinstance(seen, Committed)
        for change in seen.changes:
            before, after = change.before, change.after
            if change.local and before is not None and _said(before) == _said(after) and before.values == after.values:
                yield f"{seen.host} wrote {told(after)}, which says what was there before"


def _said(row: Row) -> tuple[int, bool, int, int, int]:
    return row.generation, row.deleted, row.rank, row.cluster_epoch, row.lease_epoch

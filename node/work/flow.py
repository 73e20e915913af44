"""What passes through the mesh right now, counted from the commits of this node while somebody watches.

Nothing is counted otherwise: a node that nobody looks at pays one comparison a commit. All that this replica hears is
counted, whichever node did it, in steps. What was done while it could not be heard counts when it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mesh.rows import Row
from node.storage.store import Commit
from node.work.status import step_status
from node.work.tables import Status

WATCH_S = 30.0
"""For how long after the last look the counting goes on."""
RESEED_S = 60.0
"""How old the knowledge of what runs may get before it is read anew: a replaced database makes no commits."""


@dataclass(slots=True)
class Totals:
    """Steps since the counting began; every attempt that begins or fails counts."""

    submitted: int = 0
    started: int = 0
    finished: int = 0
    failed: int = 0

    def note(self, before: Row | None, after: Row) -> None:
        """A version of a step became current."""
        if after.deleted:
            return
        self.submitted += before is None
        is_new_run = _is_new_run(before, after)
        self.started += is_new_run
        match step_status(after):
            case Status.SUCCESS:
                self.finished += is_new_run or before is None or before.rank != Status.SUCCESS.rank
            case Status.RETRYING | Status.DEAD_LETTER:
                # A hand-over of a step that waits for its next attempt is no failure, and changes no attempt.
                self.failed += is_new_run or (before is not None and step_status(before) is Status.RUNNING)


def _is_new_run(before: Row | None, after: Row) -> bool:
    """Whether a run began between these versions. Its claim may never have been heard, only what came of it."""
    status = step_status(after)
    if not after.integer("attempt") or status in (Status.PENDING, Status.CANCELLED):
        return False
    if before is None or before.generation != after.generation:
        return True
    if status is Status.RUNNING:
        return step_status(before) is not Status.RUNNING or before.lease_epoch != after.lease_epoch
    return after.integer("attempt") > before.integer("attempt")


class Flow:
    """The totals, and what runs where, for whoever watches."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.since: float | None = None
        """When the counting began, on the node's clock; None while nobody watches."""
        self.running: dict[tuple[str, str], Row] = {}
        """Steps that run anywhere as far as this node knows, by namespace and id."""
        self._changed: set[tuple[str, str]] | None = None
        """What commits told between `watch` and `seed`."""
        self._seen_at = float("-inf")
        self._seeded_at = float("-inf")

    def watch(self, now: float) -> bool:
        """Somebody looks. True when what runs must be read from the database first, and given to `seed`."""
        if now - self._seen_at > WATCH_S:
            self._stop()
            self.since = now
        self._seen_at = now
        if now - self._seeded_at <= RESEED_S:
            return False
        self._changed = set()
        return True

    def seed(self, running: Iterable[Row], now: float) -> None:
        """Take in what ran as of a read that began after `watch`; commits that came meanwhile know better."""
        changed = self._changed or set()
        read = {(row.namespace, row.key): row for row in running}
        self.running = {key: row for key, row in read.items() if key not in changed} | {
            key: row for key, row in self.running.items() if key in changed
        }
        self._changed, self._seeded_at = None, now

    def on_commit(self, commit: Commit, now: float) -> None:
        """Count, if somebody watches."""
        if self.since is None:
            return
        if now - self._seen_at > WATCH_S:
            self._stop()
            return
        for change in commit.changes:
            if change.after.table == "steps":
                self.totals.note(change.before, change.after)
                self._note_running(change.after)

    def _note_running(self, row: Row) -> None:
        key = (row.namespace, row.key)
        if self._changed is not None:
            self._changed.add(key)
        if step_status(row) is Status.RUNNING and not row.deleted:
            self.running[key] = row
        else:
            self.running.pop(key, None)

    def _stop(self) -> None:
        self.totals, self.since, self._seeded_at = Totals(), None, float("-inf")
        self.running.clear()

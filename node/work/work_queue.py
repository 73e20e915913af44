"""Which steps this node owns and may run now: a local table, derived inside the transaction that changed a step.

The queue holds nothing that the replicated rows do not say; `rebuild` makes it anew. It exists so that a claim is one
look at an index instead of a fold over tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mesh.ids import Origin
from mesh.placement import Offer, Requirement
from mesh.rows import Row
from node.storage.reader import Reader
from node.storage.transaction import Transaction
from node.work.status import continues, depends_on, is_runnable, step_status
from node.work.tables import Status

_WAITING = (Status.PENDING, Status.RETRYING)


class Queued(NamedTuple):
    """One entry: where the step is, and what placing it needs to know."""

    namespace: str
    step_id: str
    agent: str


def requirement_of(step: Row) -> Requirement:
    """What the step asks of the node that runs it."""
    labels = step.text("labels")
    return Requirement(
        ability=step.text("agent"),
        node=step.text("pin_node") or None,
        labels=json.loads(labels) if labels else {},
    )


class WorkQueue:
    """Keeps the `queue` table equal to: steps owned by `me`, waiting, with every parent done."""

    def __init__(self, me: str, offer: Callable[[], Offer]) -> None:
        """`offer` says what this node can run; call `rebuild` when its answer changed."""
        self._me = me
        self._offer = offer
        # Only ever added to, and before the column is set: a transaction may be undone, and its payload come again.
        self._awaited: set[str] = set()
        self.has_guarded = False
        """Whether a step with a roster was queued here since the process began. Readable from any thread."""

    def on_step(self, tx: Transaction, before: Row | None, after: Row) -> None:
        """A step's row changed: take it in or out, and look at the steps that wait for it."""
        if self._is_waiting(after):
            if self._parents_done(tx, after):
                self._insert(tx, after)
        elif before is None or self._is_waiting(before):
            tx.execute("DELETE FROM queue WHERE step_id = ?", (after.key,))
        if after.integer("dependents") and self._readiness_changed(before, after):
            self._review_dependents(tx, after)

    def defer(self, tx: Transaction, step_id: str, *, reference: str) -> None:
        """Let an entry wait until this payload has arrived, however long that takes: without it the step cannot run."""
        tx.execute("UPDATE queue SET awaits = ? WHERE step_id = ?", (reference, step_id))
        self._awaited.add(reference)

    def on_payload(self, tx: Transaction, before: Row | None, after: Row) -> None:
        """A payload arrived: what waited for it may run."""
        if self.is_awaited(after.key):
            tx.execute("UPDATE queue SET awaits = NULL WHERE awaits = ?", (after.key,))

    def is_awaited(self, reference: str) -> bool:
        """Whether a step may have waited for this payload since the process began. Callable from any thread."""
        return reference in self._awaited

    def rebuild(self, tx: Transaction) -> int:
        """Make the table anew from the steps; returns how many wait."""
        tx.execute("DELETE FROM queue")
        waiting = tx.select("steps", "owner = ? AND rank = 0 AND deleted = 0", (self._me,))
        count = 0
        for step in waiting:
            if self._is_waiting(step) and self._parents_done(tx, step):
                self._insert(tx, step)
                count += 1
        return count

    def _is_waiting(self, step: Row) -> bool:
        return step.text("owner") == self._me and not step.deleted and step_status(step) in _WAITING

    def _readiness_changed(self, before: Row | None, after: Row) -> bool:
        # Not only whether it succeeded: a step that continues runs below one which failed.
        return _end_of(before) is not _end_of(after)

    def _review_dependents(self, tx: Transaction, parent: Row) -> None:
        name = parent.text("name")
        for sibling in tx.select(
            "steps",
            # A wide task has a thousand parents and one child: each parent's end must not read all the others.
            "namespace = ? AND task_id = ? AND rank = 0 AND depends_on IS NOT NULL",
            (parent.namespace, parent.text("task_id")),
        ):
            # What continues may wait for a step that this one keeps from ever running.
            if not self._is_waiting(sibling) or not (name in depends_on(sibling) or continues(sibling)):
                continue
            if self._parents_done(tx, sibling):
                self._insert(tx, sibling)
            else:
                tx.execute("DELETE FROM queue WHERE step_id = ?", (sibling.key,))

    def _parents_done(self, tx: Reader, step: Row) -> bool:
        names = depends_on(step)
        if not names:
            return True
        if continues(step):
            siblings = tx.select("steps", "namespace = ? AND task_id = ?", (step.namespace, step.text("task_id")))
            return is_runnable(step, {sibling.text("name"): sibling for sibling in siblings})
        marks = ",".join("?" * len(names))
        ((done,),) = tx.sql(
            "SELECT count(*) FROM steps WHERE namespace = ? AND task_id = ? AND status = 'SUCCESS' AND deleted = 0 "
            f"AND name IN ({marks})",
            (step.namespace, step.text("task_id"), *names),
        )
        return bool(done == len(names))

    def _insert(self, tx: Transaction, step: Row) -> None:
        # A retry's delay is a duration from the write that asked for it, on our own physical clock. A stamp may run
        # ahead of that, by as much as another clock is wrong, so it tells when the write was only if that is past.
        due_ms = 0
        if step_status(step) is Status.RETRYING:
            due_ms = min(step.hlc >> 16, tx.now_ms) + step.integer("retry_delay_ms")
        runnable = self._offer().misses(requirement_of(step)) is None
        guarded = bool(step.text("roster"))
        self.has_guarded = self.has_guarded or guarded
        tx.execute(
            "INSERT OR REPLACE INTO queue "
            "(step_id, namespace, agent, priority, runnable, due_ms, enqueued_hlc, guarded) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                step.key,
                step.namespace,
                step.text("agent"),
                step.integer("priority"),
                int(runnable),
                due_ms,
                step.hlc,
                int(guarded),
            ),
        )


def _end_of(step: Row | None) -> Status | None:
    """How the step ended; None while it is open, or gone."""
    if step is None or step.deleted:
        return None
    status = step_status(step)
    return status if status.is_terminal else None


def next_entry(
    reader: Reader,
    *,
    priorities: Sequence[int],
    now_ms: int,
    full_agents: Sequence[str],
    fresh_after: tuple[Origin, int] | None,
    supported: Sequence[str] = (),
) -> tuple[Queued, int] | None:
    """The entry that should run next, with its priority; None when none may run now.

    `full_agents` have no room. `fresh_after`, when given, admits only steps that this node wrote under that origin,
    after that number: while the gate is shut, everything older may belong to someone else by now. `supported`: the ids
    of guarded steps for which a majority of their roster supports this node; no other guarded step may run.
    """
    conditions = ["runnable = 1", "priority = ?", "due_ms <= ?", "awaits IS NULL"]
    extra: list[str | int] = []
    if full_agents:
        conditions.append(f"agent NOT IN ({','.join('?' * len(full_agents))})")
        extra.extend(full_agents)
    if fresh_after is not None:
        # By numbers, not by stamps: an own row that comes back from peers, after a restore, may carry any.
        conditions.append(
            "EXISTS (SELECT 1 FROM steps WHERE steps.namespace = queue.namespace AND steps.key = queue.step_id "
            "AND steps.seq > ? AND steps.oid = (SELECT oid FROM origins WHERE node = ? AND incarnation = ?))"
        )
        origin, seq = fresh_after
        extra.extend((seq, origin.node, origin.incarnation))
    select = "SELECT namespace, step_id, agent, enqueued_hlc FROM queue WHERE " + " AND ".join(conditions)
    # Two looks instead of an OR, for which SQLite would read past every guarded step.
    among = f" AND guarded = 1 AND step_id IN ({','.join('?' * len(supported))})"
    order = " ORDER BY enqueued_hlc LIMIT 1"
    for priority in priorities:
        found = reader.sql(select + " AND guarded = 0" + order, (priority, now_ms, *extra))
        if supported:
            found += reader.sql(select + among + order, (priority, now_ms, *extra, *supported))
        if found:
            return Queued(*min(found, key=lambda entry: int(entry[3]))[:3]), priority
    return None


def guarded_entries(reader: Reader, *, now_ms: int, limit: int) -> list[Queued]:
    """The guarded entries that could run here now but for the support of their rosters, the next ones first."""
    found = reader.sql(
        "SELECT namespace, step_id, agent FROM queue WHERE runnable = 1 AND guarded = 1 AND due_ms <= ? "
        "AND awaits IS NULL ORDER BY priority, enqueued_hlc LIMIT ?",
        (now_ms, limit),
    )
    return [Queued(*row) for row in found]


def next_due_ms(reader: Reader, after_ms: int) -> int | None:
    """The earliest time after this one at which a delayed step becomes due; None when none waits."""
    ((due,),) = reader.sql("SELECT min(due_ms) FROM queue WHERE runnable = 1 AND due_ms > ?", (after_ms,))
    return None if due is None else int(due)


def unplaceable(reader: Reader, agents: Sequence[str], limit: int, skip: int = 0) -> list[Queued]:
    """Entries of these agents that this node owns but cannot run, oldest first, without the first `skip`."""
    found = reader.sql(
        f"SELECT namespace, step_id, agent FROM queue WHERE runnable = 0 AND agent IN ({','.join('?' * len(agents))}) "
        "ORDER BY enqueued_hlc LIMIT ? OFFSET ?",
        (*agents, limit, skip),
    )
    return [Queued(*row) for row in found]

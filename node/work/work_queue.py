"""Which steps this node owns and may run now: a local table, derived inside the transaction that changed a step.

The queue holds nothing that the replicated rows do not say; `rebuild` makes it anew. It exists so that a claim is one
look at an index instead of a fold over tasks.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from mesh.ids import Origin
from mesh.placement import Offer, Requirement
from mesh.rows import Row
from node.storage.reader import Reader
from node.storage.transaction import Transaction
from node.work.holds import Scope, is_agent_held
from node.work.priorities import LOW
from node.work.status import continues, depends_on, ended_names, step_status, waits
from node.work.tables import Status
from node.work.timing import due_ms, expires_at_ms


class State(enum.IntEnum):
    """What keeps an entry from being claimed, as its column `runnable` says; the first that holds."""

    NOT_HERE = 0
    """This node cannot run it, and looks for one that can."""
    READY = 1
    HELD = 3
    """Its agent is paused."""
    NOT_DUE = 2
    """Its delay is not over, or was not when `ripen` was last called."""


RIPEN_MAX = 256
"""Entries that become ready in one claim: of a hundred thousand that are due at once nobody needs all at once."""


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
        self.has_delayed = False
        self.has_expiring = False
        """Likewise one that had to wait for its time, and one that may expire."""
        self.has_continuing = False
        """Whether a waiting step of ours that continues after failures was seen since the process began."""

    def on_step(self, tx: Transaction, before: Row | None, after: Row) -> None:
        """A step's row changed: take it in or out, and look at the steps that wait for it."""
        if self._is_waiting(after):
            self.has_continuing = self.has_continuing or continues(after)
            if self._parents_done(tx, after):
                self._insert(tx, after)
        elif before is None or self._is_waiting(before):
            tx.execute("DELETE FROM queue WHERE step_id = ?", (after.key,))
        if after.integer("dependents") and (
            self._readiness_changed(before, after) or self._blocking_changed(tx, before, after)
        ):
            self._review_dependents(tx, after)

    def defer(self, tx: Transaction, step_id: str, *, reference: str) -> None:
        """Let an entry wait until this payload has arrived, however long that takes: without it the step cannot run."""
        tx.execute("UPDATE queue SET awaits = ? WHERE step_id = ?", (reference, step_id))
        self._awaited.add(reference)

    def on_payload(self, tx: Transaction, before: Row | None, after: Row) -> None:
        """A payload arrived: what waited for it may run."""
        if self.is_awaited(after.key):
            tx.execute("UPDATE queue SET awaits = NULL WHERE awaits = ?", (after.key,))

    def on_hold(self, tx: Transaction, before: Row | None, after: Row) -> None:
        """A hold began or ended: take what it concerns out of the claims' way, or back in."""
        scope = Scope.parse(after.key)
        if scope.kind != "agent":
            return  # a claim asks for those of its node itself
        if after.deleted:
            tx.execute(
                f"UPDATE queue SET runnable = CASE WHEN due_ms > ? THEN {State.NOT_DUE} ELSE {State.READY} END "
                f"WHERE runnable = {State.HELD} AND agent = ?",
                (tx.now_ms, scope.name),
            )
        else:
            tx.execute(
                f"UPDATE queue SET runnable = {State.HELD} WHERE runnable <> {State.NOT_HERE} AND agent = ?",
                (scope.name,),
            )

    def is_awaited(self, reference: str) -> bool:
        """Whether a step may have waited for this payload since the process began. Callable from any thread."""
        return reference in self._awaited

    def rebuild(self, tx: Transaction) -> int:
        """Make the table anew from the steps; returns how many wait."""
        tx.execute("DELETE FROM queue")
        waiting = tx.select("steps", "owner = ? AND rank = 0 AND deleted = 0", (self._me,))
        count = 0
        for step in waiting:
            self.has_continuing = self.has_continuing or continues(step)
            if self._is_waiting(step) and self._parents_done(tx, step):
                self._insert(tx, step)
                count += 1
        return count

    def _is_waiting(self, step: Row) -> bool:
        return step.text("owner") == self._me and _waits(step)

    def _readiness_changed(self, before: Row | None, after: Row) -> bool:
        # Not only whether it succeeded: a step that continues runs below one which failed.
        return _end_of(before) is not _end_of(after)

    def _blocking_changed(self, tx: Transaction, before: Row | None, after: Row) -> bool:
        """Whether the step began to wait in vain, or does so no more: what continues below it waits for no more."""
        # Most steps have parents that are done, or nobody here cares: then this costs next to nothing.
        if not self.has_continuing or continues(after) or not depends_on(after):
            return False
        return _waits(before) is not _waits(after) and not self._parents_done(tx, after)

    def _review_dependents(self, tx: Transaction, parent: Row) -> None:
        name, over = parent.text("name"), None
        for sibling in tx.select(
            "steps",
            # A wide task has a thousand parents and one child: each parent's end must not read all the others.
            "namespace = ? AND task_id = ? AND rank = 0 AND depends_on IS NOT NULL",
            (parent.namespace, parent.text("task_id")),
        ):
            if not self._is_waiting(sibling):
                continue
            if continues(sibling):
                # It may wait for a step that this one keeps from ever running. All of them are judged by one look.
                over = _over(tx, sibling) if over is None else over
                is_done = over.issuperset(depends_on(sibling))
            elif name in depends_on(sibling):
                is_done = self._parents_done(tx, sibling)
            else:
                continue
            if is_done:
                self._insert(tx, sibling)
            else:
                tx.execute("DELETE FROM queue WHERE step_id = ?", (sibling.key,))

    def _parents_done(self, tx: Reader, step: Row) -> bool:
        names = depends_on(step)
        if not names:
            return True
        if continues(step) and _has_failures(tx, step):
            return _over(tx, step).issuperset(names)
        marks = ",".join("?" * len(names))
        ((done,),) = tx.sql(
            "SELECT count(*) FROM steps WHERE namespace = ? AND task_id = ? AND status = 'SUCCESS' AND deleted = 0 "
            f"AND name IN ({marks})",
            (step.namespace, step.text("task_id"), *names),
        )
        return bool(done == len(names))

    def _insert(self, tx: Transaction, step: Row) -> None:
        due, agent = due_ms(step, tx.now_ms, tx.stamp_ms), step.text("agent")
        guarded = bool(step.text("roster"))
        self.has_guarded = self.has_guarded or guarded
        expires = expires_at_ms(step, tx.now_ms, tx.stamp_ms)
        self.has_delayed = self.has_delayed or due > tx.now_ms
        self.has_expiring = self.has_expiring or expires > 0
        # What was submitted with a delay stands behind what was submitted while it lasted.
        delay_ends_hlc = due << 16 if step.integer("delay_ms") and step_status(step) is Status.PENDING else 0
        tx.execute(
            "INSERT OR REPLACE INTO queue "
            "(step_id, namespace, agent, priority, runnable, due_ms, enqueued_hlc, guarded, expires_ms) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                step.key,
                step.namespace,
                agent,
                step.integer("priority"),
                int(self._state(tx, step, agent, due)),
                due,
                max(step.hlc, delay_ends_hlc),
                int(guarded),
                expires,
            ),
        )

    def _state(self, tx: Transaction, step: Row, agent: str, due: int) -> State:
        if self._offer().misses(requirement_of(step)) is not None:
            return State.NOT_HERE
        if is_agent_held(tx, agent):
            return State.HELD
        return State.NOT_DUE if due > tx.now_ms else State.READY


def ripen(tx: Transaction, *, now_ms: int) -> bool:
    """Make what has become due claimable, at most RIPEN_MAX entries; whether there were any.

    A claim finds what is ready without passing by all that is not due yet.
    """
    due = f"queue INDEXED BY queue_due WHERE runnable = {State.NOT_DUE} AND due_ms <= ?"
    if not tx.sql(f"SELECT 1 FROM {due} LIMIT 1", (now_ms,)):
        return False
    tx.execute(
        f"UPDATE queue SET runnable = {State.READY} "
        f"WHERE step_id IN (SELECT step_id FROM {due} ORDER BY due_ms LIMIT {RIPEN_MAX})",
        (now_ms,),
    )
    return True


def ripened_entry(tx: Transaction, *, now_ms: int, **options: Any) -> tuple[Queued, int] | None:
    """`next_entry`, also if it became due behind RIPEN_MAX others that cannot run: nothing would wake for it."""
    while (found := next_entry(tx, now_ms=now_ms, **options)) is None:
        if not ripen(tx, now_ms=now_ms):
            return None
    return found


def _has_failures(reader: Reader, step: Row) -> bool:
    """Whether a step of the same task ended without success. While none did, none can wait in vain."""
    found = "SELECT 1 FROM steps WHERE namespace = ? AND task_id = ? AND rank IN (?, ?) AND deleted = 0 LIMIT 1"
    ranks = (Status.DEAD_LETTER.rank, Status.CANCELLED.rank)
    return bool(reader.sql(found, (step.namespace, step.text("task_id"), *ranks)))


def _over(reader: Reader, step: Row) -> set[str]:
    """The names of the steps of the same task that will not run any more."""
    siblings = reader.select("steps", "namespace = ? AND task_id = ?", (step.namespace, step.text("task_id")))
    return ended_names({sibling.text("name"): sibling for sibling in siblings})


def _waits(step: Row | None) -> bool:
    return step is not None and not step.deleted and waits(step)


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
    served: Mapping[int, str] = MappingProxyType({}),
    aged_until_ms: int | None = None,
) -> tuple[Queued, int] | None:
    """The entry that should run next, with its priority; None when none may run now. Call `ripen` before.

    Within a class it is the oldest of the next namespace, in the order of their names, after the one that was `served`
    last: a namespace with a long backlog costs the others no more than their share. With `aged_until_ms`, the oldest
    entry of the last class goes before all of that, if it has waited since before then.

    `full_agents` have no room. `fresh_after`, when given, admits only steps that this node wrote under that origin,
    after that number: while the gate is shut, everything older may belong to someone else by now. `supported`: the ids
    of guarded steps for which a majority of their roster supports this node; no other guarded step may run.
    """
    conditions = ["(expires_ms = 0 OR expires_ms > ?)", "awaits IS NULL"]
    extra: list[str | int] = [now_ms]
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
    columns = "SELECT namespace, step_id, agent, enqueued_hlc FROM queue"
    where = f" WHERE runnable = {State.READY} AND " + " AND ".join(conditions)
    if aged_until_ms is not None and LOW in priorities:
        aged = f" AND guarded = 0 AND priority = {LOW} AND enqueued_hlc <= ? ORDER BY enqueued_hlc LIMIT 1"
        found = reader.sql(columns + " INDEXED BY queue_aged" + where + aged, (*extra, aged_until_ms << 16))
        if found:
            return Queued(*found[0][:3]), LOW
    order = " ORDER BY namespace, enqueued_hlc LIMIT 1"
    for priority in priorities:
        # Several looks instead of an OR, for which SQLite would read past every guarded step, or namespace. The class
        # is part of the text: compared with a variable, a partial index makes SQLite plan the query anew each time.
        of_class = columns + where + f" AND priority = {int(priority)}"
        last = served.get(priority)
        found = []
        if last is not None:
            found = reader.sql(of_class + " AND guarded = 0 AND namespace > ?" + order, (*extra, last))
        if not found:
            found = reader.sql(of_class + " AND guarded = 0" + order, extra)
        if supported:
            among = f" AND guarded = 1 AND step_id IN ({','.join('?' * len(supported))})"
            found += reader.sql(of_class + among, (*extra, *supported))
        if found:
            first = min(found, key=lambda entry: (str(entry[0]) <= (last or ""), str(entry[0]), int(entry[3])))
            return Queued(*first[:3]), priority
    return None


def guarded_entries(reader: Reader, *, now_ms: int, limit: int) -> list[Queued]:
    """The guarded entries that could run here now but for the support of their rosters, the next ones first."""
    found = reader.sql(
        f"SELECT namespace, step_id, agent FROM queue WHERE runnable IN ({State.READY}, {State.NOT_DUE}) "
        "AND guarded = 1 AND due_ms <= ? AND awaits IS NULL ORDER BY priority, enqueued_hlc LIMIT ?",
        (now_ms, limit),
    )
    return [Queued(*row) for row in found]


def next_due_ms(reader: Reader, after_ms: int) -> int | None:
    """The earliest time after this one at which a delayed step becomes due; None when none waits."""
    found = f"SELECT min(due_ms) FROM queue WHERE runnable = {State.NOT_DUE} AND due_ms > ?"
    ((due,),) = reader.sql(found, (after_ms,))
    return None if due is None else int(due)


def expired_entries(reader: Reader, *, now_ms: int, limit: int, supported: Sequence[str] = ()) -> list[Queued]:
    """Entries that waited for too long, the longest first; with a roster only those that are among the `supported`."""
    among = f"(guarded = 0 OR step_id IN ({','.join('?' * len(supported))}))" if supported else "guarded = 0"
    found = reader.sql(
        "SELECT namespace, step_id, agent FROM queue WHERE expires_ms <> 0 AND expires_ms <= ? "
        f"AND {among} ORDER BY expires_ms LIMIT ?",
        (now_ms, *supported, limit),
    )
    return [Queued(*row) for row in found]


def next_expiry_ms(reader: Reader, after_ms: int) -> int | None:
    """The earliest time after this one at which an entry expires; None when none does."""
    found = "SELECT min(expires_ms) FROM queue WHERE expires_ms <> 0 AND expires_ms > ?"
    ((expires,),) = reader.sql(found, (after_ms,))
    return None if expires is None else int(expires)


def unplaceable(
    reader: Reader, agents: Sequence[str], limit: int, skip: int = 0, *, draining: bool = False
) -> list[Queued]:
    """Entries of these agents that this node owns but cannot run, oldest first, without the first `skip`.

    While `draining`, all that it owns.
    """
    states = tuple(State) if draining else (State.NOT_HERE,)
    found = reader.sql(
        f"SELECT namespace, step_id, agent FROM queue WHERE runnable IN ({','.join(str(int(s)) for s in states)}) "
        f"AND agent IN ({','.join('?' * len(agents))}) ORDER BY enqueued_hlc LIMIT ? OFFSET ?",
        (*agents, limit, skip),
    )
    return [Queued(*row) for row in found]

"""Every change of a task or a step, as functions of one transaction. Nothing else writes these two tables, but for
`work.handler_choices`, which only these functions call.

The rule that all of them keep: **a step's row is written by its owner alone.** The other writers are a *taker*, when
the owner is gone (lease epoch + 1), and a *replayer*, when the step has ended (generation + 1, becomes the owner).
Cancel is not a write to a step but a flag on the task's row, which owners and takers obey.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.errors import ConflictError, LimitError, NotFoundError
from mesh.fences import Fence
from mesh.placement import Offer
from mesh.rows import Row
from mesh.tables import Value
from mesh.takeover import LOST_LEASES_MAX, LostLease, is_poison
from node.env import Job, Outcome
from node.storage.reader import Reader
from node.storage.transaction import Transaction
from node.work import handler_choices, history
from node.work.causes import POISON_PREFIX
from node.work.definition import Definition, StepDefinition, check_roster, step_id, task_ids
from node.work.handler_choices import NO_CHECKPOINT
from node.work.history import Action
from node.work.payloads import load_payload, store_payload
from node.work.replay_choice import choose_failed, choose_from, choose_one
from node.work.retries import RetryPolicy
from node.work.status import depends_on, is_partial, step_status
from node.work.tables import CLUSTER_EPOCH_KEY, MESH_NAMESPACE, TASK_CANCEL_REQUESTED, TASK_OPEN, Status
from node.work.timing import has_begun, retry_left_ms
from node.work.work_queue import Queued, State, requirement_of

ERROR_CHARS_MAX = 2048
FORGOTTEN_LEASES = 16
"""Lease epochs that the first claim under a new origin passes over. Stamps tell leases apart as well, but a stamp may
come twice: a clock that follows a faster peer counts on from the same place after its own writes were lost."""
LOST_KEPT_MAX = 4 * LOST_LEASES_MAX
"""A step that partitions tossed about for months keeps only its latest lost leases."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What a submit came to. `deduplicated`: the same task was here already, and nothing was written."""

    task_id: str
    deduplicated: bool
    trace_id: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A step under a lease that this node just opened, and all that its handler needs."""

    step: Row
    job: Job


@dataclass(frozen=True, slots=True)
class Finished:
    """What a finished attempt came to. `accepted` is False when the lease had moved and the row was left alone."""

    accepted: bool
    step: Row | None


def cluster_epoch(reader: Reader) -> int:
    """The mesh's cluster epoch as this node knows it; 1 until somebody bumps it."""
    row = reader.get("cluster", MESH_NAMESPACE, CLUSTER_EPOCH_KEY)
    return 1 if row is None else row.rank


def submit(
    tx: Transaction,
    *,
    me: str,
    namespace: str,
    key: str,
    definition: Definition,
    trace_id: str,
    members: Sequence[str] = (),
) -> Submitted:
    """Store a task and its steps, owned by this node.

    The same key and definition again is the same task. The same key with another definition is a ConflictError that
    names the task which has the key; across a cut neither side can know, and then both tasks stay. `members`, of
    the mesh, are the roster of the steps that wait on a partition; ConfigError when they are too few for that. Nothing
    is written when an error is raised.
    """
    task_id = definition.task_id(namespace, key)
    existing = tx.get("tasks", namespace, task_id)
    if existing is not None and not existing.deleted:
        return Submitted(task_id, True, existing.text("trace_id"))
    rivals = tasks_of_key(tx, namespace, key)
    if rivals:
        raise ConflictError(
            f"idempotency key {key!r} already belongs to task {rivals[0].key}, which asks for something else: "
            "use another key, or submit exactly the same definition to get that task"
        )
    roster = check_roster(definition, members)
    delays_ms = [step.delay_at(tx.now_ms) for step in definition.steps]  # before anything is written: it may refuse
    epoch = cluster_epoch(tx)
    # Over a tombstone the task begins a new generation, the only thing that outranks a deletion.
    generation = existing.generation + 1 if existing is not None else 0
    tx.put(
        "tasks",
        namespace,
        task_id,
        {
            "idempotency_key": key,
            "definition_digest": definition.digest,
            "step_count": len(definition.steps),
            "trace_id": trace_id,
            "created_hlc": tx.hlc,
            "cancelled_below": 0,
            "cancel_mode": None,
            "cancel_reason": None,
        },
        rank=TASK_OPEN,
        generation=generation,
        cluster_epoch=epoch,
        deleted=False,
    )
    dependents = definition.dependents()
    for position, step in enumerate(definition.steps):
        _create_step(
            tx,
            namespace,
            task_id,
            position,
            step,
            dependents[step.name],
            me,
            generation,
            epoch,
            roster,
            delays_ms[position],
        )
    return Submitted(task_id, False, trace_id)


def _create_step(
    tx: Transaction,
    namespace: str,
    task_id: str,
    position: int,
    step: StepDefinition,
    dependents: int,
    me: str,
    task_generation: int,
    epoch: int,
    roster: Sequence[str],
    delay_ms: int,
) -> None:
    key = step_id(task_id, step.name)
    base = tx.get("steps", namespace, key)
    if base is not None and not base.deleted and base.integer("task_generation") >= task_generation:
        return  # it came here before its task did, and belongs to the owner that it names
    inline, reference = store_payload(tx, namespace, task_id, step.payload)
    tx.put(
        "steps",
        namespace,
        key,
        {
            "task_id": task_id,
            "name": step.name,
            "position": position,
            "agent": step.agent,
            "priority": step.priority,
            "depends_on": json.dumps(step.depends_on) if step.depends_on else None,
            "dependents": dependents,
            "input": inline,
            "input_ref": reference,
            "timeout_ms": step.timeout_ms,
            "max_attempts": step.max_attempts,
            "pin_node": step.node,
            "labels": json.dumps(dict(step.labels), sort_keys=True) if step.labels else None,
            "created_hlc": tx.hlc,
            "task_generation": task_generation,
            "roster": json.dumps(roster) if step.waits else None,
            "on_failure": "continue" if step.continues else None,
            "delay_ms": delay_ms or None,
            "expires_ms": step.expires_ms or None,
            "owner": me,
            **_FRESH,
        },
        rank=Status.PENDING.rank,
        generation=base.generation + 1 if base is not None else 0,
        cluster_epoch=epoch,
        deleted=False,
    )


_FRESH: Mapping[str, Value] = {
    "status": Status.PENDING.value,
    "attempt": 0,
    "retry_delay_ms": 0,
    "claim_life": 0,
    "lost_leases": None,
    "parents_used": None,
    "result": None,
    "result_ref": None,
    "last_error": None,
    **NO_CHECKPOINT,
}


def claim(
    tx: Transaction, entry: Queued, *, me: str, life: int, timeout_s: Callable[[str, int], float]
) -> Claimed | None:
    """Open a lease (a higher epoch) on a queued step of ours; None when it is not ours to run any more.

    A node dispatches only under an epoch that it opened itself, so a row which merely names it as owner is no licence.
    PayloadMissingError, with nothing written, when a payload that the step runs on has not arrived here yet.
    """
    step = tx.get("steps", entry.namespace, entry.step_id)
    if step is None or step.deleted or step.text("owner") != me or step_status(step).is_terminal:
        tx.execute("DELETE FROM queue WHERE step_id = ?", (entry.step_id,))
        return None
    task = tx.get("tasks", step.namespace, step.text("task_id"))
    if task is not None and task.deleted:
        tx.execute("DELETE FROM queue WHERE step_id = ?", (entry.step_id,))
        return None
    if task is not None and is_cancel_requested(task, step):
        _cancel_step(tx, step, me, task)
        return None
    parents, used = _parents(tx, step)
    # Before the lease opens: the caller goes on with other steps in this transaction, and a lease without a run would
    # stay RUNNING for ever.
    payload, saved = load_payload(tx, step, "input"), load_payload(tx, step, "checkpoint")
    # A database that went back in time has forgotten claims of its own, and must not open one of their leases again.
    forgotten = FORGOTTEN_LEASES if step.origin.node == me and step.origin != tx.origin else 0
    claimed = tx.put(
        "steps",
        step.namespace,
        step.key,
        {
            "status": Status.RUNNING.value,
            "attempt": step.integer("attempt") + 1,
            "retry_delay_ms": 0,
            "claim_life": life,
            "parents_used": json.dumps(used) if used else None,
        },
        lease_epoch=step.lease_epoch + 1 + forgotten,
        open_lease=True,
        cluster_epoch=max(step.cluster_epoch, cluster_epoch(tx)),
    )
    trace_id = task.text("trace_id") if task is not None else ""
    job = Job(
        task_id=claimed.text("task_id"),
        step_id=claimed.key,
        step_name=claimed.text("name"),
        namespace=claimed.namespace,
        agent=claimed.text("agent"),
        attempt=claimed.integer("attempt"),
        fence=Fence.of(claimed, me).encode(),
        # The parent id is derived from the step, so that a retry on another node continues the same trace.
        traceparent=f"00-{trace_id or '0' * 31 + '1'}-{claimed.key[-16:]}-01",
        timeout_s=timeout_s(claimed.text("agent"), claimed.integer("timeout_ms")),
        payload=payload,
        parents=parents,
        saved=saved,
    )
    return Claimed(claimed, job)


def _parents(tx: Reader, step: Row) -> tuple[dict[str, bytes], dict[str, list[int]]]:
    names = depends_on(step)
    if not names:
        return {}, {}
    siblings = tx.select("steps", "namespace = ? AND task_id = ?", (step.namespace, step.text("task_id")))
    by_name = {sibling.text("name"): sibling for sibling in siblings}
    succeeded = [name for name in names if step_status(by_name[name]) is Status.SUCCESS]  # all, but for `continue`
    outputs = {name: load_payload(tx, by_name[name], "result") for name in succeeded}
    used = {name: [by_name[name].generation, by_name[name].lease_epoch] for name in names}
    return outputs, used


def holds_lease(tx: Reader, claimed: Row, me: str) -> Row | None:
    """The step's current row if the lease that `claimed` opened still stands; None when it moved.

    A higher cluster epoch also ends every lease: from then on this node's own commit is one that it must refuse.
    """
    current = _same_lease(tx, claimed, me)
    return current if current is not None and cluster_epoch(tx) <= current.cluster_epoch else None


def _same_lease(tx: Reader, claimed: Row, me: str) -> Row | None:
    """The current row while nobody wrote it since this node claimed it, whatever the cluster epoch is now."""
    current = tx.get("steps", claimed.namespace, claimed.key)
    if current is None or current.text("owner") != me or is_deleted(tx, current):
        return None
    if Fence.of(current, me) != Fence.of(claimed, me) or step_status(current) is not Status.RUNNING:
        return None
    return current


def is_deleted(reader: Reader, step: Row) -> bool:
    """Whether the step, or its task, was deleted: nothing is written to it any more, so that it can be forgotten."""
    task = reader.get("tasks", step.namespace, step.text("task_id"))
    return step.deleted or (task is not None and task.deleted)


def finish(
    tx: Transaction, claimed: Row, outcome: Outcome, *, me: str, policy: RetryPolicy, rng: random.Random, reopen: bool
) -> Finished:
    """Write what an attempt came to, if its lease still stands; otherwise record it as superseded and change nothing.

    `reopen`: this process was away during the run and has heard from a peer since. The lease still stands, so the run's
    end is written under a new epoch, which outranks any take-over that began before this node was heard again.
    """
    if outcome.log:
        history.record(tx, claimed, Action.LOGGED, node=me, log=outcome.log)
    current = holds_lease(tx, claimed, me)
    if current is None:
        ended = _ended_by_us(tx, claimed, me, reopen=reopen)
        if ended is not None:
            return Finished(True, ended)
        _record_refused(tx, claimed, outcome, me)
        # Refused for the cluster epoch alone, the step is still ours, and nobody else would ever start it again.
        requeue(tx, claimed, me=me, action=Action.REQUEUED, why="a higher cluster epoch was learned")
        return Finished(False, None)
    if reopen:
        current = tx.put(
            "steps", current.namespace, current.key, {}, lease_epoch=current.lease_epoch + 1, open_lease=True
        )
    if outcome.kind == "success":
        try:
            inline, reference = store_payload(tx, current.namespace, current.text("task_id"), outcome.result)
        except LimitError as refusal:
            outcome = Outcome(kind="rejected", error=f"its result cannot be stored: {refusal}")
        else:
            row = _end(
                tx, current, Status.SUCCESS, result=inline, result_ref=reference, last_error=None, **NO_CHECKPOINT
            )
            return Finished(True, row)
    # Python's texts may hold halves of surrogate pairs (undecodable file names do); no column keeps those.
    error = outcome.error[:ERROR_CHARS_MAX].encode(errors="replace").decode()
    if outcome.kind in handler_choices.KINDS:
        return Finished(True, _obey_handler(tx, current, outcome, error, me))
    attempt = current.integer("attempt")
    history.record(tx, current, Action.FAILED, node=me, kind=outcome.kind, error=error[:512], attempt=attempt)
    task = tx.get("tasks", current.namespace, current.text("task_id"))
    if task is not None and is_cancel_requested(task, current):
        return Finished(True, _cancel_step(tx, current, me, task))
    if outcome.kind == "rejected" or attempt >= policy.max_attempts:
        return Finished(True, _end(tx, current, Status.DEAD_LETTER, last_error=error))
    row = tx.put(
        "steps",
        current.namespace,
        current.key,
        {
            "status": Status.RETRYING.value,
            "retry_delay_ms": policy.delay_ms(attempt, rng),
            "last_error": error,
        },
    )
    return Finished(True, row)


def checkpoint(tx: Transaction, claimed: Row, content: bytes, *, me: str) -> None:
    """Keep `content` for the step's next attempt, under this run's lease. ConflictError when that has moved."""
    current = holds_lease(tx, claimed, me)
    if current is None:
        raise ConflictError("the step's lease has moved: another run of it counts now, so end this one")
    handler_choices.keep_checkpoint(tx, current, content)


def _ended_by_us(tx: Reader, claimed: Row, me: str, *, reopen: bool) -> Row | None:
    """The row if this run's end is what it says already: its commit failed, and had happened all the same."""
    current = tx.get("steps", claimed.namespace, claimed.key)
    if current is None or current.node != me or current.text("owner") != me or step_status(current) is Status.RUNNING:
        return None
    same_run = (current.generation, current.integer("claim_life")) == (
        claimed.generation,
        claimed.integer("claim_life"),
    )
    # One less when the handler snoozed.
    counted = claimed.integer("attempt") - current.integer("attempt") in (0, 1)
    return current if same_run and counted and current.lease_epoch == claimed.lease_epoch + reopen else None


def _obey_handler(tx: Transaction, step: Row, outcome: Outcome, reason: str, me: str) -> Row:
    """What a handler chose for its step: to wait, or to end without a result. A cancel of the task goes first."""
    task = tx.get("tasks", step.namespace, step.text("task_id"))
    if task is not None and is_cancel_requested(task, step):
        return _cancel_step(tx, step, me, task)
    if outcome.kind == "snoozed":
        return handler_choices.snooze(tx, step, outcome, reason, me=me)
    history.record(tx, step, Action.CANCELLED, node=me, mode="handler", reason=reason[:256])
    return _end(tx, step, Status.CANCELLED, last_error=f"cancelled by its handler: {reason}")


def _end(tx: Transaction, step: Row, status: Status, **values: Value) -> Row:
    assert status.is_terminal, status
    return tx.put("steps", step.namespace, step.key, {"status": status.value, **values}, rank=status.rank)


def _record_refused(tx: Transaction, claimed: Row, outcome: Outcome, me: str) -> None:
    winner = tx.get("steps", claimed.namespace, claimed.key)
    history.record(
        tx,
        claimed,
        Action.SUPERSEDED,
        node=me,
        outcome=outcome.kind,
        result=preview(outcome.result),
        error=outcome.error[:256],
        winner=winner.text("owner") if winner is not None else None,
        winnerFence=Fence.of(winner, winner.text("owner")).encode() if winner is not None else None,
        why="its lease had moved before the result could be committed",
    )


def preview(content: bytes) -> str:
    """The first 120 characters of a payload, for people."""
    return content[:480].decode(errors="replace")[:120]


def abort(tx: Transaction, claimed: Row, *, me: str) -> None:
    """Record that a run was stopped because its lease moved. The row belongs to someone else now.

    Should the lease stand all the same, the step waits again: without its run it would stay RUNNING for ever.
    """
    if requeue(tx, claimed, me=me, action=Action.RELEASED, why="its run was stopped, though its lease stands"):
        return
    winner = tx.get("steps", claimed.namespace, claimed.key)
    record_aborted(tx, claimed, me=me, winner=winner.text("owner") if winner is not None else None)


def requeue(tx: Transaction, claimed: Row, *, me: str, action: Action, why: str) -> Row | None:
    """Give up a run of ours without counting the attempt: waiting again, under a new epoch. None if its lease moved."""
    current = _same_lease(tx, claimed, me)
    if current is None:
        return None
    history.record(tx, current, action, node=me, why=why)
    return tx.put(
        "steps",
        current.namespace,
        current.key,
        {"status": Status.PENDING.value, "attempt": max(0, current.integer("attempt") - 1)},
        lease_epoch=current.lease_epoch + 1,
        open_lease=True,
        cluster_epoch=max(current.cluster_epoch, cluster_epoch(tx)),
    )


def take_over(
    tx: Transaction,
    step: Row,
    *,
    me: str,
    why: str,
    current_life: Callable[[str], int | None],
    elected_at: int | None = None,
) -> Row | None:
    """Become the owner of a step whose owner is gone; None when the row moved since `step` was read.

    `elected_at`: the lease epoch at which the step's roster chose this node; without a roster it is the next one.
    """
    current = tx.get("steps", step.namespace, step.key)
    if current is None or current.rank or current.text("owner") != step.text("owner") or is_deleted(tx, current):
        return None
    if Fence.of(current, "") != Fence.of(step, ""):
        return None
    was_running = step_status(current) is Status.RUNNING
    lost = lost_leases(current)
    if was_running:
        lost = [*lost, LostLease(current.text("owner"), current.integer("claim_life"))][-LOST_KEPT_MAX:]
    history.record(
        tx,
        current,
        Action.TAKEN_OVER,
        node=me,
        from_node=current.text("owner"),
        why=why,
        was=current.text("status"),
        claimedAtMs=current.lease_hlc >> 16,
    )
    return _own(
        tx,
        current,
        me,
        lost,
        was_running=was_running,
        poison=is_poison(lost, current_life),
        lease_epoch=current.lease_epoch + 1 if elected_at is None else elected_at,
    )


def recover_own(tx: Transaction, step: Row, *, me: str, current_life: Callable[[str], int | None]) -> Row | None:
    """After a crash start: a step of ours is marked RUNNING, but the process that ran it has ended."""
    current = tx.get("steps", step.namespace, step.key)
    if current is None or current.text("owner") != me or step_status(current) is not Status.RUNNING:
        return None
    if is_deleted(tx, current):
        return None
    lost = [*lost_leases(current), LostLease(me, current.integer("claim_life"))][-LOST_KEPT_MAX:]
    record_lost(tx, current, me=me)
    return _own(
        tx,
        current,
        me,
        lost,
        was_running=True,
        poison=is_poison(lost, current_life),
        lease_epoch=current.lease_epoch + 1,
    )


def _own(
    tx: Transaction,
    step: Row,
    me: str,
    lost: Sequence[LostLease],
    *,
    was_running: bool,
    poison: bool,
    lease_epoch: int,
) -> Row:
    assert lease_epoch > step.lease_epoch, (lease_epoch, step.lease_epoch)
    # A lost lease is no failed attempt: its number is given back, and the step waits without a delay.
    status = Status.PENDING if was_running else step_status(step)
    values: dict[str, Value] = {
        "owner": me,
        "status": status.value,
        "attempt": max(0, step.integer("attempt") - was_running),
        "lost_leases": json.dumps(lost) if lost else None,
        "retry_delay_ms": retry_left_ms(step, tx.now_ms),
    }
    rank = status.rank
    if poison:
        rank = Status.DEAD_LETTER.rank
        values["status"] = Status.DEAD_LETTER.value
        values["last_error"] = (
            f"{POISON_PREFIX}{LOST_LEASES_MAX} nodes' processes ended while they ran this step "
            f"({', '.join(lease.node for lease in lost)}); find out why before you replay it"
        )
    return tx.put(
        "steps",
        step.namespace,
        step.key,
        values,
        rank=rank,
        lease_epoch=lease_epoch,
        open_lease=True,
        cluster_epoch=max(step.cluster_epoch, cluster_epoch(tx)),
    )


def lost_leases(step: Row) -> list[LostLease]:
    """The leases of this step that ended without a result, oldest first."""
    text = step.text("lost_leases")
    return [LostLease(str(node), int(life)) for node, life in json.loads(text)] if text else []


def hand_over(tx: Transaction, entries: Iterable[Queued], *, me: str, to: str, why: str) -> list[Row]:
    """Give waiting steps of ours to a peer that has accepted them; returns the rows as they now are."""
    moved = []
    for entry in entries:
        step = tx.get("steps", entry.namespace, entry.step_id)
        if step is None or step.text("owner") != me or step_status(step) is Status.RUNNING or step.rank:
            continue
        if is_deleted(tx, step):
            continue
        history.record(tx, step, Action.HANDED_OVER, node=me, from_node=me, to=to, why=why)
        moved.append(
            tx.put(
                "steps",
                step.namespace,
                step.key,
                {"owner": to, "retry_delay_ms": retry_left_ms(step, tx.now_ms)},
                lease_epoch=step.lease_epoch + 1,
                open_lease=True,
            )
        )
    return moved


def queued_for(
    reader: Reader, offer: Offer, *, now_ms: int, limit: int, withheld: Collection[str] = ()
) -> list[Queued]:
    """Waiting entries of ours that a node with this offer could run, oldest first within their class.

    `withheld`: steps that are kept, by id: their roster is asked to support us, and would let nobody else begin soon.
    """
    names = sorted(offer.abilities)
    if not names:
        return []
    found = reader.sql(
        f"SELECT namespace, step_id, agent FROM queue WHERE runnable <> {State.HELD} AND due_ms <= ? "
        f"AND awaits IS NULL AND (expires_ms = 0 OR expires_ms > ?) AND agent IN ({','.join('?' * len(names))}) "
        "ORDER BY priority, enqueued_hlc LIMIT ?",
        (now_ms, now_ms, *names, 4 * limit),
    )
    chosen = []
    for row in found:
        entry = Queued(*row)
        step = reader.get("steps", entry.namespace, entry.step_id)
        if step is not None and entry.step_id not in withheld and offer.misses(requirement_of(step)) is None:
            chosen.append(entry)
        if len(chosen) == limit:
            break
    return chosen


def is_cancel_requested(task: Row, step: Row) -> bool:
    """Whether the task's cancel concerns this step: a step replayed later than the cancel is not its business.

    The bound outlives a replay: a step whose owner could not be reached is cancelled when it can, replayed task or not.
    """
    return step.integer("task_generation") < task.integer("cancelled_below")


def request_cancel(tx: Transaction, namespace: str, task_id: str, *, mode: str, reason: str) -> list[Row]:
    """Raise the cancel flag on a task, which every owner obeys when it learns of it. Returns the steps still open."""
    task = existing_task(tx, namespace, task_id)
    steps = task_steps(tx, namespace, task_id)
    if not is_partial(task, steps) and all(step_status(step).is_terminal for step in steps):
        return []
    if task.rank != TASK_CANCEL_REQUESTED or (mode == "hard" and task.text("cancel_mode") != "hard"):
        tx.put(
            "tasks",
            namespace,
            task_id,
            {
                "cancelled_below": task.generation + 1,
                "cancel_mode": mode,
                "cancel_reason": reason[:ERROR_CHARS_MAX],
            },
            rank=TASK_CANCEL_REQUESTED,
        )
    return [step for step in task_steps(tx, namespace, task_id) if not step.rank]


def obey_cancel(tx: Transaction, task: Row, *, me: str) -> None:
    """Cancel the steps of ours that wait. A running one is ended by the runtime first, then by `cancel_run`."""
    if not task.integer("cancelled_below"):
        return
    for step in tx.select("steps", "namespace = ? AND task_id = ? AND rank = 0", (task.namespace, task.key)):
        if (
            step.text("owner") == me
            and not step.deleted
            and step_status(step) is not Status.RUNNING
            and is_cancel_requested(task, step)
        ):
            _cancel_step(tx, step, me, task)


def cancel_run(tx: Transaction, claimed: Row, *, me: str) -> Row | None:
    """End a run of ours whose process was stopped because of a cancel.

    A higher cluster epoch changes nothing: the step is not to be run under that one either. A replay that withdrew the
    cancel meanwhile does: then the step waits again.
    """
    current = _same_lease(tx, claimed, me)
    if current is None:
        return None
    task = tx.get("tasks", current.namespace, current.text("task_id"))
    if task is None or not is_cancel_requested(task, current):
        return requeue(tx, claimed, me=me, action=Action.RELEASED, why="its cancel was withdrawn by a replay")
    return _cancel_step(tx, current, me, task)


def _cancel_step(tx: Transaction, step: Row, me: str, task: Row) -> Row:
    reason = task.text("cancel_reason")
    history.record(tx, step, Action.CANCELLED, node=me, mode=task.text("cancel_mode"), reason=reason[:256])
    return _end(tx, step, Status.CANCELLED, last_error=f"cancelled: {reason}" if reason else "cancelled")


def expire(tx: Transaction, entry: Queued, *, me: str) -> Row | None:
    """End a waiting step of ours whose time is over, and which never began; None when that is not so any more."""
    step = tx.get("steps", entry.namespace, entry.step_id)
    if step is None or step.text("owner") != me or step.rank or is_deleted(tx, step):
        tx.execute("DELETE FROM queue WHERE step_id = ?", (entry.step_id,))
        return None
    if step_status(step) is not Status.PENDING or has_begun(step) or not step.integer("expires_ms"):
        tx.execute("UPDATE queue SET expires_ms = 0 WHERE step_id = ?", (entry.step_id,))  # or it is found for ever
        return None
    within = f"{step.integer('expires_ms') / 1000:g} s"
    history.record(tx, step, Action.EXPIRED, node=me, expiresMs=step.integer("expires_ms"))
    return _end(tx, step, Status.CANCELLED, last_error=f"expired: it did not begin within {within} of its submit")


@dataclass(frozen=True, slots=True)
class Replayed:
    """The steps that begin anew, as they are now, and the names of those that do not, each with the reason."""

    steps: list[Row]
    left: Sequence[tuple[str, str]]


def replay(
    tx: Transaction,
    namespace: str,
    task_id: str,
    *,
    me: str,
    step_name: str | None = None,
    from_step: str | None = None,
    failed: Collection[str] | None = None,
) -> Replayed:
    """Begin a new generation of ended steps, owned by this node: by default of those that did not succeed.

    `failed`: of these only, by name; `step_name`: the one step, however it ended; `from_step`: that one and all below
    it. The same replay issued on both sides of a cut is one generation: both write base + 1, and the merge picks one.
    A step below `from_step` whose owner is away may begin on the old output before it hears of the replay: its
    row's `parents_used` tells. ConflictError, with nothing written, when nothing is there to replay, or a step that
    would have to be has not ended.
    """
    task = existing_task(tx, namespace, task_id)
    steps = task_steps(tx, namespace, task_id)
    if step_name is not None:
        choice = choose_one(task_id, steps, step_name)
    elif from_step is not None:
        choice = choose_from(task_id, steps, from_step)
    else:
        choice = choose_failed(task_id, steps, failed)
    epoch = cluster_epoch(tx)
    generation = task.generation + 1
    tx.put(
        "tasks",
        namespace,
        task_id,
        {},
        rank=TASK_OPEN,
        generation=generation,
        cluster_epoch=max(task.cluster_epoch, epoch),
    )
    replayed = []
    for step in choice.chosen:
        history.record(tx, step, Action.REPLAYED, node=me, from_node=step.text("owner"), was=step.text("status"))
        replayed.append(
            tx.put(
                "steps",
                namespace,
                step.key,
                # Whoever replays a step wants it now: neither its delay nor its expiry, of the first submit, count on.
                {**_FRESH, "delay_ms": None, "expires_ms": None, "owner": me, "task_generation": generation},
                rank=0,
                generation=step.generation + 1,
                lease_epoch=step.lease_epoch + 1,
                open_lease=True,
                cluster_epoch=max(step.cluster_epoch, epoch),
            )
        )
    return Replayed(replayed, choice.left)


def bump_cluster_epoch(tx: Transaction, *, reason: str, actor: str) -> tuple[int, int]:
    """Raise the cluster epoch by one; returns (previous, current). Leases under a lower epoch end as nodes learn it."""
    previous = cluster_epoch(tx)
    tx.put(
        "cluster",
        MESH_NAMESPACE,
        CLUSTER_EPOCH_KEY,
        {"reason": reason[:ERROR_CHARS_MAX], "actor": actor[:128]},
        rank=previous + 1,
    )
    return previous, previous + 1


def existing_task(reader: Reader, namespace: str, task_id: str) -> Row:
    """The task's row, or NotFoundError that says where one might look."""
    task = reader.get("tasks", namespace, task_id)
    if task is None or task.deleted:
        raise NotFoundError(
            f"task {task_id} is not known here in namespace {namespace!r}: check the id and the namespace, or ask the "
            "node that accepted it if it is cut off"
        )
    return task


def tasks_of_key(reader: Reader, namespace: str, key: str) -> list[Row]:
    """The tasks that were submitted with this key, the one that holds it first: the earliest.

    More than one only after a cut, when two sides were given the same key for different things.
    """
    found = reader.select("tasks", "namespace = ? AND key BETWEEN ? AND ?", (namespace, *task_ids(namespace, key)))
    tasks = [task for task in found if not task.deleted and task.text("idempotency_key") == key]
    return sorted(tasks, key=lambda task: (task.integer("created_hlc"), task.key))  # total: all nodes agree


def task_steps(reader: Reader, namespace: str, task_id: str) -> list[Row]:
    """The task's steps in the order of its definition."""
    return reader.select(
        "steps", "namespace = ? AND task_id = ? AND deleted = 0", (namespace, task_id), order="position"
    )


def record_superseded(tx: Transaction, before: Row, after: Row, *, me: str) -> None:
    """A merge replaced a result that this node had committed by another one: keep the loser visible.

    Both ran because neither could know of the other; `mesh.registers` decided, the same way on every node.
    """
    history.record(
        tx,
        before,
        Action.SUPERSEDED,
        node=me,
        outcome=before.text("status"),
        result=preview(before.blob("result") or before.text("result_ref").encode()),
        winner=after.text("owner"),
        winnerFence=Fence.of(after, after.text("owner")).encode(),
        why="another node's result won the merge"
        if before.generation == after.generation
        else "the step was replayed by a node that had not seen it",
        **describe_tie(before, after),
    )


def was_replayed(reader: Reader, step: Row) -> bool:
    """Whether a replay of this very version of an ended step is told of here."""
    return bool(
        reader.select(
            "history",
            "namespace = ? AND task_id = ? AND step_id = ? AND action = ? AND fence = ?",
            (
                step.namespace,
                step.text("task_id"),
                step.key,
                Action.REPLAYED,
                Fence.of(step, step.text("owner")).encode(),
            ),
            limit=1,
        )
    )


def record_lost(tx: Transaction, step: Row, *, me: str) -> None:
    """The process of this node that ran the step under the lease of this version has ended."""
    history.record(tx, step, Action.LOST, node=me, why="the node's process ended during the run")


def record_aborted(tx: Transaction, step: Row, *, me: str, winner: str | None) -> None:
    """The run of this node under the lease of this version is stopped: `winner` owns the step now."""
    history.record(tx, step, Action.ABORTED, node=me, winner=winner, why="its lease moved during the run")


def describe_tie(before: Row, after: Row) -> dict[str, Any]:
    """Which part of the lifecycle order decided between two versions of a step, and the two values."""
    parts: tuple[tuple[str, Callable[[Row], Any]], ...] = (
        ("generation", lambda row: row.generation),
        ("deleted", lambda row: row.deleted),
        ("rank", lambda row: row.rank),
        ("clusterEpoch", lambda row: row.cluster_epoch),
        ("leaseEpoch", lambda row: row.lease_epoch),
        ("leaseHlc", lambda row: row.lease_hlc),
        ("hlc", lambda row: row.hlc),
        ("node", lambda row: row.node),
    )
    for name, value in parts:
        if value(before) != value(after):
            return {"decidedBy": name, "loserValue": value(before), "winnerValue": value(after)}
    return {"decidedBy": "origin", "loserValue": before.seq, "winnerValue": after.seq}

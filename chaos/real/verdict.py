"""The promises that users of a real mesh rely on: each a function from evidence to the ways in which it was broken.

All of them read rows and answers only, so a verdict can be made again from a kept directory.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chaos.real.evidence import Evidence, Replica
from chaos.runs import Violation
from mesh.fences import Fence
from mesh.rows import Row
from node.work.history import Action
from node.work.status import is_runnable, step_status, task_status
from node.work.tables import Status
from node.work.transitions import is_cancel_requested

ENDS_OF_RUNS = frozenset(
    {
        Action.FAILED,
        Action.LOST,
        Action.TAKEN_OVER,
        Action.RELEASED,
        Action.ABORTED,
        Action.SUPERSEDED,
        Action.REQUEUED,
        Action.REPLAYED,
        Action.CANCELLED,
    }
)
"""What explains a run that did not give the step its present result."""

SHOWN_MAX = 10

START_S = 0.5
"""From a claim to the first line of its agent: so much later than a SUCCESS a run may still show, claimed before it."""


def judge(evidence: Evidence, at_ms: float) -> list[Violation]:
    """The violations of every promise, as seen at `at_ms`: nobody looks into the mesh before the end.

    Of each promise the first SHOWN_MAX, then how many more there are.
    """
    violations = []
    for promise in PROMISES:
        name = promise.__name__.strip("_").replace("_", "-")
        details = list(promise(evidence))
        more = [f"and {len(details) - SHOWN_MAX} more"] if len(details) > SHOWN_MAX else []
        violations += [Violation(name, at_ms, detail) for detail in [*details[:SHOWN_MAX], *more]]
    return violations


# --- the mesh as a whole ---


def _quiet_comes(evidence: Evidence) -> Iterator[str]:
    if evidence.unquiet:
        yield evidence.unquiet


def _replicas_are_equal(evidence: Evidence) -> Iterator[str]:
    (first, reference), *others = evidence.replicas.items()
    for node, replica in others:
        for name in reference.rows.keys() | replica.rows.keys():
            ours, theirs = reference.rows.get(name), replica.rows.get(name)
            if ours != theirs:
                yield f"{name}: {first} has {ours}, {node} has {theirs}"
        if reference.sums != replica.sums:
            yield f"digest sums of {first} {reference.sums} and {node} {replica.sums}"


def _databases_are_sound(evidence: Evidence) -> Iterator[str]:
    yield from evidence.damage
    for node, replica in evidence.replicas.items():
        yield from (f"{node} put aside {row}" for row in replica.quarantine)


def _queues_hold_open_steps_only(evidence: Evidence) -> Iterator[str]:
    for node, replica in evidence.replicas.items():
        for step_id, namespace in replica.queued.items():
            step = replica.rows.get(("steps", namespace, step_id))
            if step is None or step.rank or step.text("owner") != node or step_status(step) is Status.RUNNING:
                yield f"{node} queues {step_id}, which is {step}"


def _nodes_stop_and_leave_nothing(evidence: Evidence) -> Iterator[str]:
    yield from (f"{node} stopped with {code}" for node, code in evidence.exit_codes if code != 0)
    if evidence.leftovers:
        yield f"processes {evidence.leftovers} lived on"


def _logs_tell_of_no_fault(evidence: Evidence) -> Iterator[str]:
    yield from evidence.log_lines


def _every_task_is_explained(evidence: Evidence) -> Iterator[str]:
    yield from evidence.unexplained


def _refusals_are_of_the_kinds_that_faults_explain(evidence: Evidence) -> Iterator[str]:
    """A node may be away, not know a task yet, or find that a request contradicts what it has; it may not fail."""
    for refusal in evidence.ledger.refusals:
        is_full = refusal.error == "StoreError" and refusal.node in evidence.full_disks
        if not is_full and refusal.error not in ("UnavailableError", "NotFoundError", "ConflictError"):
            yield f"{refusal.node} answered {refusal.command} with {refusal.error}: {refusal.text}"


# --- tasks ---


def _acknowledged_tasks_exist_everywhere(evidence: Evidence) -> Iterator[str]:
    for told in evidence.ledger.submitted:
        for node, replica in evidence.replicas.items():
            task = replica.rows.get(("tasks", "default", told.task_id))
            if task is None or task.deleted:
                yield f"{told.task_id}, acknowledged by {told.node}, is not at {node}"
            elif len(_steps(replica)[told.task_id]) != task.integer("step_count"):
                yield f"{told.task_id} lacks steps at {node}"


def _a_node_knows_what_it_acknowledged(evidence: Evidence) -> Iterator[str]:
    """From the acknowledgement on, whatever kills the node in between."""
    told: dict[tuple[str, str], float] = {}
    for promise in evidence.ledger.submitted:
        told.setdefault((promise.node, promise.task_id), promise.at)
    for refusal in evidence.ledger.refusals:
        at = told.get((refusal.node, refusal.task_id))
        # A replay is also refused so for a step that the task does not have.
        if (
            refusal.error == "NotFoundError"
            and refusal.command != "replay"
            and at is not None
            and at < refusal.asked_at
        ):
            yield f"{refusal.node} acknowledged {refusal.task_id} at {at:.3f}, and then: {refusal.text}"


def _every_task_ends_as_its_definition_allows(evidence: Evidence) -> Iterator[str]:
    replica = _any_replica(evidence)
    may_be_cancelled = {asked.task_id for asked in evidence.ledger.cancels}
    for task_id, steps in _steps(replica).items():
        task = replica.rows["tasks", "default", task_id]
        status = task_status(task, steps)
        if not status.is_terminal:
            yield f"task {task_id} is {status}"
        by_name = {step.text("name"): step for step in steps}
        for step in steps:
            wrong = _wrong_end(step, by_name, task, fails_for_good=_fails_for_good(_work(replica, step)))
            if step_status(step) is Status.CANCELLED and task_id not in may_be_cancelled:
                wrong = "cancelled, though nobody asked for it"
            if wrong:
                yield f"step {step.key} ({step.text('name')} of {task_id}, owner {step.text('owner')}) {wrong}"


def _wrong_end(step: Row, by_name: Mapping[str, Row], task: Row, *, fails_for_good: bool) -> str:
    """What is wrong with how this step ended; empty when its definition allows it."""
    status = step_status(step)
    match status:
        case Status.RUNNING:
            return f"is stuck as {status}"
        case Status.PENDING | Status.RETRYING:
            if is_cancel_requested(task, step):
                return "waits, though its task was cancelled"
            return "waits, though it could run" if is_runnable(step, by_name) else ""
        case Status.SUCCESS:
            if fails_for_good:
                return "succeeded, though its agent always fails"
            return "" if is_runnable(step, by_name) or task.generation else "succeeded before its parents"
        case Status.DEAD_LETTER:
            poison = step.text("last_error").startswith("poison")
            return "" if fails_for_good or poison else f"is a dead letter: {step.text('last_error')}"
        case Status.CANCELLED:
            return ""


def _fails_for_good(work: Mapping[str, Any]) -> bool:
    return bool(work.get("doomed") or work.get("poison"))


def _work(replica: Replica, step: Row) -> dict[str, Any]:
    """What our own agent was told; empty for the others."""
    content = _content(replica, step, "input") if step.text("agent") == "hunted" else b""
    work: dict[str, Any] = json.loads(content) if content else {}
    return work


# --- runs ---


def _no_lease_runs_twice(evidence: Evidence) -> Iterator[str]:
    for (step_id, fence), count in collections.Counter((run.step_id, run.fence) for run in evidence.runs).items():
        if count > 1:
            yield f"step {step_id} ran {count} times under {Fence.decode(fence)}"


def _every_result_comes_from_a_run(evidence: Evidence) -> Iterator[str]:
    replica = _any_replica(evidence)
    ran = {(run.step_id, run.fence) for run in evidence.runs}
    for step in _hunted(replica):
        if step_status(step) is not Status.SUCCESS:
            continue
        fence = _result_fence(replica, step)
        if (step.key, fence) not in ran:
            yield f"the result of {step.key} names a run that no agent noted: {Fence.decode(fence)}"
        elif not _is_lease_of(Fence.of(step, step.text("owner")), Fence.decode(fence)):
            yield f"{step.key} holds a result of {Fence.decode(fence)} under {Fence.of(step, step.text('owner'))}"


def _is_lease_of(row: Fence, run: Fence) -> bool:
    """Whether a row under lease `row` may hold what a run under lease `run` came to."""
    if row == run:
        return True
    # A node that was away during the run commits under one more epoch, which it opens after it has heard from a peer.
    return (row.generation, row.node, row.lease_epoch) == (run.generation, run.node, run.lease_epoch + 1)


def _every_other_run_is_in_the_history(evidence: Evidence) -> Iterator[str]:
    replica = _any_replica(evidence)
    ends: dict[str, list[Fence]] = collections.defaultdict(list)
    for event in replica.table("history"):
        if event.text("action") in ENDS_OF_RUNS:
            ends[event.text("step_id")].append(Fence.decode(event.text("fence")))
    for run in evidence.runs:
        step = replica.rows.get(("steps", "default", run.step_id))
        if step is None:
            yield f"{run.step_id} ran on {run.node} but does not exist"
            continue
        fence = Fence.decode(run.fence)
        is_result = step_status(step) is Status.SUCCESS and _result_fence(replica, step) == run.fence
        if not is_result and not any(_is_lease_of(end, fence) for end in ends[run.step_id]):
            yield f"step {run.step_id} ran on {run.node} at {run.at:.3f} under {fence}: nothing says what became of it"


def _finished_work_stays_finished(evidence: Evidence) -> Iterator[str]:
    """A node that showed a SUCCESS shows no other status of that generation later, and starts no run of it."""
    first: dict[tuple[str, str, int], float] = {}
    for sight in sorted(evidence.ledger.sights, key=lambda each: each.at):
        name = sight.step_id, sight.node, sight.generation
        if sight.status == Status.SUCCESS:
            first.setdefault(name, sight.at)
        elif name in first and sight.asked_at > first[name]:
            yield f"{sight.node} showed {sight.step_id} as SUCCESS at {first[name]:.3f}, and then as {sight.status}"
    for run in evidence.runs:
        known = first.get((run.step_id, run.node, Fence.decode(run.fence).generation))
        if known is not None and run.at > known + START_S:
            yield f"{run.node} ran {run.step_id} at {run.at:.3f}, {run.at - known:.3f} s after it showed a SUCCESS"


def _a_cancel_that_was_answered_holds(evidence: Evidence) -> Iterator[str]:
    """A node that said `cancelled` starts no run of that task later, unless somebody asked for a replay."""
    replica = _any_replica(evidence)
    replayed = {asked.task_id for asked in evidence.ledger.replays}
    for asked in evidence.ledger.cancels:
        if asked.answer is None or asked.answer["state"] != "cancelled" or asked.task_id in replayed:
            continue
        steps = {step.key for step in _steps(replica)[asked.task_id]}
        for run in evidence.runs:
            if run.step_id in steps and run.node == asked.node and run.at > asked.at + START_S:
                yield f"{run.node} said at {asked.at:.3f} that {asked.task_id} is cancelled, and ran it at {run.at:.3f}"


def _a_result_that_was_shown_and_replaced_is_superseded(evidence: Evidence) -> Iterator[str]:
    replica = _any_replica(evidence)
    superseded = {
        (event.text("step_id"), event.text("fence"))
        for event in replica.table("history")
        if event.text("action") in (Action.SUPERSEDED, Action.REPLAYED)
    }
    shown = {(s.step_id, s.fence): s for s in evidence.ledger.sights if s.status == Status.SUCCESS}
    for (step_id, fence), sight in shown.items():
        step = replica.rows.get(("steps", "default", step_id))
        if step is None or step.generation > sight.generation:
            continue
        if fence != Fence.of(step, step.text("owner")).encode() and (step_id, fence) not in superseded:
            yield f"{sight.node} showed a SUCCESS of {step_id} under {Fence.decode(fence)}; it is gone without a word"


PROMISES: Sequence[Callable[[Evidence], Iterator[str]]] = (
    _quiet_comes,
    _replicas_are_equal,
    _databases_are_sound,
    _queues_hold_open_steps_only,
    _nodes_stop_and_leave_nothing,
    _logs_tell_of_no_fault,
    _every_task_is_explained,
    _refusals_are_of_the_kinds_that_faults_explain,
    _acknowledged_tasks_exist_everywhere,
    _a_node_knows_what_it_acknowledged,
    _every_task_ends_as_its_definition_allows,
    _no_lease_runs_twice,
    _every_result_comes_from_a_run,
    _every_other_run_is_in_the_history,
    _finished_work_stays_finished,
    _a_cancel_that_was_answered_holds,
    _a_result_that_was_shown_and_replaced_is_superseded,
)
"""The one about equal replicas stands early: those after it look at one replica and mean all."""


def _any_replica(evidence: Evidence) -> Replica:
    return next(iter(evidence.replicas.values()))


def _steps(replica: Replica) -> dict[str, list[Row]]:
    steps: dict[str, list[Row]] = collections.defaultdict(list)
    for step in replica.table("steps"):
        steps[step.text("task_id")].append(step)
    return steps


def _hunted(replica: Replica) -> list[Row]:
    return [step for step in replica.table("steps") if step.text("agent") == "hunted"]


def _content(replica: Replica, row: Row, column: str) -> bytes:
    reference = row.text(f"{column}_ref")
    if reference:
        return replica.rows["payloads", row.namespace, reference].blob("content") or b""
    return row.blob(column) or b""


def _result_fence(replica: Replica, step: Row) -> str:
    return str(json.loads(_content(replica, step, "result"))["fence"])

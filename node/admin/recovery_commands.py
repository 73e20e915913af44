"""Commands for when work went wrong: replay it, and look at dead letters."""

from __future__ import annotations

import collections
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from mesh.errors import ConfigError, RelayMeshError
from mesh.rows import Row
from node.admin.arguments import Arguments
from node.admin.export_commands import payload_view
from node.node import Node
from node.storage.reader import Reader
from node.storage.transaction import Transaction
from node.work import transitions
from node.work.causes import Cause, cause_of, failures_of, latest_ended
from node.work.replay_choice import FAILED
from node.work.status import step_status, task_status
from node.work.tables import Status
from node.work.transitions import task_steps

BATCH_MAX = 1_000
"""Tasks that one replay-batch begins anew; whoever wants more asks again."""
COMMIT_TASKS_MAX = 25
"""Of these in one commit: a task may have thousands of steps, and submits wait behind a commit."""
PAGE_INPUTS_MAX = 200
"""Dead letters with their inputs in one answer: some MiB at most."""
LOOK_ROWS_MAX = 500
"""Read in one transaction while tasks or dead letters are looked for."""


class RecoveryCommands:
    """The commands, on one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {
            "replay": self._replay,
            "replay-batch": self._replay_batch,
            "dead": self._dead,
        }

    # --- replay ---

    async def _replay(self, args: Arguments) -> dict[str, Any]:
        task_id = args.text("taskId")
        step = args.optional_text("step", chars_max=128)
        from_step = args.optional_text("fromStep", chars_max=128)
        if step is not None and from_step is not None:
            raise ConfigError("replay: give either step, for one step alone, or fromStep, for it and all below it")
        replayed = await self._node.store.write(
            lambda tx: transitions.replay(
                tx, args.namespace, task_id, me=self._node.spec.node_id, step_name=step, from_step=from_step
            )
        )
        names = [row.text("name") for row in replayed.steps]
        return {
            "taskId": task_id,
            "replayed": True,
            "steps": names,
            "notReplayed": _by_reason(replayed.left),
            "generation": max(row.generation for row in replayed.steps),
            "message": f"replaying {len(names)} step(s) at {self._node.spec.node_id}",
        }

    async def _replay_batch(self, args: Arguments) -> dict[str, Any]:
        """Replay tasks that ended badly: for each its failed steps, or those of one agent or cause."""
        status = Status(args.one_of("status", tuple(each.value for each in FAILED), Status.DEAD_LETTER.value))
        agent = args.optional_text("agent", chars_max=64)
        cause = _cause(args)
        if cause is not None and status is not Status.DEAD_LETTER:
            raise ConfigError("replay-batch: only dead letters have a cause")
        limit = args.whole("limit", 100, smallest=1, largest=BATCH_MAX)
        chosen = await self._choose(args.namespace, status, agent, cause, limit + 1)
        more, chosen = len(chosen) > limit, chosen[:limit]
        details: list[dict[str, Any]] = []
        for start in range(0, len(chosen), COMMIT_TASKS_MAX):
            page = chosen[start : start + COMMIT_TASKS_MAX]
            try:
                details += await self._node.store.write(
                    partial(_replay_page, namespace=args.namespace, page=page, me=self._node.spec.node_id)
                )
            except RelayMeshError as error:
                # Nothing of this commit is known to be stored; the pages before it are.
                rest = [task_id for task_id, _ in chosen[start:]]
                details += [_not_replayed(task_id, f"not stored: {error}") for task_id in rest[: len(page)]]
                details += [_not_replayed(task_id, "not tried: the store fails") for task_id in rest[len(page) :]]
                break
        replayed = sum(detail["replayed"] for detail in details)
        return {
            "status": status.value,
            "total": len(chosen),
            "replayed": replayed,
            "failed": len(details) - replayed,
            "more": more,
            "details": details,
        }

    async def _choose(
        self, namespace: str, status: Status, agent: str | None, cause: Cause | None, limit: int
    ) -> list[tuple[str, list[str]]]:
        """Tasks of this status with the names of those of their steps that match, latest end first."""
        found: dict[str, list[str]] = {}
        before: tuple[int, str] | None = None
        while len(found) < limit:
            page, before = await self._node.store.read(
                partial(
                    _matching, namespace=namespace, status=status, agent=agent, cause=cause, before=before, known=found
                )
            )
            found.update(page)
            if before is None:
                break
        return list(found.items())[:limit]

    # --- dead letters ---

    async def _dead(self, args: Arguments) -> dict[str, Any]:
        """A page of the dead letters, with their causes; with `withInput` also what they ran on."""
        agent, cause = args.optional_text("agent", chars_max=64), _cause(args)
        before = _place(args)
        with_input = args.raw("withInput") is True
        limit = args.whole("limit", 50, smallest=1, largest=PAGE_INPUTS_MAX if with_input else BATCH_MAX)
        rows: list[dict[str, Any]] = []
        more = True
        while more and len(rows) < limit:
            page, before, more = await self._node.store.read(
                partial(
                    _dead_page,
                    namespace=args.namespace,
                    agent=agent,
                    cause=cause,
                    before=before,
                    room=limit - len(rows),
                    with_input=with_input,
                )
            )
            rows += page
        return {
            "dead": rows,
            "byCause": dict(collections.Counter(row["cause"] for row in rows).most_common()),
            "next": None if not more or before is None else list(before),
        }


def _cause(args: Arguments) -> Cause | None:
    if args.raw("cause") is None:
        return None
    return Cause(args.one_of("cause", tuple(cause.value for cause in Cause), ""))


def _place(args: Arguments) -> tuple[int, str] | None:
    value = args.raw("before")
    if value is None:
        return None
    match value:
        case [int(stamp), str(key)] if 0 <= stamp < 1 << 63:
            return stamp, key
        case _:
            raise ConfigError("dead: before must be what `next` of an earlier answer was")


def _by_reason(left: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Which steps were left alone, by why."""
    reasons: dict[str, list[str]] = {}
    for name, why in left:
        reasons.setdefault(why, []).append(name)
    return [{"why": why, "steps": names} for why, names in reasons.items()]


# --- replay-batch ---


def _matching(
    reader: Reader,
    *,
    namespace: str,
    status: Status,
    agent: str | None,
    cause: Cause | None,
    before: tuple[int, str] | None,
    known: dict[str, list[str]],
) -> tuple[dict[str, list[str]], tuple[int, str] | None]:
    """Tasks among the next LOOK_ROWS_MAX failed steps, and where to go on; None when that was all."""
    page = latest_ended(reader, namespace, status, limit=LOOK_ROWS_MAX, before=before)
    found: dict[str, list[str]] = {}
    looked = dict.fromkeys(known)
    for row in page:
        task_id = row.text("task_id")
        if task_id in looked or not _matches(reader, row, agent, cause):
            continue
        looked[task_id] = None
        task = reader.get("tasks", namespace, task_id)
        steps = task_steps(reader, namespace, task_id)
        if task is None or task.deleted or task_status(task, steps) is not status:
            continue
        found[task_id] = [
            step.text("name")
            for step in steps
            if step_status(step) in FAILED and (_has_no_filter(agent, cause) or _matches(reader, step, agent, cause))
        ]
    is_last = len(page) < LOOK_ROWS_MAX
    return found, None if is_last else (page[-1].hlc, page[-1].key)


def _has_no_filter(agent: str | None, cause: Cause | None) -> bool:
    return agent is None and cause is None


def _matches(reader: Reader, step: Row, agent: str | None, cause: Cause | None) -> bool:
    if agent is not None and step.text("agent") != agent:
        return False
    return cause is None or (
        step_status(step) is Status.DEAD_LETTER and cause_of(step, failures_of(reader, step)) is cause
    )


def _replay_page(
    tx: Transaction, *, namespace: str, page: Sequence[tuple[str, list[str]]], me: str
) -> list[dict[str, Any]]:
    details = []
    for task_id, names in page:
        try:
            replayed = transitions.replay(tx, namespace, task_id, me=me, failed=names)
        except RelayMeshError as error:  # it refuses before it writes, so the others of this commit go on
            details.append(_not_replayed(task_id, str(error)))
            continue
        details.append(
            {
                "taskId": task_id,
                "replayed": True,
                "steps": [row.text("name") for row in replayed.steps],
                "message": f"replaying {len(replayed.steps)} step(s) at {me}",
            }
        )
    return details


def _not_replayed(task_id: str, why: str) -> dict[str, Any]:
    return {"taskId": task_id, "replayed": False, "steps": [], "message": why}


# --- dead letters ---


def _dead_page(
    reader: Reader,
    *,
    namespace: str,
    agent: str | None,
    cause: Cause | None,
    before: tuple[int, str] | None,
    room: int,
    with_input: bool,
) -> tuple[list[dict[str, Any]], tuple[int, str] | None, bool]:
    """Some that match, where to go on, and whether there is more to look at."""
    page = latest_ended(reader, namespace, Status.DEAD_LETTER, limit=LOOK_ROWS_MAX, before=before)
    views: list[dict[str, Any]] = []
    for step in page:
        if agent is not None and step.text("agent") != agent:
            before = step.hlc, step.key
            continue
        failures = failures_of(reader, step)
        its_cause = cause_of(step, failures)
        if cause is None or its_cause is cause:
            if len(views) == room:
                return views, before, True
            views.append(_dead_view(reader, step, its_cause, with_input=with_input))
        before = step.hlc, step.key
    return views, before, len(page) == LOOK_ROWS_MAX


def _dead_view(reader: Reader, step: Row, cause: Cause, *, with_input: bool) -> dict[str, Any]:
    view: dict[str, Any] = {
        "taskId": step.text("task_id"),
        "stepId": step.key,
        "step": step.text("name"),
        "agentId": step.text("agent"),
        "cause": cause.value,
        "attempts": step.integer("attempt"),
        "generation": step.generation,
        "owner": step.text("owner"),
        "createdAtMs": step.integer("created_hlc") >> 16,
        "diedAtMs": step.hlc >> 16,
        "lastError": step.text("last_error") or None,
    }
    return view | payload_view(reader, step, "input") if with_input else view

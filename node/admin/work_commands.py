"""Commands about work: submit, look, wait, cancel, explain."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio

from mesh.errors import ConfigError, UnavailableError
from mesh.membership import Status as MemberStatus
from mesh.placement import Requirement, able
from mesh.rows import Row
from node.admin.arguments import Arguments
from node.admin.batch import Asked, batch_answer, read_tasks, store_tasks
from node.admin.situation import members_away, read_stored, situation_of
from node.node import Node, limits_of
from node.storage.reader import Reader
from node.storage.store import Commit
from node.work import transitions
from node.work.definition import (
    ATTEMPTS_MAX,
    DELAY_MS_MAX,
    KEY_CHARS_MAX,
    NOT_BEFORE_MS_MAX,
    TIMEOUT_MS_MAX,
    Definition,
    Limits,
    StepDefinition,
    parse_labels,
    parse_partition_policy,
    parse_pin,
    parse_priority,
    parse_workflow,
    single,
)
from node.work.disk_budget import database_bytes
from node.work.explain import explain_step
from node.work.history import Action
from node.work.status import is_partial, step_status, task_status
from node.work.tables import Status
from node.work.transitions import existing_task, task_steps, tasks_of_key
from node.work.unknown_ids import unknown_id
from node.work.views import (
    event_view,
    payload_fields,
    task_result,
    task_version,
    task_view,
    watched_view,
    workflow_view,
)

log = logging.getLogger(__name__)

LIST_MAX = 1000
WAIT_MS_MAX = 24 * 3600 * 1000
REPLICAS_TIMEOUT_MS = 5000
CANCEL_WAIT_S = 3.0
"""How long `cancel` waits for owners to obey before it answers `requested`."""
DEPTH_AGE_S = 1.0
"""The queue's depth and the database's size are read for admission at most this often: counting a queue costs."""


class WorkCommands:
    """The commands, on one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._watched: dict[str, list[trio.Event]] = {}
        """By task id, one event for each request that waits for a change of it."""
        self._depth = 0
        self._database_bytes = 0
        self._depth_at = float("-inf")
        self._rate_window = (0, 0)
        node.store.on_commit(self._on_commit)

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {
            "submit": self._submit,
            "submit-workflow": self._submit_workflow,
            "submit-batch": self._submit_batch,
            "task": self._task,
            "tasks": self._tasks,
            "workflow": self._workflow,
            "result": self._result,
            "wait": self._wait,
            "watch": self._watch,
            "cancel": self._cancel,
            "explain": self._explain,
            "logs": self._logs,
        }

    # --- submit ---

    def _limits(self) -> Limits:
        return limits_of(self._node.spec.settings)

    async def _submit(self, args: Arguments) -> dict[str, Any]:
        agent = args.text("agent", chars_max=64)
        step = StepDefinition(
            name=agent,
            agent=agent,
            payload=args.payload("input"),
            priority=parse_priority(args.raw("priority") or "normal", "submit"),
            timeout_ms=args.whole("timeoutMs", 0, largest=TIMEOUT_MS_MAX),
            max_attempts=args.whole("maxAttempts", 0, largest=ATTEMPTS_MAX),
            node=parse_pin(args.raw("node"), "submit"),
            labels=parse_labels(args.raw("labels") or {}, "submit"),
            waits=parse_partition_policy(args.raw("onPartition") or "takeover", "submit"),
            delay_ms=args.whole("delayMs", 0, largest=DELAY_MS_MAX),
            not_before_ms=args.whole("notBeforeMs", 0, largest=NOT_BEFORE_MS_MAX),
            expires_ms=args.whole("expiresMs", 0, largest=DELAY_MS_MAX),
        )
        return await self._accept(args, single(step, self._limits()))

    async def _submit_workflow(self, args: Arguments) -> dict[str, Any]:
        return await self._accept(args, parse_workflow(args.raw("definition"), self._limits()))

    async def _accept(self, args: Arguments, definition: Definition) -> dict[str, Any]:
        node = self._node
        key = args.optional_text("idempotencyKey", chars_max=KEY_CHARS_MAX) or node.env.entropy(16).hex()
        replicas = args.whole("replicas", 0, largest=100)
        replicas_timeout_ms = args.whole("replicasTimeoutMs", REPLICAS_TIMEOUT_MS, largest=600_000)
        self._check_agents(definition.agents())
        await self._admit(len(definition.steps))
        trace_id, members = node.env.entropy(16).hex(), self._members()
        submitted = await node.store.write(
            lambda tx: transitions.submit(
                tx,
                me=node.spec.node_id,
                namespace=args.namespace,
                key=key,
                definition=definition,
                trace_id=trace_id,
                members=members,
            )
        )
        replicated = await node.replicate(replicas, replicas_timeout_ms / 1000) if replicas else []
        return {
            "taskId": submitted.task_id,
            "deduplicated": submitted.deduplicated,
            "idempotencyKey": key,
            "traceId": submitted.trace_id,
            "replicated": len(replicated),
            "replicasWanted": replicas,
            "message": _submit_message(submitted.deduplicated, len(replicated), replicas) + self._will_wait(definition),
        }

    async def _submit_batch(self, args: Arguments) -> dict[str, Any]:
        node = self._node
        asked = read_tasks(node, args, self._limits(), self._check_agents)
        replicas = args.whole("replicas", 0, largest=100)
        replicas_timeout_ms = args.whole("replicasTimeoutMs", REPLICAS_TIMEOUT_MS, largest=600_000)
        await self._admit(sum(len(each.definition.steps) for each in asked if isinstance(each, Asked)))
        results = await node.store.write(
            partial(store_tasks, me=node.spec.node_id, namespace=args.namespace, asked=asked, members=self._members())
        )
        replicated = await node.replicate(replicas, replicas_timeout_ms / 1000) if replicas else []
        return batch_answer(results, len(replicated), replicas)

    def _members(self) -> list[str]:
        """All that belong to the mesh, also those that are away: whoever left does not."""
        return [member.node_id for member in self._node.gossip.members.all() if member.status is not MemberStatus.LEFT]

    def _will_wait(self, definition: Definition) -> str:
        """A word about a step that no member can run now: it is accepted, but a typing error should show at once."""
        mine = self._node.offer()
        for step in definition.steps:
            requirement = Requirement(ability=step.agent, node=step.node, labels=step.labels)
            # Our own offer first: it is at hand, and in most submits the answer.
            if mine.misses(requirement) is None:
                continue
            if not able(self._node.ownership.usable_offers(), requirement):
                return f"; no member can run step {step.name!r} now, it waits for one that can (see explain)"
        return ""

    def _check_agents(self, names: Sequence[str]) -> None:
        """Refuse an agent that no node of this mesh ever announced: a typing error would wait for ever."""
        offers = self._node.ownership.all_offers().values()
        for name in names:
            if not any(name in offer.abilities for offer in offers):
                known = sorted({each for offer in offers for each in offer.abilities})
                raise ConfigError(
                    f"no node of this mesh has an agent {name!r}; known agents: {', '.join(known)}. Start a node with "
                    "`--agents FILE.py` or an entry in agents/scripts.json that defines it"
                )

    async def _admit(self, steps: int) -> None:
        node, settings = self._node, self._node.spec.settings
        if node.store.failed:
            raise UnavailableError("this node's store fails: submit to another peer with --peer HOST:PORT")
        if settings.min_free_disk_bytes and node.env.disk.free_bytes() < settings.min_free_disk_bytes:
            raise UnavailableError(
                "disk_pressure: less disk is free here than minFreeDiskBytes: submit to another peer"
            )
        now = node.env.clock.monotonic()
        if settings.submit_rate_limit_per_min:
            window, count = self._rate_window
            minute = int(now // 60)
            count = (count if window == minute else 0) + steps
            if count > settings.submit_rate_limit_per_min:
                raise UnavailableError(
                    f"submit_rate_limit: more than {settings.submit_rate_limit_per_min} steps a minute "
                    f"(submitRateLimitPerMin): try again in {60 - now % 60:.0f} s",
                    retry_after_ms=int((60 - now % 60) * 1000) + 1,
                )
            self._rate_window = (minute, count)
        if now - self._depth_at > DEPTH_AGE_S:
            self._depth_at = now
            self._depth, self._database_bytes = await node.store.read(
                lambda reader: (_queue_depth(reader), database_bytes(reader))
            )
        if self._depth + steps > settings.max_ingress_queue_depth:
            raise UnavailableError(
                f"queue_depth_limit: {self._depth} steps wait here (maxIngressQueueDepth "
                f"{settings.max_ingress_queue_depth}): try again later, or at another peer",
                retry_after_ms=int(DEPTH_AGE_S * 1000),
            )
        budget = node.disk_budget.refusal(self._database_bytes)
        if budget is not None:
            raise UnavailableError(
                f"disk_budget: {budget}: try again in some minutes, or raise the budget",
                retry_after_ms=settings.retention_interval_ms,
            )

    # --- look ---

    async def _task(self, args: Arguments) -> dict[str, Any]:
        view = await self._node.store.read(lambda reader: task_view(reader, *_load(reader, args)))
        self._node.runtime.add_progress(view["steps"])
        return view

    async def _tasks(self, args: Arguments) -> list[dict[str, Any]]:
        wanted = args.optional_text("status")
        if wanted is not None and wanted.upper() not in Status.__members__:
            raise ConfigError(f"tasks: status must be one of {', '.join(Status.__members__)}")
        limit = args.whole("limit", 50, smallest=1, largest=LIST_MAX)
        offset = args.whole("offset", 0, largest=10_000_000)
        return await self._node.store.read(
            lambda reader: _list_tasks(reader, args.namespace, wanted.upper() if wanted else None, limit, offset)
        )

    async def _workflow(self, args: Arguments) -> dict[str, Any]:
        view = await self._node.store.read(lambda reader: workflow_view(reader, *_load(reader, args)))
        self._node.runtime.add_progress(view["steps"])
        return view

    async def _result(self, args: Arguments) -> dict[str, Any]:
        return await self._node.store.read(lambda reader: _result_view(reader, *_load(reader, args)))

    async def _wait(self, args: Arguments) -> dict[str, Any]:
        """The task once it has ended, or as it is when the time is up."""
        task_id = args.text("taskId")
        timeout_ms = args.whole("timeoutMs", 30_000, largest=WAIT_MS_MAX)
        with trio.move_on_after(timeout_ms / 1000):
            await self._wait_until(args, lambda task, steps: task_status(task, steps) in _ENDED and _is_settled(steps))
        view = await self._task(args)
        view["timedOut"] = Status(view["status"]) not in _ENDED
        log.debug("waited for %s: %s", task_id, view["status"])
        return view

    async def _watch(self, args: Arguments) -> dict[str, Any]:
        """The task as soon as its version is another than `seen`, or as it is when the time is up."""
        seen = args.optional_text("seen")
        timeout_ms = args.whole("timeoutMs", 30_000, largest=WAIT_MS_MAX)
        with trio.move_on_after(timeout_ms / 1000):
            await self._wait_until(args, lambda task, steps: task_version(task, steps) != seen)
        return await self._node.store.read(lambda reader: watched_view(reader, *_load(reader, args)))

    async def _wait_until(self, args: Arguments, condition: Callable[[Row, list[Row]], bool]) -> None:
        task_id = args.text("taskId")
        while True:
            changed = trio.Event()
            self._watched.setdefault(task_id, []).append(changed)
            try:
                task, steps = await self._node.store.read(lambda reader: _load(reader, args))
                if condition(task, steps):
                    return
                await changed.wait()
            finally:
                self._unwatch(task_id, changed)

    def _unwatch(self, task_id: str, changed: trio.Event) -> None:
        # Whatever ended the wait: a task that never changes again must leave nothing behind.
        waiting = self._watched.get(task_id, [])
        if changed in waiting:
            waiting.remove(changed)
            if not waiting:
                del self._watched[task_id]

    def _on_commit(self, commit: Commit) -> None:
        if not self._watched:
            return
        for change in commit.changes:
            row = change.after
            task_id = row.key if row.table == "tasks" else row.text("task_id") if row.table == "steps" else ""
            for event in self._watched.pop(task_id, ()):
                event.set()

    # --- change ---

    async def _cancel(self, args: Arguments) -> dict[str, Any]:
        mode = args.one_of("mode", ("hard", "soft"), "hard")
        reason = args.text("reason", "no reason given", chars_max=1024)
        task_id = args.text("taskId")
        still_open = await self._node.store.write(
            lambda tx: transitions.request_cancel(tx, args.namespace, task_id, mode=mode, reason=reason)
        )
        if not still_open:
            status = task_status(*await self._node.store.read(lambda reader: _load(reader, args)))
            if status.is_terminal and status is not Status.CANCELLED:
                return _cancel_answer(task_id, "too_late", mode, f"the task had already ended as {status}")
        with trio.move_on_after(CANCEL_WAIT_S):
            await self._wait_until(args, lambda _task, steps: all(step_status(step).is_terminal for step in steps))
        task, steps = await self._node.store.read(lambda reader: _load(reader, args))
        waiting = [step for step in steps if not step_status(step).is_terminal]
        if not waiting and is_partial(task, steps):
            return _cancel_answer(
                task_id, "requested", mode, "steps of this task have not come to this node: their owners will obey"
            )
        if not waiting:
            status = task_status(task, steps)
            if status is Status.CANCELLED:
                return _cancel_answer(task_id, "cancelled", mode, "cancelled")
            return _cancel_answer(
                task_id, "too_late", mode, f"the task ended as {status} before its owners heard of it"
            )
        return _cancel_answer(task_id, "requested", mode, self._who_must_obey(waiting, mode))

    def _who_must_obey(self, steps: Sequence[Row], mode: str) -> str:
        owners = sorted({step.text("owner") for step in steps})
        alive = {self._node.spec.node_id, *self._node.loop.alive_peers()}
        away = [owner for owner in owners if owner not in alive]
        if away:
            return f"requested; not reachable now: {', '.join(away)}. The cancel holds: whoever owns it next obeys"
        return f"requested; {', '.join(owners)} still ends {len(steps)} step(s)" + (
            " (soft: a running attempt may finish)" if mode == "soft" else ""
        )

    # --- tell ---

    async def _explain(self, args: Arguments) -> dict[str, Any]:
        """The story of a task, or of the one step whose id was given."""
        asked = args.text("taskId")
        task, steps, history = await self._story(args, asked)
        situation = situation_of(self._node, await self._node.store.read(partial(read_stored, steps=steps)))
        rivals = await self._node.store.read(lambda reader: _key_rivals(reader, task))
        told = [explain_step(step, steps, history, situation, task) for step in steps if asked in (task.key, step.key)]
        return {
            "taskId": task.key,
            "status": task_status(task, steps).value,
            "seenFrom": self._node.spec.node_id,
            "summary": _summary(task, steps, rivals),
            "keyConflicts": rivals,
            "steps": told,
            "events": [event_view(row) for row in history],
        }

    async def _story(self, args: Arguments, asked: str) -> tuple[Row, list[Row], list[Row]]:
        away = members_away(self._node.gossip.members.all())
        return await self._node.store.read(lambda reader: _story(reader, args.namespace, asked, away))

    async def _logs(self, args: Arguments) -> list[dict[str, Any]]:
        step = args.optional_text("step", chars_max=128)
        limit = args.whole("limit", 100, smallest=1, largest=LIST_MAX)
        _, steps, history = await self._story(args, args.text("taskId"))
        names = {row.key: row.text("name") for row in steps}
        lines = [
            {**event_view(row), "step": names.get(row.text("step_id"))}
            for row in history
            if row.text("action") in (Action.LOGGED, Action.FAILED)
            and (step is None or names.get(row.text("step_id")) == step)
        ]
        return lines[-limit:]


_ENDED = (Status.SUCCESS, Status.DEAD_LETTER, Status.CANCELLED)


def _is_settled(steps: Sequence[Row]) -> bool:
    return all(step_status(step) is not Status.RUNNING for step in steps)


def _submit_message(deduplicated: bool, replicated: int, wanted: int) -> str:
    message = "the same task was submitted before; this is it" if deduplicated else "accepted, durable at this node"
    if not wanted:
        return message
    if replicated >= wanted:
        return f"{message}, and at {replicated} other node(s)"
    return f"{message}, {replicated} of {wanted} replicas so far; it replicates on as peers can be reached"


def _cancel_answer(task_id: str, state: str, mode: str, message: str) -> dict[str, Any]:
    return {"taskId": task_id, "cancelled": state == "cancelled", "state": state, "mode": mode, "message": message}


def _load(reader: Reader, args: Arguments) -> tuple[Row, list[Row]]:
    task = existing_task(reader, args.namespace, args.text("taskId"))
    return task, task_steps(reader, args.namespace, task.key)


def _story(reader: Reader, namespace: str, asked: str, away: Sequence[str]) -> tuple[Row, list[Row], list[Row]]:
    step = reader.get("steps", namespace, asked) if asked.startswith("stp_") else None
    task = reader.get("tasks", namespace, asked if step is None else step.text("task_id"))
    if task is None or task.deleted:
        raise unknown_id(reader, namespace, asked, away)
    history = reader.select("history", "namespace = ? AND task_id = ?", (namespace, task.key), order="hlc")
    return task, task_steps(reader, namespace, task.key), history


def _list_tasks(reader: Reader, namespace: str, wanted: str | None, limit: int, offset: int) -> list[dict[str, Any]]:
    """Newest first. A status is a fold over steps, so a filter reads on until enough tasks match."""
    found: list[dict[str, Any]] = []
    skipped = start = 0
    while len(found) < limit:
        page = reader.select(
            "tasks",
            "namespace = ? AND deleted = 0",
            (namespace,),
            order=f"created_hlc DESC LIMIT 200 OFFSET {start}",
        )
        if not page:
            break
        start += len(page)
        for task in page:
            steps = task_steps(reader, namespace, task.key)
            if wanted is not None and task_status(task, steps) != wanted:
                continue
            if skipped < offset:
                skipped += 1
                continue
            found.append(task_view(reader, task, steps, with_steps=False))
            if len(found) == limit:
                break
    return found


def _result_view(reader: Reader, task: Row, steps: list[Row]) -> dict[str, Any]:
    status = task_status(task, steps)
    view: dict[str, Any] = {"taskId": task.key, "status": status.value}
    if status is Status.SUCCESS:
        return {**view, **task_result(reader, steps)}
    errors = [step.text("last_error") for step in steps if step.text("last_error")]
    return {**view, **payload_fields("lastError", (errors[0] if errors else "").encode())}


def _queue_depth(reader: Reader) -> int:
    ((depth,),) = reader.sql("SELECT count(*) FROM queue")
    return int(depth)


def _key_rivals(reader: Reader, task: Row) -> list[dict[str, Any]]:
    """Other tasks with this task's key: made on two sides of a cut with different definitions, both kept."""
    rows = tasks_of_key(reader, task.namespace, task.text("idempotency_key"))
    if len(rows) < 2:
        return []
    return [{"taskId": row.key, "holdsKey": position == 0} for position, row in enumerate(rows)]


def _summary(task: Row, steps: Sequence[Row], rivals: Sequence[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for step in steps:
        counts[step.text("status")] = counts.get(step.text("status"), 0) + 1
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    text = f"{len(steps)} step(s): {told}."
    if missing := max(0, task.integer("step_count") - len(steps)):
        text += (
            f" {missing} more have not come to this node: another node may have them, or they went with the disk of "
            f"{task.node}; if so, cancel the task."
        )
    if task.rank:
        text += f" A {task.text('cancel_mode')} cancel was requested: {task.text('cancel_reason')}."
    if rivals:
        holder = next(rival["taskId"] for rival in rivals if rival["holdsKey"])
        text += (
            f" {len(rivals)} tasks were made with the key {task.text('idempotency_key')!r} on sides that could not "
            f"hear each other; {holder} holds the key."
        )
    return text

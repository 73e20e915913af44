"""A node in this process, for tests of users: it answers the commands about work and runs what is submitted.

Every rule is the product's own: definitions, transitions, the queue, retries and the fold of statuses. Only what is
around them is left out: disk, peers, processes, and waiting. One node stands for all: it runs every agent that this
process has decorated, and the built-in ones, and passes for any node id and any labels.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import secrets
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import trio
import trio.testing

from mesh.errors import ConfigError, ConflictError
from mesh.placement import Offer, Requirement
from mesh.rows import Row
from node.agents import api
from node.agents.api import AgentSpec
from node.agents.builtin_agents import BUILTINS, builtin_infos
from node.agents.handlers import Handler
from node.agents.host_link import encode_checkpoint
from node.agents.host_pool import run_of
from node.client.memory_store import MemoryStore
from node.env import AgentInfo, Outcome
from node.storage.reader import Reader
from node.storage.transaction import Hook, Transaction
from node.work import transitions
from node.work.definition import KEY_CHARS_MAX, Definition, Limits, parse_workflow, single
from node.work.priorities import PriorityWheel
from node.work.retries import RetryPolicy
from node.work.tables import Status
from node.work.transitions import Claimed, existing_task, task_steps
from node.work.views import task_view, watched_view
from node.work.work_queue import WorkQueue, expired_entries, next_due_ms, next_entry, ripen

T = TypeVar("T")

NODE_ID = "memory"
RESULT_BYTES_MAX = 10 * 1024 * 1024
TIMEOUT_S = 60.0
"""What a handler is told; in memory nobody ends it."""
_LIFE = 1
_EXPIRED_MAX = 1_000


class _Anywhere(Offer):
    """An offer that any place satisfies, so that tests need no mesh that looks like the one in production."""

    def misses(self, requirement: Requirement) -> str | None:
        return super().misses(Requirement(ability=requirement.ability))


class MemoryWorker:
    """Answers `ask` and runs steps, one at a time, in the order in which a node would start them."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._queue = WorkQueue(NODE_ID, self._offer)
        hooks: dict[str, list[Hook]] = {"steps": [self._queue.on_step], "tasks": [self._on_task]}
        self.store = MemoryStore(NODE_ID, hooks)
        self._wheel = PriorityWheel()
        self._rng = random.Random(0)  # the same test waits as long, in virtual time, at every run
        self._commands: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
            "submit": self._submit,
            "submit-workflow": self._submit_workflow,
            "task": lambda args: self._view(task_view, args),
            "wait": self._wait,
            "watch": self._watch,
            "cancel": self._cancel,
            "replay": self._replay,
        }

    def ask(self, command: str, args: Mapping[str, Any]) -> Any:
        """The answer of a node to an admin command, in the same form (node/admin/work_commands.py)."""
        return self._commands[command](args)

    # --- submit ---

    def _submit(self, args: Mapping[str, Any]) -> Any:
        asked = {key: args[key] for key in args if key not in ("input", "idempotencyKey", "replicas")}
        (step,) = parse_workflow({"steps": [{**asked, "id": asked["agent"]}]}, Limits()).steps
        return self._accept(single(dataclasses.replace(step, payload=args["input"]), Limits()), args)

    def _submit_workflow(self, args: Mapping[str, Any]) -> Any:
        return self._accept(parse_workflow(args["definition"], Limits()), args)

    def _accept(self, definition: Definition, args: Mapping[str, Any]) -> Any:
        key = args["idempotencyKey"]
        if not 0 < len(key) <= KEY_CHARS_MAX:
            raise ConfigError(f"idempotencyKey must be a text of 1 to {KEY_CHARS_MAX} characters")
        known = self._agents()
        for name in definition.agents():
            if name not in known:
                raise ConfigError(
                    f"this process has no agent {name!r}; known agents: {', '.join(sorted(known))}. Import the module "
                    "whose @agent functions the test needs"
                )
        # There is no cut to wait for in memory, and no majority to ask.
        here = Definition(tuple(dataclasses.replace(step, waits=False) for step in definition.steps))
        submitted = self.store.write(
            lambda tx: transitions.submit(
                tx,
                me=NODE_ID,
                namespace=self._namespace,
                key=key,
                definition=here,
                trace_id=secrets.token_hex(16),
            )
        )
        return {"taskId": submitted.task_id, "deduplicated": submitted.deduplicated}

    # --- look and change ---

    def _load(self, reader: Reader, args: Mapping[str, Any]) -> tuple[Row, list[Row]]:
        task = existing_task(reader, self._namespace, args["taskId"])
        return task, task_steps(reader, self._namespace, task.key)

    def _view(self, view: Callable[[Reader, Row, list[Row]], dict[str, Any]], args: Mapping[str, Any]) -> Any:
        return self.store.read(lambda reader: view(reader, *self._load(reader, args)))

    def _wait(self, args: Mapping[str, Any]) -> Any:
        """Run steps until the task has ended. Without a limit, ConflictError when it cannot end."""
        timeout_ms = args.get("timeoutMs")
        until_ms = None if timeout_ms is None else self.store.now_ms + timeout_ms
        while not (ended := self._view(watched_view, args)["ended"]) and self.run_next(until_ms):
            pass
        if not ended and until_ms is None:
            raise self._stuck(args)
        if not ended and until_ms is not None:
            self.store.now_ms = max(self.store.now_ms, until_ms)
        return {**self._view(task_view, args), "timedOut": not ended}

    def _watch(self, args: Mapping[str, Any]) -> Any:
        while (view := self._view(watched_view, args))["version"] == args.get("seen"):
            if not self.run_next(None):
                raise self._stuck(args)
        return view

    def _stuck(self, args: Mapping[str, Any]) -> ConflictError:
        status = self._view(task_view, args)["status"]
        return ConflictError(f"task {args['taskId']} is {status}, and nothing is left to run that could end it")

    def _cancel(self, args: Mapping[str, Any]) -> Any:
        mode, reason = args["mode"], args.get("reason", "no reason given")
        request = partial(transitions.request_cancel, namespace=self._namespace, task_id=args["taskId"])
        self.store.write(lambda tx: request(tx, mode=mode, reason=reason))
        status = Status(self._view(task_view, args)["status"])
        if status is Status.CANCELLED:
            return {"state": "cancelled"}
        return {"state": "too_late" if status.is_terminal else "requested"}

    def _replay(self, args: Mapping[str, Any]) -> Any:
        _, before = self.store.read(lambda reader: self._load(reader, args))
        generations = {step.key: step.generation for step in before}
        self.store.write(
            lambda tx: transitions.replay(tx, self._namespace, args["taskId"], me=NODE_ID, step_name=args.get("step"))
        )
        _, after = self.store.read(lambda reader: self._load(reader, args))
        return {"steps": [step.text("name") for step in after if step.generation > generations[step.key]]}

    def _on_task(self, tx: Transaction, _before: Row | None, after: Row) -> None:
        transitions.obey_cancel(tx, after, me=NODE_ID)

    # --- run ---

    def run_next(self, until_ms: int | None) -> bool:
        """End what has expired, or run one attempt after the wait for it; False when there is nothing to do.

        With `until_ms`, only one that is due by then.
        """
        if self.store.write(self._expire):
            return True
        claimed = self.store.write(self._claim)
        if claimed is None:
            due_ms = self.store.read(partial(next_due_ms, after_ms=self.store.now_ms))
            if due_ms is None or (until_ms is not None and due_ms > until_ms):
                return False
            self.store.now_ms = due_ms
            return True
        outcome = self._run(claimed)
        step, info = claimed.step, self._agents().get(claimed.job.agent)
        policy = RetryPolicy().of_step(step.integer("max_attempts"), info)
        self.store.write(
            lambda tx: transitions.finish(tx, step, outcome, me=NODE_ID, policy=policy, rng=self._rng, reopen=False)
        )
        return True

    def _expire(self, tx: Transaction) -> int:
        found = expired_entries(tx, now_ms=tx.now_ms, limit=_EXPIRED_MAX)
        return sum(transitions.expire(tx, entry, me=NODE_ID) is not None for entry in found)

    def _claim(self, tx: Transaction) -> Claimed | None:
        ripen(tx, now_ms=tx.now_ms)
        while True:
            found = next_entry(tx, priorities=self._wheel.order(), now_ms=tx.now_ms, full_agents=(), fresh_after=None)
            if found is None:
                return None
            entry, priority = found
            claimed = transitions.claim(tx, entry, me=NODE_ID, life=_LIFE, timeout_s=_timeout_s)
            if claimed is not None:
                self._wheel.claimed(priority)
                return claimed

    def _run(self, claimed: Claimed) -> Outcome:
        job = claimed.job
        if job.agent in BUILTINS:
            clock = trio.testing.MockClock(autojump_threshold=0)
            return _outside_loops(lambda: trio.run(BUILTINS[job.agent], job, clock=clock))
        spec = api.registered.get(job.agent)
        if spec is None:
            return Outcome(kind="failed", error=f"this process has no agent {job.agent!r} any more")
        handler = Handler(spec, result_bytes_max=RESULT_BYTES_MAX)
        link = _Link(self.store, claimed.step)
        done = _outside_loops(lambda: handler.run(run_of(job), link))
        return Outcome(kind=done.kind, result=done.result, error=done.error, snooze_ms=done.snooze_ms)

    def _agents(self) -> dict[str, AgentInfo]:
        infos = {info.name: info for info in builtin_infos()}
        return {**infos, **{name: _info(spec) for name, spec in api.registered.items()}}

    def _offer(self) -> Offer:
        return _Anywhere(node=NODE_ID, abilities=frozenset(self._agents()))


class _Link:
    """What carries a context's calls to the rows. Progress is shown by nodes only."""

    def __init__(self, store: MemoryStore, step: Row) -> None:
        self._store = store
        self._step = step

    def report(self, turn: int, fraction: float, text: str) -> None:
        """See node.agents.api.Link."""

    def save(self, turn: int, value: Any) -> None:
        """See node.agents.api.Link."""
        content = encode_checkpoint(value)
        self._store.write(lambda tx: transitions.checkpoint(tx, self._step, content, me=NODE_ID))

    def cancelled(self, turn: int) -> bool:
        """See node.agents.api.Link."""
        task = self._store.read(lambda reader: reader.get("tasks", self._step.namespace, self._step.text("task_id")))
        return task is not None and transitions.is_cancel_requested(task, self._step)


def _timeout_s(agent: str, step_timeout_ms: int) -> float:
    spec = api.registered.get(agent)
    return step_timeout_ms / 1000 or (spec.timeout_s if spec is not None else None) or TIMEOUT_S


def _info(spec: AgentSpec) -> AgentInfo:
    return AgentInfo(
        name=spec.name,
        kind="python",
        timeout_s=spec.timeout_s,
        max_attempts=spec.retry.max_attempts,
        base_backoff_ms=spec.retry.base_ms,
        max_backoff_ms=spec.retry.max_ms,
        concurrency=spec.concurrency,
    )


def _outside_loops(call: Callable[[], T]) -> T:
    """The result of `call`, which may start an event loop of its own: in a thread where one runs here already."""
    if not _in_a_loop():
        return call()
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(call()), name="relaymesh-memory")
    thread.start()
    thread.join()
    return results[0]


def _in_a_loop() -> bool:
    if trio.lowlevel.in_trio_run():
        return True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

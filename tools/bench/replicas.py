"""What several benchmarks need: running stores, with a node's rules and queue, and finished tasks to fill them with."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import trio

from mesh.ids import make_life
from mesh.placement import Offer
from mesh.tables import Table
from node.env import Clock, Env, Net, Outcome, StoreThread
from node.real_env import DedicatedThread, LocalDisk, SystemClock
from node.storage.migrate import Migration
from node.storage.store import Store
from node.storage.transaction import Transaction
from node.work import row_rules, transitions
from node.work.definition import Definition, StepDefinition, step_id
from node.work.retries import RetryPolicy
from node.work.tables import WORK_TABLES
from node.work.work_queue import Queued, WorkQueue

T = TypeVar("T")
Dot = tuple[int, int]
"""Origin number and sequence number."""

NAMESPACE = "default"
ROWS_PER_TASK = 2
"""A task's and its step's: a clean first run leaves no other."""
_AGENT = "echo"
_DEFINITION = Definition((StepDefinition(name=_AGENT, agent=_AGENT, payload=b"x" * 64, labels={}),))
_RESULT = Outcome(kind="success", result=b"x" * 64)
_POLICY = RetryPolicy(max_attempts=3, base_backoff_ms=1_000, max_backoff_ms=60_000)
_LIFE = make_life(1, 1)
_AT_ONCE = 500
"""Requests under way: a commit takes about as many."""


class InlineThread:
    """Runs database calls in the loop's own thread, so that virtual time stands still meanwhile."""

    async def run(self, fn: Callable[[], T]) -> T:
        """The result of `fn`."""
        await trio.lowlevel.cancel_shielded_checkpoint()
        return fn()

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A running store, and the env that it runs on."""

    name: str
    env: Env
    store: Store


@asynccontextmanager
async def running_replica(
    root: Path,
    *,
    net: Net | None = None,
    clock: Clock | None = None,
    inline: bool = False,
    tables: Sequence[Table] = WORK_TABLES,
    migrations: Sequence[Migration] | None = None,
) -> AsyncIterator[Replica]:
    """A store on the real disk, named as its folder, with database threads of its own unless `inline`."""
    name = root.name
    rng = random.Random(name)
    threads: list[StoreThread] = [
        InlineThread() if inline else DedicatedThread(f"{name}-{role}") for role in ("writer", "reader")
    ]
    env = Env(
        clock=clock or SystemClock(),
        rng=rng,
        entropy=rng.randbytes,
        net=cast(Any, net),
        disk=LocalDisk(root),
        writer_thread=threads[0],
        reader_thread=threads[1],
        executor=cast(Any, None),
    )
    store = Store(env, tables, node_id=name, path=root / "relaymesh.db", migrations=migrations)
    if tables is WORK_TABLES:
        row_rules.watch(store)
        offer = Offer(node=name, abilities=frozenset({_AGENT}), labels={})
        queue = WorkQueue(name, lambda: offer)
        store.watch("steps", queue.on_step)
        store.watch("payloads", queue.on_payload)
    try:
        await store.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            yield Replica(name, env, store)
            nursery.cancel_scope.cancel()
        await store.close()
    finally:
        for thread in threads:
            thread.close()


async def run_tasks(replica: Replica, keys: Sequence[str], *, steps: bool = True) -> None:
    """Submit a task of one step for each key, and run it to SUCCESS.

    In three requests, as a node does it; without `steps` in one, which leaves the same rows and is faster to build.
    """
    write = replica.store.write

    async def worker(mine: Sequence[str]) -> None:
        for key in mine:
            if not steps:
                await write(partial(_whole, me=replica.name, key=key))
                continue
            task_id = await write(partial(_submit, me=replica.name, key=key))
            entry = Queued(NAMESPACE, step_id(task_id, _AGENT), _AGENT)
            claimed = await write(partial(_claim, entry=entry, me=replica.name))
            await write(partial(_finish, claimed=claimed, me=replica.name))

    async with trio.open_nursery() as nursery:
        for start in range(min(_AT_ONCE, len(keys))):
            nursery.start_soon(worker, keys[start::_AT_ONCE])


def _submit(tx: Transaction, *, me: str, key: str) -> str:
    return transitions.submit(tx, me=me, namespace=NAMESPACE, key=key, definition=_DEFINITION, trace_id=key).task_id


def _claim(tx: Transaction, *, entry: Queued, me: str) -> transitions.Claimed:
    claimed = transitions.claim(tx, entry, me=me, life=_LIFE, timeout_s=lambda _agent, _ms: 60.0)
    assert claimed is not None, "it was just submitted here"
    return claimed


def _finish(tx: Transaction, *, claimed: transitions.Claimed, me: str) -> None:
    transitions.finish(tx, claimed.step, _RESULT, me=me, policy=_POLICY, rng=random.Random(0), reopen=False)


def _whole(tx: Transaction, *, me: str, key: str) -> None:
    task_id = _submit(tx, me=me, key=key)
    entry = Queued(NAMESPACE, step_id(task_id, _AGENT), _AGENT)
    _finish(tx, claimed=_claim(tx, entry=entry, me=me), me=me)


def keys(seed: str, count: int) -> list[str]:
    """Idempotency keys as nodes make them: 32 random hex digits, so that index pages are touched at random."""
    rng = random.Random(seed)
    return [f"{rng.getrandbits(128):032x}" for _ in range(count)]

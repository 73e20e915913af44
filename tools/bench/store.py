"""Durable submits through the store of a node, beside what SQLite itself can do on this disk in the same run.

A submit is what a real one is: a task row, a step row and a queue row, with digests and indexes, and it counts when its
commit has returned. The floor writes one small row per request into a bare table with the same settings.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import apsw
import trio

from mesh.placement import Offer
from node.env import Env
from node.real_env import DedicatedThread, LocalDisk, SystemClock
from node.storage.store import Store
from node.work import transitions
from node.work.definition import Definition, StepDefinition
from node.work.tables import WORK_TABLES
from node.work.work_queue import WorkQueue
from tools.bench.report import Report, latency_us, make_report

CONCURRENCIES = (1, 16, 128)
PAYLOAD = b"x" * 64
_NODE = "bench"
_NOTES = (
    "floor: one-row commits by SQLite alone, 16 and 128 to a commit. ratio: submits/s over the floor's rows/s; a",
    "submit writes three rows. cpuUs: of this process, both threads, for each submit.",
)


def bench_store(directory: Path, *, seconds: float) -> Report:
    """Measure for `seconds` at each concurrency. `directory` takes two databases of some MB."""
    results: list[dict[str, Any]] = []
    for concurrency in CONCURRENCIES:
        floor = _floor(directory / f"floor-{concurrency}.db", rows=concurrency, seconds=seconds / 2)
        root = directory / f"store-{concurrency}"
        root.mkdir()
        measured = trio.run(_submits, root, concurrency, seconds)
        per_s = len(measured.latencies_s) / measured.seconds
        results.append(
            {
                "concurrency": concurrency,
                "submitsPerS": round(per_s),
                **latency_us(measured.latencies_s),
                "cpuUs": round(measured.cpu_s / max(1, len(measured.latencies_s)) * 1e6),
                "submitsPerCommit": round(len(measured.latencies_s) / max(1, measured.commits), 1),
                "floorRowsPerS": round(floor),
                "ratio": round(per_s / floor, 3),
            }
        )
    return make_report("store", directory, {"seconds": seconds, "payloadBytes": len(PAYLOAD)}, results, notes=_NOTES)


def _floor(path: Path, *, rows: int, seconds: float) -> float:
    """Rows per second that SQLite commits here, `rows` to a commit."""
    connection = apsw.Connection(str(path))
    try:
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        connection.execute("CREATE TABLE plain (key TEXT PRIMARY KEY, value BLOB) STRICT, WITHOUT ROWID")
        keys = _keys("floor")
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            connection.execute("BEGIN IMMEDIATE")
            for _ in range(rows):
                connection.execute("INSERT INTO plain VALUES (?, ?)", (next(keys), PAYLOAD))
            connection.execute("COMMIT")
            done += rows
        return done / (time.perf_counter() - started)
    finally:
        connection.close()


@dataclass(slots=True)
class _Measured:
    seconds: float = 0.0
    cpu_s: float = 0.0
    commits: int = 0
    latencies_s: list[float] = field(default_factory=list)


async def _submits(root: Path, concurrency: int, seconds: float) -> _Measured:
    env = _env(root)
    store = Store(env, WORK_TABLES, node_id=_NODE, path=root / "relaymesh.db")
    offer = Offer(node=_NODE, abilities=frozenset({"echo"}), labels={})
    store.watch("steps", WorkQueue(_NODE, lambda: offer).on_step)
    measured = _Measured()
    try:
        await store.open()
        async with trio.open_nursery() as running:
            await running.start(store.run)
            keys = _keys("submit")
            started, cpu_started = time.perf_counter(), time.process_time()
            async with trio.open_nursery() as clients:
                for _ in range(concurrency):
                    clients.start_soon(_submit_until, store, keys, started + seconds, measured)
            measured.seconds = time.perf_counter() - started
            measured.cpu_s = time.process_time() - cpu_started
            measured.commits = store.counters()["commits"]
            running.cancel_scope.cancel()
        await store.close()
    finally:
        env.writer_thread.close()
        env.reader_thread.close()
    return measured


async def _submit_until(store: Store, keys: Iterator[str], deadline: float, measured: _Measured) -> None:
    definition = Definition((StepDefinition(name="echo", agent="echo", payload=PAYLOAD, labels={}),))
    while (began := time.perf_counter()) < deadline:
        key = next(keys)
        await store.write(
            lambda tx, key=key: transitions.submit(  # type: ignore[misc]
                tx, me=_NODE, namespace="default", key=key, definition=definition, trace_id=key
            )
        )
        measured.latencies_s.append(time.perf_counter() - began)


def _keys(seed: str) -> Iterator[str]:
    """Keys as nodes make them: 32 random hex digits, so that index pages are touched at random."""
    rng = random.Random(seed)
    while True:
        yield f"{rng.getrandbits(128):032x}"


def _env(root: Path) -> Env:
    """The real clock, disk and threads; a store asks for nothing else."""
    return Env(
        clock=SystemClock(),
        rng=random.Random(1),
        entropy=random.Random(2).randbytes,
        net=cast(Any, None),
        disk=LocalDisk(root),
        writer_thread=DedicatedThread("store-writer"),
        reader_thread=DedicatedThread("store-reader"),
        executor=cast(Any, None),
    )

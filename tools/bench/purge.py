"""Whether a mesh that works for long stays bounded: three replicas, tasks at a steady rate, and retention.

Stores, pulls, retention and garbage collection are a node's own, each with its own loop, on the real disk; gossip and
TLS are left out, and time is virtual, so that an hour of the mesh takes as long as its work. A node loses its power now
and then and takes a new origin, the one thing of which a replica never forgets anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio
import trio.testing

from mesh.ids import Address
from node.replication.pull import serve_pull
from node.replication.stability_rounds import StabilityRounds, serve_vector
from node.settings import Settings
from node.storage.reader import Reader
from node.storage.store import Commit
from node.work.disk_budget import database_bytes
from node.work.retention import Purger, Retention
from node.work.tables import WORK_TABLES
from tools.bench.behind import puller
from tools.bench.replicas import Replica, keys, run_tasks, running_replica
from tools.bench.report import Report, make_report

NAMES = ("a", "b", "c")
BURST_TASKS = 500
BURST_EVERY_S = 5.0
KEEP_S = 300.0
"""`doneRetentionMs`; all other settings are the defaults."""
RESTART_EVERY_TASKS = 10_000
REST_S = 900.0
"""Long enough after the last task for everything to be deleted and forgotten."""
PORTIONS = 10
_START_WALL_S = 1_700_000_000.0
_MB = 1e6
_NOTES = (
    "Of one replica of three, at that moment: live rows and tombstones of all tables; pages of the database in use,",
    "and its file, in 10^6 bytes; the version vector on the wire, its origins and ranges, and the origins that it",
    "lists no more (collapsed). restarts: of all nodes, each with a new origin. The last line: when the last task had",
    "grown old, and was deleted and forgotten.",
)


class _VirtualClock:
    """Trio's time as a host's clock."""

    def monotonic(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return _START_WALL_S + trio.current_time()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _DirectCalls:
    """`node.replication.calls.Caller` without a network: the address names the replica."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        self._replicas = replicas

    async def call(
        self,
        address: Address,
        verb: str,
        body: bytes,
        *,
        expect: str | None = None,
        timeout_s: float = 10.0,
        on_part: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> bytes:
        store = self._replicas[address.host].store
        if verb == "vector":
            return await serve_vector(store, body)
        assert on_part is not None, verb
        return await serve_pull(store, body, on_part, snapshot_rows_min=None)


def bench_purge(directory: Path, *, tasks: int) -> Report:
    """Run `tasks` tasks on three replicas in turn, and look at one of them after every tenth of these."""
    for name in NAMES:
        (directory / name).mkdir()
    results = trio.run(_measure, directory, tasks, clock=trio.testing.MockClock(autojump_threshold=0))
    parameters = {"tasks": tasks, "tasksPerS": BURST_TASKS / BURST_EVERY_S, "keptS": KEEP_S}
    return make_report("purge", directory, parameters, results, notes=_NOTES)


async def _measure(directory: Path, tasks: int) -> list[dict[str, Any]]:
    replicas: dict[str, Replica] = {}
    results = []
    async with AsyncExitStack() as stack:
        for name in NAMES:
            opened = running_replica(directory / name, clock=_VirtualClock(), inline=True)
            replicas[name] = await stack.enter_async_context(opened)
        async with trio.open_nursery() as nursery:
            for replica in replicas.values():
                await _serve(replica, replicas, nursery)
            portion = max(1, tasks // PORTIONS)
            restarts = done = told = 0
            waiting = keys("purge", tasks)
            while done < tasks:
                # Each node takes its turn.
                replica = replicas[NAMES[done // BURST_TASKS % len(NAMES)]]
                burst = waiting[done : done + BURST_TASKS]
                await run_tasks(replica, burst)
                done += len(burst)
                await trio.sleep(BURST_EVERY_S)
                if done // RESTART_EVERY_TASKS > restarts:
                    await replicas[NAMES[restarts % len(NAMES)]].store.mint_origin("the host went down")
                    restarts += 1
                if done // portion > told:
                    told = done // portion
                    results.append({"tasks": done, "restarts": restarts, **await _look(replicas["a"])})
            await trio.sleep(KEEP_S + REST_S)
            results.append({"tasks": done, "restarts": restarts, **await _look(replicas["a"])})
            nursery.cancel_scope.cancel()
    return results


async def _serve(replica: Replica, replicas: Mapping[str, Replica], nursery: trio.Nursery) -> None:
    """The loops by which a node keeps up with its peers, deletes, and forgets."""
    others = {name: Address(name, 1) for name in NAMES if name != replica.name}
    calls = _DirectCalls(replicas)
    settings = Settings()
    pulls = puller(replica, calls, lambda name: others[name])

    def hear(name: str, commit: Commit) -> None:
        # In place of gossip, which carries digests of the vectors.
        if commit.vector_changed and not replica.store.vector.includes(replicas[name].store.vector):
            pulls.want(name)

    for name in others:
        replicas[name].store.on_commit(lambda commit, name=name: hear(name, commit))  # type: ignore[misc]
    stability = StabilityRounds(
        replica.env, replica.store, calls, members=lambda: others, pause_s=settings.garbage_interval_ms / 1000
    )
    purger = Purger(
        replica.env,
        replica.store,
        me=replica.name,
        alive=lambda: list(NAMES),
        may_write=lambda: True,
        retention=Retention(done_ms=int(KEEP_S * 1000), dead_ms=None),
        every_s=settings.retention_interval_ms / 1000,
    )
    await nursery.start(pulls.run)
    nursery.start_soon(stability.run)
    nursery.start_soon(purger.run)


async def _look(replica: Replica) -> dict[str, Any]:
    vector = replica.store.vector
    live, tombstones, used = await replica.store.read(_count)
    return {
        "liveRows": live,
        "tombstones": tombstones,
        "usedMb": round(used / _MB, 1),
        "fileMb": round(replica.store.path.stat().st_size / _MB, 1),
        "vectorBytes": len(vector.to_wire()),
        "origins": len(vector.origins()),
        "ranges": sum(len(vector.ranges(origin)) for origin in vector.origins()),
        "collapsed": len(replica.store.stable.collapsed.origins()),
    }


def _count(reader: Reader) -> tuple[int, int, int]:
    counted = [reader.sql(f'SELECT count(*), ifnull(sum(deleted), 0) FROM "{table.name}"')[0] for table in WORK_TABLES]
    tombstones = sum(int(deleted) for _, deleted in counted)
    return sum(int(rows) for rows, _ in counted) - tombstones, tombstones, database_bytes(reader)

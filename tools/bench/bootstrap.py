"""Filling an empty node by a snapshot of a peer, over real TLS on loopback: how long, and what the donor notices.

Donor and receiver share one process and one loop, so the donor's delay is an upper bound: it includes the receiver's
work. The delay is how late a task of the loop wakes that wants to wake every PROBE_EVERY_S, as probes of peers do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from mesh.ids import Address
from mesh.tables import Column, Register, Table
from node import identity_files
from node.replication.bootstrap import Bootstrap
from node.replication.snapshot import SnapshotDonor
from node.storage.migrate import load_migrations
from node.storage.store import Store
from node.storage.transaction import Transaction
from node.streams.rpc import RpcPool, RpcServer, Verb
from node.streams.tls import make_contexts
from node.streams.trio_net import TrioNet
from tools.bench.replicas import Replica, running_replica
from tools.bench.report import Report, make_report, percentile

PROBE_EVERY_S = 0.005
IDLE_S = 1.0
FILL_ROWS = 1_000
"""Rows in one request while the donor is filled."""
TEXT_BYTES = 150
_TABLES = (Table("notes", Register.LWW, (Column("text"),)),)
_NAME = "bench"
_NOTES = (
    "delay: how late the loop that donor and receiver share ran a task, while the donor copied and served. idle: the",
    "same before. MB are 10^6 bytes of the snapshot, seconds those from the request to the exchanged database.",
)


@dataclass(slots=True)
class _Measured:
    bytes: int = 0
    seconds: float = 0.0
    idle_s: tuple[float, ...] = ()
    delays_s: tuple[float, ...] = ()


def bench_bootstrap(directory: Path, *, rows: int) -> Report:
    """Fill a database with `rows` rows of about 300 B each, and have an empty store bootstrapped from it."""
    for name in ("donor", "new"):
        (directory / name).mkdir()
    measured = trio.run(_measure, directory, rows)
    result = {
        "rows": rows,
        "snapshotBytes": measured.bytes,
        "seconds": round(measured.seconds, 2),
        "mbPerS": round(measured.bytes / measured.seconds / 1e6, 1),
        "delayP50Ms": round(percentile(measured.delays_s, 0.50) * 1e3, 2),
        "delayP99Ms": round(percentile(measured.delays_s, 0.99) * 1e3, 2),
        "delayMaxMs": round(max(measured.delays_s, default=0.0) * 1e3, 2),
        "idleP99Ms": round(percentile(measured.idle_s, 0.99) * 1e3, 2),
    }
    return make_report("bootstrap", directory, {"rows": rows}, [result], notes=_NOTES)


async def _measure(directory: Path, rows: int) -> _Measured:
    enrolment = identity_files.found(directory / "identity", _NAME)
    contexts = make_contexts(enrolment.tls_material)
    net, cluster = TrioNet(contexts, source_host="127.0.0.1"), enrolment.identity().certificate.cluster
    async with _replica(directory / "donor", net) as donor, _replica(directory / "new", net) as new:
        await _fill(donor.store, rows)
        async with trio.open_nursery() as nursery:
            serving = SnapshotDonor(donor.env, donor.store)
            verbs = {
                "snapshot-offer": Verb(lambda _peer, body, _send: serving.handle_offer(body)),
                "snapshot-chunk": Verb(lambda _peer, body, send: serving.handle_chunks(body, send)),
            }
            server = RpcServer(verbs, cluster=cluster)
            address = await nursery.start(net.serve, Address("127.0.0.1", 0), server.handle)
            nursery.start_soon(serving.run)
            calls = RpcPool(net, cluster)
            nursery.start_soon(calls.run)
            measured = _Measured()
            measured.idle_s = await _delays_while(partial(trio.sleep, IDLE_S))
            measured.delays_s = await _delays_while(partial(_bootstrap, new, calls, address, measured))
            nursery.cancel_scope.cancel()
    return measured


def _replica(root: Path, net: TrioNet) -> AbstractAsyncContextManager[Replica]:
    return running_replica(root, net=net, tables=_TABLES, migrations=load_migrations()[:1])


async def _bootstrap(new: Replica, calls: RpcPool, address: Address, measured: _Measured) -> None:
    adopted = trio.Event()
    bootstrap = Bootstrap(
        new.env,
        new.store,
        calls,
        address_of=lambda _peer: address,
        on_answered=lambda: None,
        on_adopted=lambda _peer: adopted.set(),
        heed=lambda _ours, _theirs: [],
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bootstrap.run)
        began = time.perf_counter()
        bootstrap.required(_NAME, "a benchmark")
        await adopted.wait()
        measured.seconds = time.perf_counter() - began
        measured.bytes = new.store.path.stat().st_size
        nursery.cancel_scope.cancel()


async def _delays_while(work: Callable[[], Awaitable[None]]) -> tuple[float, ...]:
    """How late each turn of a regular task was while `work` ran, in seconds."""
    delays: list[float] = []

    async def probe() -> None:
        while True:
            wanted = time.perf_counter() + PROBE_EVERY_S
            await trio.sleep(PROBE_EVERY_S)
            delays.append(max(0.0, time.perf_counter() - wanted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe)
        await work()
        nursery.cancel_scope.cancel()
    return tuple(delays)


async def _fill(store: Store, rows: int) -> None:
    keys = random.Random(1)

    def put(tx: Transaction, count: int) -> None:
        for _ in range(count):
            key = f"{keys.getrandbits(128):032x}"
            tx.put("notes", "default", key, {"text": key * (TEXT_BYTES // len(key))})

    for start in range(0, rows, FILL_ROWS):
        await store.write(partial(put, count=min(FILL_ROWS, rows - start)))

"""Two replicas on the real disk, of which one lacks rows of the other, and a counted line of TLS between them."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
import trio

from mesh.ids import Address
from node import identity_files
from node.env import PeerIdentity, SecureStream
from node.replication import verify as verification
from node.replication.calls import Caller
from node.replication.pull import Puller, serve_pull
from node.storage.store import Store
from node.streams.rpc import RpcPool, RpcServer, Verb
from node.streams.tls import make_contexts
from node.streams.trio_net import TrioNet
from node.work.tables import WORK_TABLES
from tools.bench.replicas import ROWS_PER_TASK, Replica, keys, run_tasks, running_replica

ORIGINS = 20
"""Of the rows of a built replica: a mesh of as many nodes, or of fewer with some lost disks."""
PEER = "bench"
"""The name under which every replica is reached: they share an identity."""

Dot = tuple[int, int]
"""Origin number and sequence number."""


async def build(root: Path, rows: int) -> None:
    """Make a database of `rows` rows of finished tasks, written under ORIGINS origins, and close it."""
    waiting = keys("build", rows // ROWS_PER_TASK)
    share = -(-len(waiting) // ORIGINS)
    async with running_replica(root) as replica:
        for start in range(0, len(waiting), share):
            if start:
                await replica.store.mint_origin("a benchmark builds another node's rows")
            await run_tasks(replica, waiting[start : start + share], steps=False)


def copy_without(donor: Path, root: Path, lacking: Callable[[apsw.Connection], Sequence[Dot]], *, unseen: bool) -> None:
    """Copy a closed database without these rows; with `unseen` the copy's vector does not cover them either.

    That is what a node looks like that never heard of them, or, if its vector does cover them, whose disk lost them.
    """
    root.mkdir()
    shutil.copy(donor / "relaymesh.db", root / "relaymesh.db")
    connection = apsw.Connection(str(root / "relaymesh.db"))
    try:
        dots = lacking(connection)
        with connection:
            for table in WORK_TABLES:
                connection.executemany(f'DELETE FROM "{table.name}" WHERE oid = ? AND seq = ?', dots)
            if unseen:
                _uncover(connection, dots)
        connection.pragma("wal_checkpoint", "TRUNCATE")
    finally:
        connection.close()


def _uncover(connection: apsw.Connection, dots: Sequence[Dot]) -> None:
    for oid in sorted({oid for oid, _ in dots}):
        ((lo, last),) = connection.execute("SELECT min(lo), max(hi) FROM vector WHERE oid = ?", (oid,))
        connection.execute("DELETE FROM vector WHERE oid = ?", (oid,))
        for gap in [*sorted(seq for each, seq in dots if each == oid), last + 1]:
            if gap > lo:
                connection.execute("INSERT INTO vector VALUES (?, ?, ?)", (oid, lo, gap - 1))
            lo = gap + 1


def last_rows(connection: apsw.Connection, count: int) -> list[Dot]:
    """The dots of the rows that were written last."""
    union = " UNION ALL ".join(f'SELECT oid, seq FROM "{table.name}"' for table in WORK_TABLES)
    return list(connection.execute(f"SELECT oid, seq FROM ({union}) ORDER BY oid DESC, seq DESC LIMIT ?", (count,)))


def random_steps(connection: apsw.Connection, count: int) -> list[Dot]:
    """The dots of steps from everywhere."""
    found = list(connection.execute("SELECT oid, seq FROM steps ORDER BY oid, seq"))
    return random.Random(count).sample(found, min(count, len(found)))


class _CountedStream:
    """A stream that counts what passes, above its encryption."""

    def __init__(self, stream: SecureStream, net: CountedNet) -> None:
        self._stream = stream
        self._net = net

    @property
    def peer(self) -> PeerIdentity:
        return self._stream.peer

    async def send_all(self, data: bytes) -> None:
        self._net.bytes_total += len(data)
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        self._net.bytes_total += len(data)
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class CountedNet:
    """Dials, and counts the bytes of all its streams, both ways."""

    def __init__(self, net: TrioNet) -> None:
        self._net = net
        self.bytes_total = 0

    async def connect(self, address: Address) -> SecureStream:
        """A counted stream."""
        return _CountedStream(await self._net.connect(address), self)


@dataclass(frozen=True, slots=True)
class Line:
    """How one replica asks the other."""

    calls: RpcPool
    address: Address
    net: CountedNet


@asynccontextmanager
async def served(directory: Path, store: Store) -> AsyncIterator[Line]:
    """Answer the verbs of anti-entropy for this store, as a node does. The identity is made in `directory`."""
    folder = directory / "identity"
    enrolment = identity_files.found(folder, PEER)
    net = TrioNet(make_contexts(enrolment.tls_material), source_host="127.0.0.1")
    cluster = enrolment.identity().certificate.cluster
    verbs = {
        "pull": Verb(lambda _peer, body, send: serve_pull(store, body, send, snapshot_rows_min=None)),
        "verify": Verb(lambda _peer, body, _send: verification.serve_verify(store, body)),
        "ranges": Verb(lambda _peer, body, _send: verification.serve_ranges(store, body)),
        "rows": Verb(lambda _peer, body, _send: verification.serve_rows(store, body)),
    }
    counted = CountedNet(net)
    calls = RpcPool(counted, cluster)
    try:
        async with trio.open_nursery() as nursery:
            address = await nursery.start(net.serve, Address("127.0.0.1", 0), RpcServer(verbs, cluster=cluster).handle)
            nursery.start_soon(calls.run)
            yield Line(calls, address, counted)
            nursery.cancel_scope.cancel()
    finally:
        shutil.rmtree(folder)


def puller(replica: Replica, calls: Caller, address_of: Callable[[str], Address]) -> Puller:
    """A node's puller without the node."""
    return Puller(
        replica.env,
        replica.store,
        calls,
        address_of=address_of,
        is_there=lambda _name: True,
        on_started=lambda: 0,
        on_answered=lambda: None,
        on_finished=lambda _token: None,
        may_snapshot=lambda: False,
        on_snapshot_needed=lambda _name, _reason: None,
    )

"""Worlds for node tests: a clock that follows Trio's, database threads, and stores on a temporary disk."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import trio

from mesh.tables import Column, Register, Table
from node import durable_files
from node.env import Env
from node.storage.migrate import load_migrations
from node.storage.store import Store

T = TypeVar("T")

STORE_TABLES = (
    Table(
        "notes", Register.LWW, (Column("text"), Column("size", "int"), Column("weight", "real"), Column("body", "blob"))
    ),
    Table("jobs", Register.LIFECYCLE, (Column("owner"), Column("status"))),
    Table("facts", Register.IMMUTABLE, (Column("text"),)),
)

START_WALL_S = 1_700_000_000.0


class TrioClock:
    """Trio's time, so that `autojump_clock` moves a node's time, too."""

    def __init__(self) -> None:
        self.wall_offset_s = START_WALL_S - trio.current_time()

    def monotonic(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return trio.current_time() + self.wall_offset_s

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class InlineThread:
    """Runs database calls at once: deterministic, and what a simulator does."""

    async def run(self, fn: Callable[[], T]) -> T:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return fn()

    def close(self) -> None:
        pass


class WorkerThread:
    """Runs database calls in a thread, one after another."""

    def __init__(self) -> None:
        self._turn = trio.Lock()

    async def run(self, fn: Callable[[], T]) -> T:
        with trio.CancelScope(shield=True):
            async with self._turn:
                return await trio.to_thread.run_sync(fn)

    def close(self) -> None:
        pass


@dataclass
class TestDisk:
    __test__ = False

    root: Path
    vfs: str = ""
    shared_memory: bool = True
    boot_id: str = "kernel-1"

    def free_bytes(self) -> int:
        return 1 << 40

    def load(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.exists() else None

    def save(self, name: str, data: bytes) -> None:
        durable_files.replace(self.root / name, data)

    def kernel_boot_id(self) -> str:
        return self.boot_id

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def rename(self, name: str, new_name: str) -> None:
        (self.root / name).rename(self.root / new_name)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)


@dataclass
class StoreWorld:
    """One node's disk and clock; `opened()` is one life of its store."""

    root: Path
    disk: TestDisk
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    threads: bool = False

    def store(self, node_id: str = "node-a", tables: Sequence[Table] = STORE_TABLES, **options: Any) -> Store:
        thread = WorkerThread if self.threads else InlineThread
        env = Env(
            clock=TrioClock(),
            rng=self.rng,
            entropy=self.rng.randbytes,
            net=cast(Any, None),
            disk=self.disk,
            writer_thread=thread(),
            reader_thread=thread(),
            executor=cast(Any, None),
        )
        options.setdefault("migrations", load_migrations()[:1])
        return Store(env, tables, node_id=node_id, path=self.root / "relaymesh.db", **options)

    @asynccontextmanager
    async def opened(self, node_id: str = "node-a", *, crash: bool = False, **options: Any) -> AsyncIterator[Store]:
        """A running store. With `crash` it ends as if its process had been killed: nothing is marked as clean."""
        store = self.store(node_id, **options)
        await store.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            try:
                yield store
            finally:
                nursery.cancel_scope.cancel()
        if crash:
            # Closing the connections writes nothing about a clean end.
            for connection in (store._reader_connection, store._writer.ledger.connection):
                if connection is not None:
                    connection.close(True)
        else:
            await store.close()


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., StoreWorld]:
    """Make a node's disk: `make_world("a")`."""

    def make(name: str = "a", *, vfs: str = "", threads: bool = False) -> StoreWorld:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        return StoreWorld(root, TestDisk(root, vfs), threads=threads)

    return make


@pytest.fixture
def world(make_world: Callable[..., StoreWorld]) -> StoreWorld:
    """A node's disk with nothing on it."""
    return make_world()

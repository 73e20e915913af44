"""A mesh in this process, for users' tests: no node, no disk, no process, no waiting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from mesh.ids import parse_namespace
from node.client.async_client import AsyncSubmitter
from node.client.client import Submitter
from node.client.memory_worker import MemoryWorker
from node.client.port import Port


class MemoryMesh(Submitter):
    """The methods of `Client`, and handlers that run in this process. Made by `Mesh.memory()`.

    Nothing runs before `result`, `wait`, `progress` or `run` is called; then steps run one after another, in the order
    in which a node would start them, until what was asked for has ended. Keys, retries, dead letters, the order of a
    workflow, parents' outputs, cancel and replay follow a node's own code. Waits pass at once, on a virtual clock, by
    which timeouts run out too. What has not been made: handlers are not ended by a timeout, a cancel or a crash, agents
    are those that this process has decorated, and every node id, label and `on_partition` is as good as another.

    >>> @agent("flaky", retry=Retry(max_attempts=3))
    ... def flaky(ctx: Context) -> str:
    ...     if ctx.attempt < 3:
    ...         raise OSError("no link")
    ...     return "done"
    >>> Mesh.memory().submit(flaky).result()
    'done'
    """

    def __init__(self, namespace: str = "default") -> None:
        self._worker = MemoryWorker(parse_namespace(namespace))
        self._memory_port = _MemoryPort(self._worker)

    @property
    def _port(self) -> Port:
        return self._memory_port

    def run(self) -> None:
        """Run everything that can run, until nothing is left; retries included, however long their waits are.

        >>> mesh = Mesh.memory()
        >>> tasks = [mesh.submit("echo", text) for text in ("a", "b")]
        >>> mesh.run()
        >>> [task.status() for task in tasks]
        ['SUCCESS', 'SUCCESS']
        """
        while self._worker.run_next(None):
            pass


class AsyncMemoryMesh(AsyncSubmitter):
    """The twin of `MemoryMesh` with the methods of `AsyncClient`. Made by `Mesh.memory_async()`.

    Handlers run in a worker thread, one at a time.

    >>> async def main():
    ...     task = await Mesh.memory_async().submit("echo", "hello")
    ...     return await task.result()
    >>> trio.run(main)
    'hello'
    """

    def __init__(self, namespace: str = "default") -> None:
        self._worker = MemoryWorker(parse_namespace(namespace))
        self._lock = trio.Lock()
        self._memory_port = _AsyncMemoryPort(self._worker, self._lock)

    @property
    def _port(self) -> Port:
        return self._memory_port

    async def run(self) -> None:
        """As `MemoryMesh.run`.

        >>> async def main():
        ...     mesh = Mesh.memory_async()
        ...     task = await mesh.submit("echo", "hello")
        ...     await mesh.run()
        ...     return await task.status()
        >>> trio.run(main)
        'SUCCESS'
        """
        async with self._lock:
            while await trio.to_thread.run_sync(self._worker.run_next, None):
                pass


class _MemoryPort:
    def __init__(self, worker: MemoryWorker) -> None:
        self._worker = worker

    async def ask(self, command: str, args: Mapping[str, Any], *, repeatable: bool = True) -> Any:
        return self._worker.ask(command, args)

    def now(self) -> float:
        return self._worker.store.now_ms / 1000


class _AsyncMemoryPort(_MemoryPort):
    def __init__(self, worker: MemoryWorker, lock: trio.Lock) -> None:
        super().__init__(worker)
        self._lock = lock

    async def ask(self, command: str, args: Mapping[str, Any], *, repeatable: bool = True) -> Any:
        async with self._lock:
            return await trio.to_thread.run_sync(self._worker.ask, command, args)

"""`Mesh`: a node inside of a Trio program, or a mesh in memory for tests."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from mesh.ids import parse_namespace
from node.admin_client import LocalTarget
from node.client.async_client import AsyncSubmitter
from node.client.mesh_port import MeshPort
from node.client.port import Port
from node.client.targets import StrPath
from node.client.trio_connections import TrioConnections

if TYPE_CHECKING:
    from node.client.memory import AsyncMemoryMesh, MemoryMesh
    from node.config import NodeConfig


class Mesh(AsyncSubmitter):
    """A node of a mesh that lives in this Trio program for as long as the `async with` block lasts.

    It is the whole `relaymesh-node`, without its log format and signals: other nodes and the command line see no
    difference. The arguments are that program's flags; what is left out takes its default, and its environment
    variables are not looked at. `root` keeps everything and is made if it does not exist; with `seeds` it needs an
    enrolment: `enroll` the first time. `agents` are Python files, which run in processes of their own as always. The
    program's own file may be one; it is then imported again there, so guard its main part by `__name__`.

    Inside of the block it has the methods of `AsyncClient`. It begins when the node takes work, which may be a moment
    before that has heard of the others: until then it refuses agents that only they have. The end of the block gives
    running work back, for up to 14 s, also when the block is cancelled. It uses processes and ports, so it cannot be
    entered twice on one root. ConfigError when the node cannot be started.

    >>> async def main():
    ...     async with Mesh(root, bind=bind) as mesh:
    ...         task = await mesh.submit("echo", "hello")
    ...         return await task.result(timeout_s=30)
    >>> trio.run(main)
    'hello'
    """

    def __init__(
        self,
        root: StrPath,
        *,
        seeds: Sequence[str] = (),
        enroll: StrPath | None = None,
        node_id: str | None = None,
        bind: str | None = None,
        rpc_bind: str | None = None,
        advertise: str | None = None,
        agents: Sequence[StrPath] = (),
        labels: Mapping[str, str] | None = None,
        slots: int | None = None,
        profile: str | None = None,
        namespace: str = "default",
    ) -> None:
        named = {
            "root": root,
            "seeds": ",".join(seeds) or None,
            "enroll": enroll,
            "node-id": node_id,
            "bind": bind,
            "rpc-bind": rpc_bind,
            "advertise": advertise,
            "slots": slots,
            "profile": profile,
        }
        self._flags = [f"--{name}={value}" for name, value in named.items() if value is not None]
        self._flags += [f"--agents={Path(file)}" for file in agents]
        self._flags += [f"--label={name}={value}" for name, value in (labels or {}).items()]
        self._root = Path(root)
        self._namespace = parse_namespace(namespace)
        self._mesh_port: MeshPort | None = None
        self._running: AbstractAsyncContextManager[None] | None = None

    @property
    def _port(self) -> Port:
        if self._mesh_port is None:
            raise RuntimeError("this mesh is not running: use it inside of `async with Mesh(…) as mesh`")
        return self._mesh_port

    async def __aenter__(self) -> Self:
        if self._running is not None:
            raise RuntimeError("this mesh is in use already: make another Mesh, on a root of its own")
        from node.config import parse_config

        self._running = self._run(parse_config(self._flags, {}))
        try:
            await self._running.__aenter__()
        except BaseException:
            self._running = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._running is not None
        running, self._running = self._running, None
        await running.__aexit__(kind, value, trace)

    @asynccontextmanager
    async def _run(self, config: NodeConfig) -> AsyncIterator[None]:
        try:
            async with trio.open_nursery() as nursery:
                stop, signals = trio.open_memory_channel[int](1)
                ended = trio.Event()
                await nursery.start(_serve, config, signals, ended)
                connections = TrioConnections([LocalTarget(self._root)])
                self._mesh_port = MeshPort(connections, self._namespace)
                try:
                    yield
                finally:
                    self._mesh_port = None
                    stop.send_nowait(signal.SIGTERM)
                    with trio.CancelScope(shield=True):
                        await connections.close()
                        await ended.wait()
        except BaseExceptionGroup as group:
            # The nursery is our own business: what went wrong in the block comes out as it was raised.
            error = _only(group)
            if error is None:
                raise
            raise error from None

    @staticmethod
    def memory(*, namespace: str = "default") -> MemoryMesh:
        """A mesh for tests in this process, empty at first: see `MemoryMesh`.

        >>> Mesh.memory(namespace="tests").submit("echo", "hello").result()
        'hello'
        """
        from node.client.memory import MemoryMesh

        return MemoryMesh(namespace)

    @staticmethod
    def memory_async(*, namespace: str = "default") -> AsyncMemoryMesh:
        """The same for tests that run in Trio: see `AsyncMemoryMesh`.

        >>> async def main():
        ...     mesh = Mesh.memory_async()
        ...     return await mesh.wait((await mesh.submit("echo", "hello")).id)
        >>> trio.run(main)
        'SUCCESS'
        """
        from node.client.memory import AsyncMemoryMesh

        return AsyncMemoryMesh(namespace)


async def _serve(
    config: NodeConfig,
    signals: AsyncIterator[int],
    ended: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    from node.daemon import embed

    try:
        # A cancelled block is no crash of the node: its end is told by `signals`, and then takes its time.
        with trio.CancelScope(shield=True):
            await embed(config, signals, task_status=task_status)
    finally:
        ended.set()


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error

"""The async client, for Trio programs: the twin of `client`, over the same verbs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

from node.client import verbs
from node.client.mesh_port import MeshPort
from node.client.options import SubmitOptions, TaskOptions
from node.client.outcomes import CancelState, StepState, TaskStatus
from node.client.port import Port
from node.client.targets import StrPath, choose_targets
from node.client.trio_connections import TrioConnections
from node.client.values import UNTYPED, return_type
from node.client.workflow import Workflow

R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class AsyncTaskHandle(Generic[R_co]):
    """The async twin of `TaskHandle`: the same methods, awaited. A cancelled call leaves the task as it is.

    >>> async def main():
    ...     task = await Mesh.memory_async().submit("echo", "hello")
    ...     return await task.result()
    >>> trio.run(main)
    'hello'
    """

    def __init__(self, port: Port, task_id: str, decode: verbs.Decode) -> None:
        self._port = port
        self._decode = decode
        self.id = task_id
        """Its id, by which any node of the mesh knows it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def status(self) -> TaskStatus:
        """As `TaskHandle.status`."""
        return await verbs.status(self._port, self.id)

    async def wait(self, timeout_s: float | None = None) -> TaskStatus:
        """As `TaskHandle.wait`."""
        status: TaskStatus = (await verbs.wait(self._port, self.id, timeout_s))["status"]
        return status

    @overload
    async def result(self, timeout_s: float | None = ...) -> R_co: ...

    @overload
    async def result(self, timeout_s: float | None = ..., *, type: type[T]) -> T: ...

    async def result(self, timeout_s: float | None = None, *, type: Any = None) -> Any:  # noqa: A002
        """As `TaskHandle.result`."""
        decode = self._decode if type is None else verbs.decoder(type)
        return await verbs.result(self._port, self.id, timeout_s, decode)

    async def progress(self) -> AsyncIterator[StepState]:
        """As `TaskHandle.progress`, for `async for`.

        >>> async def main():
        ...     task = await Mesh.memory_async().submit("echo", "hello")
        ...     return [step.status async for step in task.progress()]
        >>> trio.run(main)
        ['PENDING', 'SUCCESS']
        """
        watch = verbs.Watch(self._port, self.id)
        while (changed := await watch.more()) is not None:
            for step in changed:
                yield step

    async def cancel(self, mode: Literal["hard", "soft"] = "hard", *, reason: str = "") -> CancelState:
        """As `TaskHandle.cancel`."""
        return await verbs.cancel(self._port, self.id, mode, reason)

    async def replay(self, step: str | None = None) -> list[str]:
        """As `TaskHandle.replay`."""
        return await verbs.replay(self._port, self.id, step)


class AsyncSubmitter(ABC):
    """What `AsyncClient` and `AsyncMemoryMesh` have in common: everything about tasks."""

    @property
    @abstractmethod
    def _port(self) -> Port: ...

    @overload
    async def submit(
        self,
        agent: str,
        input: object = ...,
        **options: Unpack[SubmitOptions],
    ) -> AsyncTaskHandle[Any]: ...

    @overload
    async def submit(
        self,
        agent: Callable[..., Coroutine[Any, Any, R]],
        input: object = ...,
        **options: Unpack[SubmitOptions],
    ) -> AsyncTaskHandle[R]: ...

    @overload
    async def submit(
        self,
        agent: Callable[..., R],
        input: object = ...,
        **options: Unpack[SubmitOptions],
    ) -> AsyncTaskHandle[R]: ...

    async def submit(
        self,
        agent: str | Callable[..., Any],
        input: object = "",  # noqa: A002  (the name that nodes and the command line have for it)
        **options: Unpack[SubmitOptions],
    ) -> AsyncTaskHandle[Any]:
        """As `Client.submit`."""
        wanted = UNTYPED if isinstance(agent, str) else return_type(agent)
        task_id = await verbs.submit(self._port, agent, input, options)
        return AsyncTaskHandle(self._port, task_id, verbs.decoder(wanted))

    async def submit_workflow(
        self, workflow: Workflow, **options: Unpack[TaskOptions]
    ) -> AsyncTaskHandle[dict[str, Any]]:
        """As `Client.submit_workflow`."""
        task_id = await verbs.submit_workflow(self._port, workflow.definition(), options)
        return AsyncTaskHandle(self._port, task_id, verbs.workflow_decoder(dict(workflow.result_types)))

    def task(self, task_id: str) -> AsyncTaskHandle[Any]:
        """As `Client.task`: it asks nobody yet, so it is not awaited."""
        return AsyncTaskHandle(self._port, task_id, verbs.decoder(UNTYPED))

    async def wait(self, task_id: str, timeout_s: float | None = None) -> TaskStatus:
        """As `TaskHandle.wait`."""
        return await self.task(task_id).wait(timeout_s)

    async def cancel(self, task_id: str, mode: Literal["hard", "soft"] = "hard", *, reason: str = "") -> CancelState:
        """As `TaskHandle.cancel`."""
        return await self.task(task_id).cancel(mode, reason=reason)

    async def replay(self, task_id: str, step: str | None = None) -> list[str]:
        """As `TaskHandle.replay`."""
        return await self.task(task_id).replay(step)


class AsyncClient(AsyncSubmitter):
    """The twin of `Client` for Trio programs: the same arguments and methods, awaited.

    Any number of tasks may use it at once; 200 questions run at a time, others wait. It needs no nursery. Use it in an
    `async with` block, at whose end its connections are closed.

    >>> async def main():
    ...     async with AsyncClient(root=root) as client:
    ...         task = await client.submit("echo", "hello")
    ...         return await task.result(timeout_s=30)
    >>> trio.run(main)
    'hello'
    """

    def __init__(
        self,
        root: StrPath | None = None,
        *,
        peer: str | Sequence[str] | None = None,
        identity: StrPath | None = None,
        namespace: str = "default",
    ) -> None:
        self._connections = TrioConnections(choose_targets(root, peer, identity))
        self._mesh_port = MeshPort(self._connections, namespace)

    @property
    def _port(self) -> Port:
        return self._mesh_port

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections. Tasks go on; a question that is asked later opens another connection."""
        await self._connections.close()

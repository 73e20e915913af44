"""The sync client: for plain threads and scripts. `async_client` has the same for Trio programs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

from node.client import verbs
from node.client.mesh_port import MeshPort
from node.client.options import SubmitOptions, TaskOptions
from node.client.outcomes import CancelState, StepState, TaskStatus
from node.client.port import Port, complete
from node.client.sync_connections import SyncConnections
from node.client.targets import StrPath, choose_targets
from node.client.values import UNTYPED, return_type
from node.client.workflow import Workflow

R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class TaskHandle(Generic[R_co]):
    """One task, wherever in the mesh it runs. Made by `submit`, `submit_workflow` and `task`; usable by any thread.

    Every method raises NotFoundError when no node that answers knows the task, and UnavailableError when none answers.

    >>> mesh = Mesh.memory()
    >>> task = mesh.submit("echo", "hello")
    >>> task.id.startswith("tsk_")
    True
    >>> task.result()
    'hello'
    """

    def __init__(self, port: Port, task_id: str, decode: verbs.Decode) -> None:
        self._port = port
        self._decode = decode
        self.id = task_id
        """Its id, by which any node of the mesh knows it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def status(self) -> TaskStatus:
        """What the task is doing now, as the node that was asked knows it.

        >>> Mesh.memory().submit("echo", "hello").status()
        'PENDING'
        """
        return complete(verbs.status(self._port, self.id))

    def wait(self, timeout_s: float | None = None) -> TaskStatus:
        """Wait for the end of the task, and return how it ended. TimeoutError after `timeout_s` seconds.

        >>> Mesh.memory().submit("fail", max_attempts=1).wait()
        'DEAD_LETTER'
        """
        status: TaskStatus = complete(verbs.wait(self._port, self.id, timeout_s))["status"]
        return status

    @overload
    def result(self, timeout_s: float | None = ...) -> R_co: ...

    @overload
    def result(self, timeout_s: float | None = ..., *, type: type[T]) -> T: ...

    def result(self, timeout_s: float | None = None, *, type: Any = None) -> Any:  # noqa: A002
        """Wait for the end of the task, and return its result; it stays where it is, and may be asked for again.

        `type` says what it is decoded to: `str` and `bytes` as they are, anything else from JSON by msgspec. Without
        one, it is what the submitted function says it returns; and else text, or bytes where it is no text. Of a
        workflow it is a dict of the outputs of the steps that no other waits for, by id.

        TaskFailed and TaskCancelled when it ended so, both with a `reason`; TimeoutError after `timeout_s` seconds,
        when the task goes on all the same; ResultTypeError when the result does not fit.

        >>> mesh = Mesh.memory()
        >>> mesh.submit("echo", {"n": 1}).result()
        '{"n":1}'
        >>> mesh.submit("echo", {"n": 1}).result(type=dict[str, int])
        {'n': 1}
        """
        decode = self._decode if type is None else verbs.decoder(type)
        return complete(verbs.result(self._port, self.id, timeout_s, decode))

    def progress(self) -> Iterator[StepState]:
        """Every step as it is now, and then each that changes, until the task has ended.

        Changes that follow each other faster than they are read come as one.

        >>> task = Mesh.memory().submit("fail", max_attempts=2)
        >>> [step.status for step in task.progress()]
        ['PENDING', 'RETRYING', 'DEAD_LETTER']
        """
        watch = verbs.Watch(self._port, self.id)
        while (changed := complete(watch.more())) is not None:
            yield from changed

    def cancel(self, mode: Literal["hard", "soft"] = "hard", *, reason: str = "") -> CancelState:
        """Cancel the task; `reason`, of at most 1024 characters, is kept with it. Waits up to 3 s for its owners.

        `hard` ends what runs, `soft` lets running attempts finish and starts nothing more. `requested` means that an
        owner has not obeyed yet: the cancel holds, and reaches it when it can be reached.

        >>> Mesh.memory().submit("echo", "hello").cancel(reason="a mistake")
        'cancelled'
        """
        return complete(verbs.cancel(self._port, self.id, mode, reason))

    def replay(self, step: str | None = None) -> list[str]:
        """Run again what did not succeed, or the one `step`, which must have ended; returns the ids of the steps.

        ConflictError when there is nothing to replay. Not repeated when the connection is lost: look at `status` then.

        >>> task = Mesh.memory().submit("fail", max_attempts=1)
        >>> task.wait()
        'DEAD_LETTER'
        >>> task.replay()
        ['fail']
        >>> task.status()
        'PENDING'
        """
        return complete(verbs.replay(self._port, self.id, step))


class Submitter(ABC):
    """What `Client` and `MemoryMesh` have in common: everything about tasks."""

    @property
    @abstractmethod
    def _port(self) -> Port: ...

    @overload
    def submit(
        self,
        agent: str,
        input: object = ...,
        **options: Unpack[SubmitOptions],
    ) -> TaskHandle[Any]: ...

    @overload
    def submit(
        self,
        agent: Callable[..., Coroutine[Any, Any, R]],
        input: object = ...,
        **options: Unpack[SubmitOptions],
    ) -> TaskHandle[R]: ...

    @overload
    def submit(
        self,
        agent: Callable[..., R],
        input: object = ...,
        **options: Unpack[SubmitOptions],
    ) -> TaskHandle[R]: ...

    def submit(
        self,
        agent: str | Callable[..., Any],
        input: object = "",  # noqa: A002  (the name that nodes and the command line have for it)
        **options: Unpack[SubmitOptions],
    ) -> TaskHandle[Any]:
        """Give `input` to `agent`, a decorated function or the name of an agent; options as in `SubmitOptions`.

        Text and bytes go as they are, anything else as JSON; at most 10 MiB unless the node's settings say otherwise.
        When this returns, the task is durable at a node. If the connection is lost it is submitted again under the
        same key, at the next address if there are several, and is one task all the same.

        TypeError for what cannot be submitted at all. ConfigError, LimitError and ConflictError (the key belongs to
        something else) are the node's word, and nothing was stored; UnavailableError: no node answered, or none takes
        work now. It may have been stored: submit it again with the same `key`.

        >>> @agent("count")
        ... def count(text: str) -> int:
        ...     return len(text.split())
        >>> mesh = Mesh.memory()
        >>> mesh.submit(count, "one two three", priority="high").result()
        3
        >>> count("one two")
        2
        """
        wanted = UNTYPED if isinstance(agent, str) else return_type(agent)
        task_id = complete(verbs.submit(self._port, agent, input, options))
        return TaskHandle(self._port, task_id, verbs.decoder(wanted))

    def submit_workflow(self, workflow: Workflow, **options: Unpack[TaskOptions]) -> TaskHandle[dict[str, Any]]:
        """Give a workflow of at most 1000 steps; options as in `TaskOptions`, errors as of `submit`.

        >>> wf = Workflow("greet")
        >>> hello = wf.step("echo", "hello", id="hello")
        >>> world = wf.step("echo", "world", id="world", parents=[hello])
        >>> Mesh.memory().submit_workflow(wf).result()
        {'world': 'world'}
        """
        task_id = complete(verbs.submit_workflow(self._port, workflow.definition(), options))
        return TaskHandle(self._port, task_id, verbs.workflow_decoder(dict(workflow.result_types)))

    def task(self, task_id: str) -> TaskHandle[Any]:
        """A handle of a task that was submitted before, here or elsewhere. It asks nobody yet.

        >>> mesh = Mesh.memory()
        >>> mesh.task(mesh.submit("echo", "hello").id).result()
        'hello'
        """
        return TaskHandle(self._port, task_id, verbs.decoder(UNTYPED))

    def wait(self, task_id: str, timeout_s: float | None = None) -> TaskStatus:
        """As `TaskHandle.wait`.

        >>> mesh = Mesh.memory()
        >>> mesh.wait(mesh.submit("echo", "hello").id)
        'SUCCESS'
        """
        return self.task(task_id).wait(timeout_s)

    def cancel(self, task_id: str, mode: Literal["hard", "soft"] = "hard", *, reason: str = "") -> CancelState:
        """As `TaskHandle.cancel`.

        >>> mesh = Mesh.memory()
        >>> mesh.cancel(mesh.submit("echo", "hello").id, "soft")
        'cancelled'
        """
        return self.task(task_id).cancel(mode, reason=reason)

    def replay(self, task_id: str, step: str | None = None) -> list[str]:
        """As `TaskHandle.replay`.

        >>> mesh = Mesh.memory()
        >>> task = mesh.submit("echo", "hello")
        >>> task.result()
        'hello'
        >>> mesh.replay(task.id, "echo")
        ['echo']
        """
        return self.task(task_id).replay(step)


class Client(Submitter):
    """Submits to a mesh from plain threads and scripts, and may be used by several threads at once.

    `root` is the folder of a node on this host. `peer` is `HOST:PORT` of any node's streams, or several with commas
    between: the next is asked when one does not answer; `identity` is then an enrolment file, by default the identity
    under `root`. All that it submits and finds is in `namespace`. ConfigError when this names no node that could be
    asked; no connection is opened before the first question.

    Close it, or use it in a `with` block. It imports no Trio.

    >>> with Client(root=root) as client:
    ...     client.submit("echo", "hello").result(timeout_s=30)
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
        self._connections = SyncConnections(choose_targets(root, peer, identity))
        self._mesh_port = MeshPort(self._connections, namespace)

    @property
    def _port(self) -> Port:
        return self._mesh_port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections. Tasks go on; a question that is asked later opens another connection.

        >>> client = Client(root=root)
        >>> client.close()
        """
        self._connections.close()

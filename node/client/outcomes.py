"""What a submitter learns about a task: its status, the states of its steps, and why it has no result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mesh.errors import RelayMeshError

TaskStatus = Literal["PENDING", "RUNNING", "RETRYING", "SUCCESS", "DEAD_LETTER", "CANCELLED"]
"""What a task, or a step, is doing. The last three are ends; only a replay leads out of them."""

CancelState = Literal["cancelled", "requested", "too_late"]
"""`requested`: some owner has not obeyed yet, perhaps since it cannot be reached; the cancel holds until it does."""


class TaskFailed(RelayMeshError):  # noqa: N818  (an end of a task, not a mistake of the caller)
    """Raised by `result()`: the task has ended as DEAD_LETTER. `reason` is the error of the step that failed first.

    >>> mesh = Mesh.memory()
    >>> try:
    ...     mesh.submit("fail", "x", max_attempts=1).result()
    ... except TaskFailed as failure:
    ...     print(failure.reason)
    step 'fail' (agent fail): the agent `fail` always fails
    """

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(f"task {task_id} failed: {reason}")
        self.task_id = task_id
        self.reason = reason


class TaskCancelled(RelayMeshError):  # noqa: N818
    """Raised by `result()`: the task has ended as CANCELLED. `reason` is what the cancel said.

    >>> mesh = Mesh.memory()
    >>> task = mesh.submit("echo", "x")
    >>> task.cancel(reason="not needed")
    'cancelled'
    >>> try:
    ...     task.result()
    ... except TaskCancelled as cancelled:
    ...     print(cancelled.reason)
    cancelled: not needed
    """

    def __init__(self, task_id: str, reason: str) -> None:
        was = reason if reason.startswith("cancelled") else f"cancelled: {reason}"
        super().__init__(f"task {task_id} was {was}")
        self.task_id = task_id
        self.reason = reason


class ResultTypeError(RelayMeshError):
    """Raised by `result()`: the task has succeeded, and its result does not fit the type that was asked for.

    `content` is the result as it is, in bytes.

    >>> mesh = Mesh.memory()
    >>> try:
    ...     mesh.submit("echo", "no number").result(type=int)
    ... except ResultTypeError as error:
    ...     print(error.content)
    b'no number'
    """

    def __init__(self, text: str, content: bytes) -> None:
        super().__init__(text)
        self.content = content


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """One step of a task as it was at one moment; what `progress()` yields.

    >>> mesh = Mesh.memory()
    >>> task = mesh.submit("echo", "x")
    >>> [(step.name, step.status, step.attempt) for step in task.progress()]
    [('echo', 'PENDING', 0), ('echo', 'SUCCESS', 1)]
    """

    name: str
    """Its id in the workflow; of a task with one step, its agent."""
    agent: str
    status: TaskStatus
    blocked: bool
    """It waits for a parent that has not succeeded yet."""
    attempt: int
    """Runs that have begun, 0 before the first. A run that was lost with its node does not count."""
    owner: str
    """The node that runs it, or would."""
    error: str | None
    """What the latest attempt failed with, or why the step was cancelled."""

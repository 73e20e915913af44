"""What can be asked of a task or a step beside its agent and input. Options that are left out take the defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

Priority = Literal["high", "normal", "low"]
OnPartition = Literal["takeover", "wait"]
OnFailure = Literal["block", "continue"]


class RunOptions(TypedDict, total=False):
    """Options of what an agent is asked to do, be it alone or as a step of a workflow."""

    priority: Priority
    """Of 12 starts on a busy node 8 are of `high`, 3 of `normal` (the default) and 1 of `low`."""
    node: str
    """Run on this node only; default: on any that has the agent."""
    labels: Mapping[str, str]
    """Run on nodes that carry all of these labels, at most 32."""
    timeout_s: float
    """Longest run of one attempt, in seconds, at most 7 days. 0, the default: what the agent or the node says."""
    max_attempts: int
    """Runs before the step becomes a dead letter, at most 1000. 0, the default: what the agent or the node says."""
    delay_s: float
    """Start so many seconds after the submit at the earliest, at most 366 days."""
    expires_s: float
    """What has not begun so many seconds after the submit never begins, and ends CANCELLED. 0, the default: never."""
    on_partition: OnPartition
    """`takeover`, the default: at least once, on both sides of a cut if need be. `wait`: never in two places at
    once, even if that means not at all; it needs a mesh of 3 members."""


class StepOptions(RunOptions, total=False):
    """Options of one step of a workflow: those of a submit which concern how it runs, and `on_failure`.

    >>> wf = Workflow("nightly")
    >>> step = wf.step("echo", "x", id="greet", priority="high", timeout_s=2.5, max_attempts=5)
    >>> wf.definition()["steps"][0]["timeoutMs"]
    2500
    """

    on_failure: OnFailure
    """What it does below a parent that failed. `block`, the default: it waits for a replay of that one. `continue`: it
    runs when its parents have ended, without the outputs of those that failed; the task is a DEAD_LETTER all the same.
    """


class TaskOptions(TypedDict, total=False):
    """Options of a submit of any kind.

    >>> mesh = Mesh.memory()
    >>> mesh.submit("echo", "x", key="order-42").id == mesh.submit("echo", "x", key="order-42").id
    True
    """

    key: str
    """Submitting the same again under this key, of at most 256 characters, gives the same task, at whatever node and
    however often. Something else under it is a ConflictError. Default: a random key."""
    replicas: int
    """Answer when so many other nodes hold the task too, or when they did not within 5 s: it is accepted all the same.
    0, the default, answers when it is durable at the node that was asked."""


class SubmitOptions(RunOptions, TaskOptions, total=False):
    """Options of a submit of one agent's work: those of `TaskOptions`, and of `StepOptions` but for `on_failure`.

    >>> asked: SubmitOptions = {"key": "order-42", "priority": "high", "timeout_s": 2.5}
    >>> Mesh.memory().submit("echo", "x", **asked).result()
    'x'
    """


_ARGUMENTS = {
    "priority": "priority",
    "node": "node",
    "labels": "labels",
    "timeout_s": "timeoutMs",
    "delay_s": "delayMs",
    "expires_s": "expiresMs",
    "max_attempts": "maxAttempts",
    "on_partition": "onPartition",
    "on_failure": "onFailure",
    "key": "idempotencyKey",
    "replicas": "replicas",
}


def arguments(options: Mapping[str, Any], allowed: type) -> dict[str, Any]:
    """Options as nodes know them: their names there, without those that are left out or None.

    TypeError for an unknown option, ValueError for a time that is none. All else is checked by the node.
    """
    known = list(allowed.__annotations__)
    for name in options:
        if name not in known:
            raise TypeError(f"unknown option {name!r}: the options are {', '.join(known)}")
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("timeout_s", "delay_s", "expires_s"):
        if name in given:
            given[name] = _milliseconds(name, given[name])
    if "labels" in given:
        given["labels"] = dict(given["labels"])
    return {_ARGUMENTS[name]: value for name, value in given.items()}


def _milliseconds(name: str, seconds: float) -> int:
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"{name} is {seconds!r}, not a number of seconds from 0")
    return math.ceil(seconds * 1000)

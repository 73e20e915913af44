"""What an author of Python agents uses: `agent`, `Context`, `Retry`, and the ways to end a run. Light to import: no
event loop, no store.

A decorated function stays the plain function that it was, so it can be called and tested without a mesh.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar

ATTEMPTS_MAX = 1000
BACKOFF_MAX_MS = 7 * 24 * 3600 * 1000
TIMEOUT_MAX_S = 30 * 24 * 3600.0
CONCURRENCY_MAX = 10_000

CHECKPOINT_BYTES_MAX = 64 * 1024
"""A checkpoint says where to go on. Every one above 512 B is kept and replicated until its task is deleted."""

SNOOZE_MS_MIN = 100
SNOOZE_MS_MAX = 365 * 24 * 3600 * 1000

AGENT_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

F = TypeVar("F", bound=Callable[..., Any])


class Verdict(Exception):  # noqa: N818  (its kinds are outcomes that a handler chooses)
    """What a handler decides about its step instead of giving a result: raise one, or return it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Fail(Verdict):
    """Ends the step for good as a dead letter: it is not retried, and `reason` is kept as the step's error.

    >>> raise Fail("this order does not exist")
    Traceback (most recent call last):
    node.agents.api.Fail: this order does not exist
    """


class Cancel(Verdict):
    """Ends the step as CANCELLED: nothing failed, and there is nothing to do. Steps that depend on it never run.

    >>> Cancel("the order was withdrawn").reason
    'the order was withdrawn'
    """


class Snooze(Verdict):
    """Lets the step wait for `after_s` seconds and run again, any number of times: it counts as no attempt.

    The wait is from 0.1 s to 365 days, and like a retry's a duration: who takes the step over meanwhile counts it anew.
    ValueError outside of that. The next run begins with `ctx.saved` as the last checkpoint left it.

    >>> Snooze(30, "the printer is busy").after_s
    30.0
    """

    def __init__(self, after_s: float, reason: str = "") -> None:
        super().__init__(reason)
        if not SNOOZE_MS_MIN <= after_s * 1000 <= SNOOZE_MS_MAX:
            raise ValueError(
                f"after_s is {after_s}, not from {SNOOZE_MS_MIN / 1000} to {SNOOZE_MS_MAX // 1000} seconds"
            )
        self.after_s = float(after_s)


class CheckpointError(Exception):
    """A checkpoint may not have been kept: its text says why. The handler may go on without, or try again."""


class LeaseMovedError(CheckpointError):
    """The step has moved to another lease: another run counts now, and nothing of this one will. End it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failing step is tried, and how long to wait between tries.

    The wait before try n+1 is random within min(max_ms, base_ms * 2**(n-1)). None leaves a value to the node's
    settings.
    """

    max_attempts: int | None = None
    base_ms: int | None = None
    max_ms: int | None = None

    def __post_init__(self) -> None:
        _check_range("max_attempts", self.max_attempts, 1, ATTEMPTS_MAX)
        _check_range("base_ms", self.base_ms, 1, BACKOFF_MAX_MS)
        _check_range("max_ms", self.max_ms, 1, BACKOFF_MAX_MS)
        if self.base_ms is not None and self.max_ms is not None and self.base_ms > self.max_ms:
            raise ValueError(f"base_ms {self.base_ms} is above max_ms {self.max_ms}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One attempt at one step, as its handler sees it. Every field has a default, so that tests can make one."""

    payload: bytes = b""
    parents: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """Outputs of the steps that this one depends on, by step name."""
    fence: str = ""
    """Grows with each take-over of the step. Outside systems that compare it can refuse the smaller, late writer."""
    attempt: int = 1
    """1 for the first try."""
    task_id: str = ""
    step_id: str = ""
    step_name: str = ""
    namespace: str = "default"
    trace: str = ""
    """The W3C `traceparent` of this attempt."""
    saved: Any = None
    """What an earlier attempt, on whichever node, last gave to `checkpoint`; None when none did, or after a replay."""
    link: Link | None = field(default=None, repr=False, compare=False)
    """To the node; None in tests. The methods below use it, and a handler need not."""
    turn: int = field(default=0, repr=False, compare=False)

    def log(self, text: str, **fields: Any) -> None:
        """Write one line for people, with ` name=value` for each field. The last 4 KiB of an attempt's lines are kept.

        >>> Context().log("fetched", pages=3, source="the archive")  # on stderr: fetched pages=3 source="the archive"
        """
        told = "".join(f" {name}={_field(value)}" for name, value in fields.items())
        line = (text + told).replace("\r", "\\r").replace("\n", "\\n")
        print(line, file=sys.stderr)  # noqa: T201  (a host's stderr is the attempt's log)

    def progress(self, fraction: float, text: str = "") -> None:
        """Say how far this attempt is: `fraction` from 0 to 1 (beyond that it is cut), `text` of up to 200 characters.

        Never waits, and costs little: ten a second are passed on, and others kept for the next call. The node that runs
        the step shows the last one in `task` and `workflow`; it is stored nowhere. ValueError for a fraction that is no
        number.

        >>> Context().progress(0.3, "decoded")
        """
        if fraction != fraction:  # NaN is not equal to itself
            raise ValueError("fraction is not a number; give one from 0 to 1")
        if self.link is not None:
            self.link.report(self.turn, min(max(float(fraction), 0.0), 1.0), text)

    def checkpoint(self, value: Any) -> None:
        """Keep a JSON value for the step's next attempt, and return when it is durable on this node.

        For sync handlers, and for threads; in an async handler write `await ctx.checkpoint_async(value)`. The next
        attempt finds it in `ctx.saved`, also after a crash of this node's process, and on another node if it had
        arrived there: it is replicated like any row, so a node that is lost right after may take it along. At most 64
        KiB of JSON; above 512 B each is kept until its task is deleted, so say where you are, and keep data elsewhere.
        It costs a synced write: call it a few times a second at the most.

        Raises LeaseMovedError when another run of the step counts now, CheckpointError when this node could not store
        it, ValueError or TypeError for a value that is too long or is no JSON, RuntimeError inside an event loop.

        >>> Context().checkpoint({"page": 17})
        """
        if _loop_of_this_thread():
            raise RuntimeError("ctx.checkpoint would block the event loop: write `await ctx.checkpoint_async(value)`")
        if self.link is not None:
            self.link.save(self.turn, value)

    async def checkpoint_async(self, value: Any) -> None:
        """`checkpoint` for handlers under Trio or asyncio: the loop goes on meanwhile. Same promise, same errors."""
        if self.link is None:
            return
        if _loop_of_this_thread() == "trio":
            import trio

            await trio.to_thread.run_sync(self.link.save, self.turn, value)
        else:
            import asyncio

            await asyncio.to_thread(self.link.save, self.turn, value)

    @property
    def cancelled(self) -> bool:
        """Whether a cancel of the task was asked for, soft or hard: end soon, or go on if the work is nearly done.

        Never waits, so ask as often as you like. After a hard cancel the process is ended right away.
        """
        return self.link is not None and self.link.cancelled(self.turn)


class Link(Protocol):
    """What carries a context's calls to the node."""

    def report(self, turn: int, fraction: float, text: str) -> None:
        """Tell how far it is."""
        ...

    def save(self, turn: int, value: Any) -> None:
        """Keep a checkpoint; returns when it is durable."""
        ...

    def cancelled(self, turn: int) -> bool:
        """Whether a cancel was asked for."""
        ...


def _field(value: Any) -> str:
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)


def _loop_of_this_thread() -> Literal["trio", "asyncio"] | None:
    """The event loop that runs in this thread. Looks only at loops that somebody has imported."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return "trio"
    asyncio = sys.modules.get("asyncio")
    try:
        return "asyncio" if asyncio is not None and asyncio.get_running_loop() else None
    except RuntimeError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """One decorated function and its options."""

    name: str
    function: Callable[..., Any]
    retry: Retry
    timeout_s: float | None
    concurrency: int | None
    loop: Literal["trio", "asyncio"]


registered: dict[str, AgentSpec] = {}
"""Every agent that this process has decorated, by name. A host process serves exactly these."""


def agent(
    name: str,
    *,
    retry: Retry | None = None,
    timeout_s: float | None = None,
    concurrency: int | None = None,
    loop: Literal["trio", "asyncio"] = "trio",
) -> Callable[[F], F]:
    """Make a function an agent called `name` (1 to 64 of A-Z a-z 0-9 . _ -), and return it unchanged.

    The function takes `(payload)` or `(ctx, payload)`, or only a `ctx` of that name or annotated `Context`. The
    payload is text, unless its annotation says bytes; any other annotation gets decoded JSON of that type. A str or
    bytes result is kept as it is, None is empty, anything else becomes JSON. An `async def` runs under Trio, or under
    asyncio when `loop` says so.

    `timeout_s` is the longest run; `concurrency` the most runs at a time on one node. Raises ValueError or TypeError
    for options or a signature that cannot work, and for a name that another function has.
    """
    if not isinstance(name, str) or not AGENT_NAME.fullmatch(name):
        raise ValueError(f"agent name {str(name)[:80]!r} is not usable: give 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if loop not in ("trio", "asyncio"):
        raise ValueError(f"agent {name!r}: loop is {loop!r}, but only 'trio' and 'asyncio' are known")
    if timeout_s is not None and not 0 < timeout_s <= TIMEOUT_MAX_S:
        raise ValueError(f"agent {name!r}: timeout_s is {timeout_s}, not above 0 and at most {TIMEOUT_MAX_S:.0f}")
    _check_range("concurrency", concurrency, 1, CONCURRENCY_MAX)

    def register(function: F) -> F:
        payload_parameters(function)  # refuse a signature that cannot be called now, not at the first job
        earlier = registered.get(name)
        if earlier is not None and _place(earlier.function) != _place(function):
            raise ValueError(
                f"agent {name!r} is already the function at {_place(earlier.function)}: give each its own name"
            )
        registered[name] = AgentSpec(
            name=name,
            function=function,
            retry=retry or Retry(),
            timeout_s=None if timeout_s is None else float(timeout_s),
            concurrency=concurrency,
            loop=loop,
        )
        return function

    return register


def payload_parameters(function: Callable[..., Any]) -> tuple[bool, str | None]:
    """How to call a handler: (does it take a context first, name of its payload parameter or None).

    Raises TypeError when it is neither `(payload)`, `(ctx)` nor `(ctx, payload)`.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{_place(function)} is a generator; an agent returns one result")
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(required) in (1, 2) and all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in required):
        if len(required) == 2:
            return True, required[1].name
        only = required[0]
        if only.name == "ctx" or only.annotation in (Context, "Context", "relaymesh.Context"):
            return True, None
        return False, only.name
    raise TypeError(
        f"{_place(function)} takes {len(required)} arguments; an agent takes (payload), (ctx) or (ctx, payload)"
    )


def _place(function: Callable[..., Any]) -> str:
    """Where a function is defined, in the form that editors open."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{code.co_filename}:{code.co_firstlineno} ({name})" if code else str(name)


def _check_range(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not (isinstance(value, int) and least <= value <= most):
        raise ValueError(f"{name} is {value!r}, not a whole number from {least} to {most}")

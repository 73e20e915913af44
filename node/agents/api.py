"""What an author of Python agents uses: `agent`, `Context`, `Retry` and `Fail`. Light to import: no event loop, no
store.

A decorated function stays the plain function that it was, so it can be called and tested without a mesh.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

ATTEMPTS_MAX = 1000
BACKOFF_MAX_MS = 7 * 24 * 3600 * 1000
TIMEOUT_MAX_S = 30 * 24 * 3600.0
CONCURRENCY_MAX = 10_000

AGENT_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

F = TypeVar("F", bound=Callable[..., Any])


class Fail(Exception):  # noqa: N818  (an outcome that a handler chooses)
    """Raised by a handler to end its step for good: it is not retried, and `reason` is kept as the step's error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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

    def log(self, text: str) -> None:
        """Write one line for people. The last 4 KiB of an attempt's lines are kept with it."""
        print(text, file=sys.stderr)  # noqa: T201  (a host's stderr is the attempt's log)


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

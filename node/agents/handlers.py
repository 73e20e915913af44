"""Calling one Python handler: payload in, handler under the right loop, result or failure out. Runs inside a host
process.

Whatever a handler does short of ending its process comes back as a `Done`; nothing that it raises escapes.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import msgspec

from node.agents.api import AgentSpec, Cancel, Context, Fail, Link, Snooze, Verdict, payload_parameters
from node.agents.wire import ERROR_CHARS_MAX, Done, Run

TRACEBACK_FRAMES_MAX = 6  # the innermost ones; the log that they go to keeps 4 KiB


class Handler:
    """One agent, ready to be called. Raises TypeError for a payload type that JSON cannot become."""

    def __init__(self, spec: AgentSpec, *, result_bytes_max: int) -> None:
        self.spec = spec
        self._result_bytes_max = result_bytes_max
        self._takes_context, parameter = payload_parameters(spec.function)
        self._decode = _payload_decoder(spec, parameter)
        self._call = _caller(spec)

    def run(self, job: Run, link: Link | None = None, turn: int = 0) -> Done:
        """Call the handler once and say how it ended. Never raises for what the handler did."""
        try:
            arguments = self._arguments(job, link, turn)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # The same bytes will never decode, so trying again is useless.
            return _rejected(f"the payload does not fit agent {self.spec.name!r}: {error}")
        try:
            returned = self._call(*arguments)
            if isinstance(returned, Verdict):
                return _obeyed(returned)
            result = _encode_result(returned)
        except Verdict as verdict:
            return _obeyed(verdict)
        except BaseExceptionGroup as group:
            chosen = _verdict_of(group)
            return _obeyed(chosen) if chosen else _failed(group)
        except BaseException as error:  # SystemExit too: a handler does not end its host in passing
            return _failed(error)
        if len(result) > self._result_bytes_max:
            return _rejected(f"the result has {len(result)} bytes, above the limit of {self._result_bytes_max}")
        return Done("success", result, "", retire=False)

    def _arguments(self, job: Run, link: Link | None, turn: int) -> list[Any]:
        payload = [self._decode(job.payload)] if self._decode else []
        if not self._takes_context:
            return payload
        context = Context(
            payload=job.payload,
            parents=MappingProxyType(job.parents),
            fence=job.fence,
            attempt=job.attempt,
            task_id=job.task_id,
            step_id=job.step_id,
            step_name=job.step_name,
            namespace=job.namespace,
            trace=job.trace,
            saved=msgspec.json.decode(job.saved) if job.saved else None,
            link=link,
            turn=turn,
        )
        return [context, *payload]


def _payload_decoder(spec: AgentSpec, parameter: str | None) -> Callable[[bytes], Any] | None:
    """How payload bytes become the handler's argument; None when it wants only the context."""
    if parameter is None:
        return None
    annotation = _annotation(spec.function, parameter)
    if annotation is bytes:
        return bytes
    if annotation is str or annotation is inspect.Parameter.empty:
        return bytes.decode
    try:
        return msgspec.json.Decoder(annotation).decode
    except TypeError as error:
        raise TypeError(f"agent {spec.name!r}: JSON cannot become the payload type {annotation!r}: {error}") from error


def _annotation(function: Callable[..., Any], parameter: str) -> Any:
    try:
        return inspect.signature(function, eval_str=True).parameters[parameter].annotation
    except NameError:
        # A name imported only for type checkers. What the text says still tells text and bytes from JSON.
        text = inspect.signature(function).parameters[parameter].annotation
        return {"str": str, "bytes": bytes}.get(text, Any)


def _caller(spec: AgentSpec) -> Callable[..., Any]:
    """A plain function that runs the handler to its end; loops are imported only by those who need them."""
    function = spec.function
    if not inspect.iscoroutinefunction(function):
        return function
    if spec.loop == "asyncio":
        import asyncio

        return lambda *arguments: asyncio.run(function(*arguments))
    import trio

    return lambda *arguments: trio.run(function, *arguments)


def _encode_result(result: Any) -> bytes:
    if isinstance(result, str):
        return result.encode()
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result)
    return b"" if result is None else msgspec.json.encode(result)


def _verdict_of(group: BaseExceptionGroup[BaseException]) -> Verdict | None:
    """What a nursery or task group raised: any `Fail`, or else a `Cancel` or `Snooze` beside which nothing failed."""
    kinds: tuple[type[Verdict], ...] = (Fail,)
    if group.split(Verdict)[1] is None:
        kinds = (Fail, Cancel, Snooze)
    for kind in kinds:
        chosen: BaseException | None = group.subgroup(kind)
        while isinstance(chosen, BaseExceptionGroup):
            chosen = chosen.exceptions[0]
        if isinstance(chosen, kind):
            return chosen
    return None


def _obeyed(verdict: Verdict) -> Done:
    match verdict:
        case Snooze():
            return Done("snoozed", b"", _cut(verdict.reason), retire=False, snooze_ms=round(verdict.after_s * 1000))
        case Cancel():
            return Done("cancelled", b"", _cut(verdict.reason), retire=False)
        case _:
            return _rejected(verdict.reason)


def _rejected(reason: str) -> Done:
    return Done("rejected", b"", _cut(reason), retire=False)


def _failed(error: BaseException) -> Done:
    below_us = error.__traceback__ and error.__traceback__.tb_next
    traceback.print_exception(type(error), error, below_us, limit=-TRACEBACK_FRAMES_MAX)
    return Done("failed", b"", describe_exception(error), retire=isinstance(error, MemoryError))


def describe_exception(error: BaseException) -> str:
    """`Type: message` in at most ERROR_CHARS_MAX characters; the innermost one when a group holds just one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    try:
        message = str(error)
    except Exception:  # a handler's exception class may be broken too; its name is still worth telling
        message = "(its text cannot be printed)"
    return _cut(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _cut(text: str) -> str:
    # Lone surrogates cannot travel as UTF-8 and would make the answer itself undeliverable.
    return text[:ERROR_CHARS_MAX].encode("utf-8", "backslashreplace").decode()

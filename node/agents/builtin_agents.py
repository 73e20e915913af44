"""The agents that every node has: `echo`, `fail` and `sleep`. No user code is in them, so the node itself runs them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from node.agents.host_pool import timeout_text
from node.env import AgentInfo, Job, Outcome


async def _echo(job: Job) -> Outcome:
    return Outcome(kind="success", result=job.payload)


async def _fail(_job: Job) -> Outcome:
    return Outcome(kind="failed", error="the agent `fail` always fails")


async def _sleep(job: Job) -> Outcome:
    text = job.payload.decode(errors="replace").strip()
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        return Outcome(kind="rejected", error=f"the agent `sleep` takes a number of seconds, not {text[:80]!r}")
    with trio.move_on_after(job.timeout_s) as limit:
        await trio.sleep(seconds)
    if limit.cancelled_caught:
        return Outcome(kind="timeout", error=timeout_text(job))
    return Outcome(kind="success", result=job.payload)


BUILTINS: dict[str, Callable[[Job], Awaitable[Outcome]]] = {"echo": _echo, "fail": _fail, "sleep": _sleep}


def builtin_infos() -> list[AgentInfo]:
    """What the node knows about them."""
    return [AgentInfo(name=name, kind="builtin") for name in BUILTINS]

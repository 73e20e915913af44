"""One life of one simulated process: while it lives its world answers, and from its death on nothing does.

A killed process must do nothing any more, however its code is written. So everything that it reaches for goes through
here and raises `ProcessGone` after the death. Only then are its tasks cancelled: their clean-up finds a dead world.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ProcessGone(BaseException):
    """The process was killed. Not an Exception: no handler of the node's may take it for a fault to be survived."""


class Process:
    """Whether this process still lives."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.is_gone = False

    def check(self) -> None:
        """Raise ProcessGone when it does not live any more."""
        if self.is_gone:
            raise ProcessGone(self.host)

    async def live(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Do this, and come back only when the process still lives."""
        self.check()
        result = await fn(*args)
        self.check()
        return result

    def dies(self) -> None:
        """From now on, nothing that it does has an effect."""
        self.is_gone = True

    async def nap(self, seconds: float) -> None:
        """Let virtual time pass, whatever was cancelled meanwhile: a call to a disk cannot be withdrawn."""
        with trio.CancelScope(shield=True):
            await self.live(trio.sleep, seconds)

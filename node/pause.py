"""A sleep that can be cut short: for loops that do something now and then, at an interval that may change meanwhile."""

from __future__ import annotations

import trio

from node.env import Clock


class Pause:
    """The sleep of one loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._scope = trio.CancelScope()

    async def sleep(self, seconds: float | None) -> bool:
        """Sleep so long, None for ever. False when it was cut short: look at the interval again."""
        with trio.CancelScope() as self._scope:
            if seconds is None:
                await trio.sleep_forever()
            else:
                await self._clock.sleep(seconds)
            return True
        return False

    def cut(self) -> None:
        """End the sleep that is under way, if any; what the loop does between two sleeps goes on."""
        self._scope.cancel()

"""One host's clocks: how long it has been up, and what it believes the date to be. Both may be wrong."""

from __future__ import annotations

import trio

from chaos.simulation.event_heap import EventHeap
from chaos.simulation.process import Process

WORLD_BEGAN_S = 1_700_000_000.0
"""The true date at virtual time zero."""


class HostClock:
    """`node.env.Clock`. The host keeps it over restarts of its process; `reboot` begins a new time since boot."""

    def __init__(self, heap: EventHeap, process: Process, *, skew_s: float = 0.0, drift_ppm: float = 0.0) -> None:
        self._heap = heap
        self.process = process
        """The one that sleeps by this clock now."""
        self._offset_s = skew_s
        self._rate = 1.0 + drift_ppm / 1e6
        self._true_s = heap.now
        self._monotonic_s = 0.0
        self._wall_s = WORLD_BEGAN_S + heap.now
        self._frozen = False

    def monotonic(self) -> float:
        """Seconds since the host was switched on, as its quartz counts them."""
        return self._monotonic_s + (self._heap.now - self._true_s) * self._rate

    def wall(self) -> float:
        """The date, in seconds since 1970, as the host believes."""
        ticked_s = 0.0 if self._frozen else (self._heap.now - self._true_s) * self._rate
        return self._wall_s + ticked_s + self._offset_s

    async def sleep(self, seconds: float) -> None:
        """Sleep this long by the host's own quartz."""
        await self.process.live(trio.sleep, max(0.0, seconds) / self._rate)

    # --- what faults do ---

    def _rebase(self) -> None:
        self._monotonic_s, self._wall_s = self.monotonic(), self.wall() - self._offset_s
        self._true_s = self._heap.now

    def drift(self, ppm: float) -> None:
        """Run this much too fast from now on."""
        self._rebase()
        self._rate = 1.0 + ppm / 1e6

    def jump(self, seconds: float) -> None:
        """The date jumps; time since boot does not."""
        self._offset_s += seconds

    def freeze(self, frozen: bool) -> None:
        """The date stands still, or goes on."""
        self._rebase()
        self._frozen = frozen

    def lose_date(self) -> None:
        """Begin in 1970, as a host without a clock chip does."""
        self._rebase()
        self._wall_s, self._offset_s = 0.0, 0.0

    def correct(self) -> None:
        """Show the true date and run at the true rate, as a time service brings about in the end."""
        self._rebase()
        self._rate, self._frozen = 1.0, False
        self._wall_s, self._offset_s = WORLD_BEGAN_S + self._heap.now, 0.0

    def reboot(self) -> None:
        """The host was switched off and on."""
        self._rebase()
        self._monotonic_s = 0.0

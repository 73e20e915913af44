"""The clock that Trio runs on: time jumps to whatever comes next, a task's deadline or an appointment of the world."""

from __future__ import annotations

import trio

from chaos.simulation.event_heap import FOREVER, EventHeap

TURNS_PER_INSTANT_MAX = 20_000
"""Turns of the loop without any time passing. More is a livelock: in a real process, a core at 100 %."""


class WorldClock(trio.abc.Clock):
    """Virtual time for `trio.run`, driven by an `EventHeap`. Never waits for real.

    When nothing could ever happen again, or time stands still, `stuck` says so and the root scope is cancelled: a raise
    in here would only become noise around a TrioInternalError.
    """

    def __init__(self, heap: EventHeap) -> None:
        self._heap = heap
        self._turns = 0
        self._instant = -1.0
        self.root = trio.CancelScope()
        self.stuck = ""

    def start_clock(self) -> None:
        """Part of Trio's interface; virtual time begins at zero by itself."""

    def current_time(self) -> float:
        """Seconds since the start of the world."""
        return self._heap.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Called when no task can run: go to what comes next."""
        next_at = self._heap.next_at()
        if min(deadline, next_at) == FOREVER:
            self._give_up("deadlock: every task waits, and nothing is due")
        elif deadline < next_at:
            self._heap.now = max(self._heap.now, deadline)
        else:
            self._heap.fire_next_instant()
        if self._heap.now > self._instant:
            self._instant, self._turns = self._heap.now, 0
        self._turns += 1
        if self._turns > TURNS_PER_INSTANT_MAX:
            self._give_up(f"livelock: {TURNS_PER_INSTANT_MAX} turns of the loop, and no time has passed")
        return 0.0

    def _give_up(self, why: str) -> None:
        self.stuck = self.stuck or why
        self.root.cancel()

"""The clock that Trio runs on: time jumps to whatever comes next, a task's deadline or an appointment of the world."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from chaos.simulation.event_heap import FOREVER, EventHeap

TURN_S = 1e-6
"""What turns of the loop take at least. Else a task that waits for less than a float can tell would wait for ever."""
LOOKS_PER_TURN = 32
"""Looks at the clock in one instant, after which time has passed whatever the tasks do."""
LIVELOCK_LOOKS, LIVELOCK_S = 200_000, 0.01
"""So many looks in so little time are a livelock: in a real process, a core at 100 %."""


class WorldClock(trio.abc.Clock):
    """Virtual time for `trio.run`, driven by an `EventHeap`. Never waits for real.

    When nothing could ever happen again, or time stands still, `stuck` says so and the world is cancelled: a raise
    in here would only become noise around a TrioInternalError.
    """

    def __init__(self, heap: EventHeap) -> None:
        self._heap = heap
        self._looks = self._looks_here = 0
        self._here_since = 0.0
        self._root = trio.CancelScope()
        self._over = False
        self.stuck = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """All that happens in the world happens in this block. After it, only Trio tidies up, and nothing is stuck."""
        try:
            with self._root:
                yield
        finally:
            self._over = True

    def start_clock(self) -> None:
        """Part of Trio's interface; virtual time begins at zero by itself."""

    def current_time(self) -> float:
        """Seconds since the start of the world."""
        heap = self._heap
        self._looks += 1
        if self._looks % LOOKS_PER_TURN == 0:
            heap.now += TURN_S
            self._watch_for_livelock()
        return heap.now

    def _watch_for_livelock(self) -> None:
        if self._heap.now - self._here_since > LIVELOCK_S:
            self._here_since, self._looks_here = self._heap.now, self._looks
        elif self._looks - self._looks_here > LIVELOCK_LOOKS:
            self._give_up("livelock: tasks run on and on, and hardly any time passes")

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Called when no task can run: go to what comes next."""
        heap = self._heap
        next_at = heap.next_at()
        if min(deadline, next_at) == FOREVER:
            self._give_up("deadlock: every task waits, and nothing is due")
        elif deadline < next_at:
            heap.now = max(heap.now, deadline)
        else:
            heap.fire_next_instant()
        return 0.0

    def _give_up(self, why: str) -> None:
        if not self._over:
            self.stuck = self.stuck or why
            self._root.cancel()

"""Virtual time: a heap of things that will happen, and the moment that it is now."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

FOREVER = float("inf")


@dataclass(slots=True, eq=False)
class Appointment:
    """Something that happens at a time. Of two at one time, the one that was made first happens first."""

    when: float
    action: Callable[[], None] | None

    def cancel(self) -> None:
        """Have it not happen. May be repeated, also after it happened."""
        self.action = None


class EventHeap:
    """The only time that a simulated world has, in seconds from its start."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Appointment]] = []
        self._count = 0

    def at(self, when: float, action: Callable[[], None]) -> Appointment:
        """Do this at a time; at once, but after what is due already, when that lies in the past."""
        self._count += 1
        appointment = Appointment(max(when, self.now), action)
        heapq.heappush(self._heap, (appointment.when, self._count, appointment))
        return appointment

    def after(self, seconds: float, action: Callable[[], None]) -> Appointment:
        """Do this so many seconds from now."""
        return self.at(self.now + seconds, action)

    def next_at(self) -> float:
        """When the next thing happens; infinite when nothing will."""
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else FOREVER

    def fire_next_instant(self) -> None:
        """Go to the time of the next appointment, and do all that is due then, with what that makes due at once."""
        self.now = max(self.now, self.next_at())
        while self.next_at() <= self.now:
            action = heapq.heappop(self._heap)[2].action
            assert action is not None, "next_at drops cancelled ones"
            action()

    def run_until(self, end: float) -> None:
        """Do everything up to this time, and stand there. For worlds that have nothing but a heap."""
        while self.next_at() <= end:
            self.fire_next_instant()
        self.now = end

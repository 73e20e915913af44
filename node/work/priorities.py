"""In which order the three priority classes are served: 8 to 3 to 1, and nobody starves.

A wheel of twelve places, `HHHHHHHHNNNL`, turned by one place for each claim. A place whose class is empty falls to the
next class in priority order, so no turn is wasted. The bound on consecutive high claims is kept from the predecessor's
contract; with the wheel it can only bite when the other classes were empty.
"""

from __future__ import annotations

HIGH, NORMAL, LOW = 0, 1, 2
_WHEEL = (HIGH,) * 8 + (NORMAL,) * 3 + (LOW,)
MAX_CONSECUTIVE_HIGH = 100


class PriorityWheel:
    """Turns once per claim and says which class to try first, second and third."""

    def __init__(self) -> None:
        self._place = 0
        self._consecutive_high = 0

    def order(self) -> tuple[int, int, int]:
        """The classes in the order in which the next claim should try them. Does not turn the wheel."""
        first = _WHEEL[self._place]
        if self._consecutive_high >= MAX_CONSECUTIVE_HIGH:
            return (LOW, NORMAL, HIGH)
        rest = [priority for priority in (HIGH, NORMAL, LOW) if priority != first]
        return (first, rest[0], rest[1])

    def claimed(self, priority: int) -> None:
        """A step of this class was claimed: turn the wheel."""
        self._place = (self._place + 1) % len(_WHEEL)
        self._consecutive_high = self._consecutive_high + 1 if priority == HIGH else 0

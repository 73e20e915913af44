"""In which order the three priority classes are served: 8 to 3 to 1, and nobody starves.

A wheel of twelve places, `HHHHHHHHNNNL`, turned by one place for each claim. A place whose class is empty falls to the
next class in priority order, so no turn is wasted. Within a class the namespaces that have something take turns.

Besides, what has waited long in the lowest class is served out of turn: of every AGED_EVERY claims at least one belongs
to the oldest low entry that has waited for longer than AGED_AFTER_MS. So a low step begins, whatever load is above it,
within that time and AGED_EVERY claims for each low step before it; and however many of those there are, the others keep
the rest. The bound on consecutive high claims is kept from the predecessor's
contract; with the wheel it can only bite when the other classes were empty.
"""

from __future__ import annotations

HIGH, NORMAL, LOW = 0, 1, 2
_WHEEL = (HIGH,) * 8 + (NORMAL,) * 3 + (LOW,)
MAX_CONSECUTIVE_HIGH = 100
AGED_AFTER_MS = 60_000
AGED_EVERY = 4


class PriorityWheel:
    """Turns once per claim and says which class to try first, second and third."""

    def __init__(self) -> None:
        self._place = 0
        self._consecutive_high = 0
        self._since_aged = 0
        self.served: dict[int, str] = {}
        """The namespace that was served last, by class."""

    def order(self) -> tuple[int, int, int]:
        """The classes in the order in which the next claim should try them. Does not turn the wheel."""
        first = _WHEEL[self._place]
        if self._consecutive_high >= MAX_CONSECUTIVE_HIGH:
            return (LOW, NORMAL, HIGH)
        rest = [priority for priority in (HIGH, NORMAL, LOW) if priority != first]
        return (first, rest[0], rest[1])

    def aged_until_ms(self, now_ms: int) -> int | None:
        """A low entry that has waited since before then goes first; None when it is not such an entry's turn."""
        return now_ms - AGED_AFTER_MS if self._since_aged >= AGED_EVERY - 1 else None

    def claimed(self, priority: int, namespace: str = "") -> None:
        """A step of this class and namespace was claimed: turn the wheel."""
        self.served[priority] = namespace
        self._since_aged = 0 if priority == LOW else self._since_aged + 1
        self._place = (self._place + 1) % len(_WHEEL)
        self._consecutive_high = self._consecutive_high + 1 if priority == HIGH else 0

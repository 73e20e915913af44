"""The mass-failure freeze: when most others fail at once, the likeliest dead node is this one.

Promises: when more than half of at least three other members fail within one dead time, nothing is declared DEAD and
nothing reclaimed for two dead times; then work continues with those very failures, which never freeze again until
the members have recovered. With one or two others there is no freeze, because no majority could be told.

A member is *failing* from its suspicion until it is ALIVE again, and for one dead time after it was declared DEAD.
"""

from __future__ import annotations

from collections.abc import Iterable

OTHERS_MIN = 3
FREEZE_DEAD_TIMES = 2


class MassFailureFreeze:
    """Counts failing members and says until when no verdict may be given."""

    def __init__(self) -> None:
        self._failing: dict[str, float | None] = {}  # node id -> when it was declared DEAD, None while SUSPECT
        self._spent: dict[str, None] = {}  # failures that already caused a freeze
        self._until = 0.0
        self.freezes = 0

    def on_suspect(self, node_id: str) -> None:
        """A member came under suspicion."""
        self._failing[node_id] = None

    def on_dead(self, node_id: str, now: float) -> None:
        """A member was declared DEAD."""
        self._failing[node_id] = now

    def on_recovered(self, node_id: str) -> None:
        """A member is ALIVE again, or left, or is forgotten."""
        self._failing.pop(node_id, None)
        self._spent.pop(node_id, None)

    def evaluate(self, active: Iterable[str], dead_after_s: float, now: float, *, deaf: bool = False) -> None:
        """Freeze if the rule holds now. `active` names the other ALIVE and SUSPECT members.

        `deaf` says that nobody at all was heard for one dead time: then all of them count as failing.
        """
        self._failing = {n: at for n, at in self._failing.items() if at is None or now - at < dead_after_s}
        others = dict.fromkeys(active) | dict.fromkeys(self._failing)
        failing = others if deaf else self._failing
        fresh = [node_id for node_id in failing if node_id not in self._spent]
        unspent = [node_id for node_id in others if node_id not in self._spent]
        if self.frozen(now):
            # Whoever fails during a freeze belongs to the same event.
            self._spent |= dict.fromkeys(fresh)
        elif len(unspent) >= OTHERS_MIN and 2 * len(fresh) > len(unspent):
            self._spent |= dict.fromkeys(fresh)
            self._until = now + FREEZE_DEAD_TIMES * dead_after_s
            self.freezes += 1

    def frozen(self, now: float) -> bool:
        """True while no DEAD may be published and nothing reclaimed."""
        return now < self._until

    def until(self) -> float:
        """When the last freeze ends or ended; 0 before the first."""
        return self._until

    def shift(self, seconds: float) -> None:
        """Forgive a pause of our own."""
        self._until += seconds

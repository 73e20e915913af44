"""One running suspicion: when it ends, and how independent confirmations shorten it (Lifeguard).

Promises: the deadline lies between the shortest and the longest time after the start; each distinct accuser beyond the
first moves it earlier, never later; the same accuser counts once. Only `shift` moves it later, for our own pauses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Suspicion:
    """The suspicion of one (life, incarnation) of one member."""

    started: float
    shortest_s: float
    longest_s: float
    refutable_s: float
    """Agreement of others ends it no sooner: claims are unsigned, and the accused must have time to refute."""
    wanted: int
    """Confirmations after which the shortest time applies; 0 applies it at once."""
    accusers: dict[str, None] = field(default_factory=dict)
    """Who accused, in order of arrival. The first one opened the suspicion and confirms nothing."""
    held_until: float = 0.0
    """The verdict waits for this moment while a mass failure is frozen."""
    agreed: bool = False
    """Enough live members have declared it DEAD: nothing is left to wait for but its refutation."""

    def confirm(self, accuser: str) -> bool:
        """Count an accuser; True when it is new and still shortens something, so worth telling others."""
        if accuser in self.accusers or len(self.accusers) > self.wanted:
            return False
        self.accusers[accuser] = None
        return True

    def deadline(self) -> float:
        """When the member is to be declared DEAD."""
        lasts_s = min(self.refutable_s, self._lasts_s()) if self.agreed else self._lasts_s()
        return max(self.started + lasts_s, self.held_until)

    def shift(self, seconds: float) -> None:
        """Forgive a pause of our own: for that long nobody could have refuted to us."""
        assert seconds >= 0, seconds
        self.started += seconds

    def _lasts_s(self) -> float:
        confirmations = len(self.accusers) - 1
        if confirmations >= self.wanted:
            return self.shortest_s
        share = math.log(max(confirmations, 0) + 1) / math.log(self.wanted + 1)
        return max(self.shortest_s, self.longest_s - (self.longest_s - self.shortest_s) * share)

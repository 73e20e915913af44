"""Suspicion: it ends, in a refutation or in DEAD, and even a mass failure postpones its end by a bounded time."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.promise import Promise
from chaos.observations import Sampled, Seen
from mesh.profiles import PROFILES, SUSPICION_MAX_FACTOR

FREEZE_DEAD_TIMES = 2
SLACK_S = 2.5
"""For timers, and for clocks that run too slow."""
STALLS = frozenset({"pause", "starve", "clone"})
"""Faults after which a host counts some of its time, or none, or another process's opinion."""


class SuspicionsEnd(Promise):
    """A process that was not stopped holds nobody SUSPECT for longer than the longest suspicion and its freezes.

    A freeze lasts two dead times and is about failures that caused none before: among three others there is one.
    """

    name = "suspicions-end"
    hears = (Sampled,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        profile, nodes = PROFILES[mirror.scenario.profile], mirror.scenario.nodes
        longest = SUSPICION_MAX_FACTOR if profile.confirmations_wanted(nodes) else 1
        freezes = 0 if nodes < 4 else 1 if nodes == 4 else 2
        self._bound_ms = ((longest + freezes * FREEZE_DEAD_TIMES) * mirror.dead_time_s + SLACK_S) * 1000

    def see(self, seen: Seen) -> Iterator[str]:
        """Look at what one process holds of the others."""
        assert isinstance(seen, Sampled)
        host = self.mirror.host(seen.host)
        if not STALLS.isdisjoint(host.met):
            return
        for name, opinion in host.view.items():
            if opinion.status == "SUSPECT" and seen.at_ms - opinion.since_ms > self._bound_ms:
                yield f"{seen.host} suspects {name} since {opinion.since_ms:.0f} ms"

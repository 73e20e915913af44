"""Bounds: no queue of a node grows beyond its limit, whatever peers, clients and faults do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chaos.invariants.promise import Promise
from chaos.observations import Sampled, Seen

LIMITS: Mapping[str, int] = {
    "local_waiting": 4_096,
    "remote_rows_waiting": 20_000,
    "rumors_queued": 2 * 2_048,
}
"""What each level may reach at the most. Rumors have two queues: about members, and about everything else."""


class LevelsBounded(Promise):
    """Every queue that a node tells the length of stays within its limit."""

    name = "levels-bounded"
    hears = (Sampled,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare levels with limits."""
        assert isinstance(seen, Sampled)
        for name, level in seen.levels.items():
            if level > LIMITS.get(name, 0):
                yield f"{seen.host}: {name} is {level}, at most {LIMITS.get(name, 0)}"

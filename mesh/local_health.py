"""Lifeguard's local health: how much this node should doubt itself before it doubts others.

Promises: the score stays within 0 (healthy) and `SCORE_MAX`. It rises on evidence that *we* are slow or deaf (helpers
that do not even refuse, accusations against us, timers that fired late) and falls with every answered probe.
"""

from __future__ import annotations

SCORE_MAX = 7  # Lifeguard's S = 8 levels: at worst, probes are eight times slower and eight times more patient


class LocalHealth:
    """A score, and the factor by which it stretches probing."""

    def __init__(self) -> None:
        self.score = 0

    @property
    def stretch(self) -> int:
        """Multiply probe interval and probe timeout by this, both together: stretching one alone overlaps probes."""
        return self.score + 1

    def worse(self, by: int = 1) -> None:
        """Evidence against ourselves."""
        assert by >= 0, by
        self.score = min(SCORE_MAX, self.score + by)

    def better(self) -> None:
        """A probe was answered in time."""
        self.score = max(0, self.score - 1)

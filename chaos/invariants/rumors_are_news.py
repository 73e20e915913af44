"""Rumors: what members pass on reaches each of them many times, and is news to each of them once."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.promise import Promise
from chaos.observations import RumorRepeated, Seen


class RumorsAreNews(Promise):
    """No process hears one rumor twice: copies are dropped, and not passed on again."""

    name = "rumors-are-news"
    hears = (RumorRepeated,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Every repetition is one too many."""
        yield f"{seen.host} was told a rumor again"

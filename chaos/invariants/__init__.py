"""The promises of RelayMesh, one file each, judged while a world runs and again when it has come to rest.

An invariant hears every observation in order, keeps what it needs, and yields a text for each way in which its promise
was broken. It costs O(changes), never O(state) per observation. Whatever it knows of the order of rows, fences or
statuses it says itself, in its own words: an oracle that asks the product agrees with the product's faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from chaos.observations import Rest, Seen


class Invariant(Protocol):
    """One promise. Made anew for each run."""

    name: str
    """Short, in words with hyphens: what a violation is reported under."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Hear what happened; yield what was wrong about it."""
        ...

    def judge(self, rest: Rest) -> Iterator[str]:
        """Look at the world at rest; yield what is wrong with it."""
        ...

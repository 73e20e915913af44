"""What all promises have in common: they share a mirror, and hear only the kinds of observations that they name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from chaos.invariants.mirror import Mirror
from chaos.observations import Rest, Seen


class Promise:
    """An invariant that says nothing yet. Texts that it yields are violations."""

    name: ClassVar[str]
    hears: ClassVar[tuple[type[Seen], ...]] = ()
    """Kinds of observations that `see` is given."""
    needs_rest: ClassVar[bool] = True
    """Whether `judge` makes sense only of a mesh that has come to rest."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        """All that was heard so far. During `see` it does not contain what is being seen."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Hear what happened; yield what was wrong about it."""
        return iter(())

    def judge(self, rest: Rest) -> Iterator[str]:
        """Look at the world at rest; yield what is wrong with it."""
        return iter(())

"""One mutant: a fault that a maintainer could write by mistake, and who must notice it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from chaos.mutants.edits import Edit, edited


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A deliberate fault of the product. At most one is in force at a time."""

    name: str
    breaks: str
    """The promise, in words, that does not hold any more."""
    caught_by: tuple[str, ...]
    """Names of the invariants that this is a test of: one of them must speak up within 40 seeds of the swarm."""
    edits: tuple[Edit, ...]
    scenario: str = ""
    """The named scenario that shows it instead, where the swarm has nothing of the kind."""

    def apply(self) -> AbstractContextManager[None]:
        """Put the fault into the product until the block ends. AssertionError when the product has no such place."""
        return edited(self.edits)

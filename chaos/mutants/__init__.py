"""Mutants: deliberate faults in the product, each of which an invariant must catch. They test the tests.

An invariant that no mutant trips may well judge nothing; so every promise has one that breaks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from chaos.mutants import membership, queueing, replication, schedules, storage, waiting, work
from chaos.mutants.mutant import Mutant

__all__ = ["MUTANTS", "Mutant", "mutated"]

MUTANTS: Mapping[str, Mutant] = {
    mutant.name: mutant
    for mutant in (
        *work.MUTANTS,
        *waiting.MUTANTS,
        *schedules.MUTANTS,
        *queueing.MUTANTS,
        *membership.MUTANTS,
        *replication.MUTANTS,
        *storage.MUTANTS,
    )
}
"""All of them, by name."""


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Put this mutant's fault into the product until the block ends. KeyError for an unknown name."""
    with MUTANTS[name].apply():
        yield

"""The promises of RelayMesh, one file each, judged while a world runs and again when it has come to rest.

An invariant hears observations in order, keeps what it needs, and yields a text for each way in which its promise was
broken. It costs O(changes), never O(state) per observation. Whatever it knows of the order of rows, fences or statuses
it says itself, in its own words: an oracle that asks the product agrees with the product's faults.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chaos.invariants.acknowledged_kept import AcknowledgedKept, NodeKnowsItsWord
from chaos.invariants.final_is_maximum import FinalIsMaximum, VersionsOnlyGrow
from chaos.invariants.mirror import Mirror
from chaos.invariants.one_content_per_dot import OneContentPerDot
from chaos.invariants.promise import Promise
from chaos.observations import Rest, Seen
from chaos.runs import Violation
from chaos.scenario import Scenario

__all__ = ["ALL", "Judge", "Promise"]

ALL: Sequence[type[Promise]] = (
    AcknowledgedKept,
    NodeKnowsItsWord,
    FinalIsMaximum,
    VersionsOnlyGrow,
    OneContentPerDot,
)
"""Every promise that a run of whole nodes is held to."""

SHOWN_MAX = 10
"""Violations of one promise that are kept; the rest are counted. One fault breaks a promise again and again."""


class Judge:
    """All promises of one run. `violations` may be read at any time."""

    def __init__(self, scenario: Scenario, promises: Sequence[type[Promise]] = ALL) -> None:
        self._mirror = Mirror(scenario)
        self._promises = [kind(self._mirror) for kind in promises]
        self._hearers: dict[type[Seen], list[Promise]] = {}
        self._violations: list[Violation] = []
        self._counts: dict[str, int] = {}
        self._at_ms = 0.0
        for promise in self._promises:
            for kind in promise.hears:
                self._hearers.setdefault(kind, []).append(promise)

    def see(self, seen: Seen) -> None:
        """Hear what happened."""
        self._at_ms = seen.at_ms
        for promise in self._hearers.get(type(seen), ()):
            self._note(promise, promise.see(seen))
        self._mirror.hear(seen)

    def judge(self, rest: Rest) -> None:
        """Look at the world at rest, once."""
        for promise in self._promises:
            self._note(promise, promise.judge(rest))

    def _note(self, promise: Promise, details: Iterable[str]) -> None:
        for detail in details:
            count = self._counts[promise.name] = self._counts.get(promise.name, 0) + 1
            if count <= SHOWN_MAX:
                self._violations.append(Violation(promise.name, self._at_ms, detail))

    @property
    def violations(self) -> list[Violation]:
        """The first SHOWN_MAX of each promise in the order in which they were seen, then how many more there are."""
        more = [
            Violation(name, self._at_ms, f"and {count - SHOWN_MAX} more")
            for name, count in self._counts.items()
            if count > SHOWN_MAX
        ]
        return [*self._violations, *more]

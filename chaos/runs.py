"""What one run of a scenario came to, at any scale: the verdict, and what a report shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.scenario import Scenario

LANES = ("faults", "membership", "leases", "commits", "clients")
"""Rows of a timeline, from top to bottom; all but the first are drawn per host."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: which, when it was seen, and what shows it."""

    invariant: str
    at_ms: float
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.at_ms / 1000:.3f} s: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEvent:
    """One mark or bar of a timeline. Times are those of the observations."""

    at_ms: float
    lane: str
    """One of LANES."""
    host: str
    """Empty for what concerns the whole mesh."""
    label: str
    """Two or three words."""
    detail: str = ""
    """What is shown on hover: the packet, the row, the request and its answer."""
    until_ms: float | None = None
    """None for a moment."""
    tone: str = "plain"
    """`plain`, `good`, `warn` or `bad`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The whole outcome. Everything but `cpu_s` follows from scenario, seed and commit."""

    scenario: Scenario
    """As it was played: random faults drawn, `random` gone, seed and size as asked."""
    violations: Sequence[Violation]
    coverage: Mapping[str, int]
    trace_hash: str
    """Over every step of every task, every packet and every commit. Equal hashes: the same run."""
    simulated_s: float
    cpu_s: float
    healed_ms: float = 0.0
    settled_ms: float | None = None
    timeline: Sequence[TimelineEvent] = ()
    views_until_ms: float | None = None
    """When the timeline ceases to tell changes of membership, because there were too many; None for never."""
    logs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Per host, in virtual time."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Counts worth printing: submits, runs, commits, datagrams."""

    @property
    def verdict(self) -> str:
        """`ok` or `violated`."""
        return "violated" if self.violations else "ok"

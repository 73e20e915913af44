"""What a timeline shows, before anyone draws it: rows of bars, and the moments that matter.

The page and the picture draw the same chart, so that both tell the same story; `layout` makes it from a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from chaos.runs import Violation


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar, or a mark when `until_ms` is None."""

    from_ms: float
    until_ms: float | None
    label: str
    detail: str
    look: str
    """A name of `palette.LOOKS`."""
    track: int = 0

    @property
    def end_ms(self) -> float:
        """Its last moment."""
        return self.from_ms if self.until_ms is None else self.until_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a timeline. Its bars lie by time."""

    lane: str
    """One of `chaos.runs.LANES`."""
    host: str
    """Empty for the whole mesh."""
    title: str
    bars: tuple[Bar, ...]
    tracks: int = 1
    """Bars that overlap lie in different tracks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A whole timeline. Times are milliseconds since the mesh was whole; what lies before is negative."""

    begin_ms: float
    end_ms: float
    healed_ms: float | None
    settled_ms: float | None
    rows: tuple[Row, ...]
    violations: tuple[Violation, ...]
    """By time. They are numbered from 1 in this order, in every form of the report."""
    omitted: str
    """What is not drawn, in words; empty when everything is."""

"""The one form of all benchmark results: for people a table under a headline, for programs one JSON object.

    {"bench": "store", "machine": {…}, "parameters": {…}, "results": [{…}, …]}

Every result is flat. Names end in their unit: `Us` microseconds, `PerS` per second, `Bytes`, `Pct` per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench import machine
from tools.output import print_answer, print_json


@dataclass(frozen=True, slots=True)
class Report:
    """What one benchmark found."""

    bench: str
    machine: Mapping[str, Any]
    parameters: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    """How to read the table."""

    def show(self, *, json: bool) -> None:
        """Print it."""
        if json:
            print_json(
                {
                    "bench": self.bench,
                    "machine": dict(self.machine),
                    "parameters": dict(self.parameters),
                    "results": [dict(result) for result in self.results],
                }
            )
            return
        print(f"relaymesh bench {self.bench}: {_words(self.parameters)}")
        print(f"on {_words(self.machine)}\n")
        print_answer([dict(result) for result in self.results])
        print()
        for note in self.notes:
            print(note)


def make_report(
    bench: str,
    directory: Path,
    parameters: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    notes: Sequence[str] = (),
) -> Report:
    """A report with the facts of this machine."""
    return Report(bench, machine.facts(directory), parameters, results, notes)


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed; 0 when there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def latency_us(seconds: Sequence[float]) -> dict[str, int]:
    """`p50Us` and `p99Us` of times in seconds."""
    return {"p50Us": round(percentile(seconds, 0.50) * 1e6), "p99Us": round(percentile(seconds, 0.99) * 1e6)}

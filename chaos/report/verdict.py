"""The verdict of a run: as JSON for programs, as text for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chaos.runs import RunResult

VIOLATIONS_SHOWN = 10
"""The first of them, in the text: what follows the first is often its consequence. The JSON has all."""


def run_json(result: RunResult, report: str) -> dict[str, Any]:
    """What `relaymesh chaos run --json` prints; `report` says where the report's folder is, empty for none.

    A pending scenario also has `pending`, its reason: its verdict is `ok` because nothing was judged.
    """
    scenario = result.scenario
    answer = {
        "scenario": scenario.name,
        "seed": scenario.seed,
        "nodes": scenario.nodes,
        "verdict": result.verdict,
        "traceHash": result.trace_hash,
        "violations": [
            {"invariant": violation.invariant, "atMs": violation.at_ms, "detail": violation.detail}
            for violation in result.violations
        ],
        "coverage": dict(sorted(result.coverage.items())),
        "simulatedSeconds": result.simulated_s,
        "cpuSeconds": result.cpu_s,
        "report": report,
    }
    return answer | ({"pending": scenario.pending} if scenario.pending else {})


def verdict_json(result: RunResult, report: str, versions: Mapping[str, str]) -> str:
    """The same with the run's facts and the versions, as the text of a file."""
    more = {"facts": dict(result.facts), "versions": dict(versions)}
    return json.dumps(run_json(result, report) | more, indent=2, default=str) + "\n"


def verdict_text(result: RunResult, *, replay_command: str, options: str, versions: Mapping[str, str]) -> str:
    """All that a person needs first. `options` is the scenario as a file: everything that was drawn, spelled out."""
    scenario = result.scenario
    settled = "never" if result.settled_ms is None else f"{result.settled_ms / 1000:.3f} s"
    numbers = {
        "nodes": scenario.nodes,
        "simulated": f"{result.simulated_s:.3f} s",
        "CPU": f"{result.cpu_s:.3f} s",
        "healed at": f"{result.healed_ms / 1000:.3f} s",
        "settled at": settled,
        "trace hash": result.trace_hash,
    }
    parts: list[tuple[str, Iterable[str]]] = [
        (headline(result), _violations(result)),
        ("Replay", [replay_command]),
        ("Run", _table(numbers | dict(result.facts))),
        ("Coverage", _table(dict(sorted(result.coverage.items())))),
        ("Versions", _table(versions)),
        ("Options", options.splitlines()),
    ]
    return "\n\n".join("\n".join([title, *(f"  {line}".rstrip() for line in lines)]) for title, lines in parts) + "\n"


def headline(result: RunResult) -> str:
    """Such as "split-brain, seed 7: violated, 3 times"."""
    scenario = result.scenario
    if scenario.pending:
        verdict = f"pending, not judged: {scenario.pending}"
    elif result.violations:
        verdict = f"violated, {_times(len(result.violations))}"
    else:
        verdict = "ok"
    return f"{scenario.name}, seed {scenario.seed}: {verdict}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _violations(result: RunResult) -> Sequence[str]:
    shown = sorted(result.violations, key=lambda violation: violation.at_ms)[:VIOLATIONS_SHOWN]
    lines = [
        line
        for number, violation in enumerate(shown, 1)
        for line in _indented(f"{number}. {violation.at_ms / 1000:.3f} s  {violation.invariant}", violation.detail)
    ]
    more = len(result.violations) - len(shown)
    return [*lines, f"and {more} more, in verdict.json"] if more else lines


def _indented(title: str, detail: str) -> Iterable[str]:
    return [title, *(f"   {line}" for line in detail.splitlines())]


def _table(values: Mapping[str, Any]) -> Sequence[str]:
    width = max((len(name) for name in values), default=0) + 2
    return [
        f"{'' if number else name:{width}}{line}"
        for name, value in values.items()
        for number, line in enumerate(value or ["none"] if isinstance(value, list) else [value])
    ] or ["none"]

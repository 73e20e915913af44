"""timeline.html: one file with nothing outside it, that shows a chart and lets its reader look closer.

The page's own markup, style and program lie beside this module. What the run said is put in twice: as escaped text
where it must be readable without a program, and as one JSON block that the program reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from typing import Any

from chaos.report.chart import Chart, Row
from chaos.report.palette import INK, LOOKS, WORST_LAST
from chaos.report.verdict import headline
from chaos.runs import LANES, RunResult

DETAILS_CHARS_MAX = 6_000_000
"""Of all details together: beyond, each is cut shorter. A page of tens of megabytes opens nowhere."""
_CUTS = (1_500, 600, 250, 100, 40)


def page(result: RunResult, chart: Chart, *, replay_command: str, options: str) -> str:
    """The file's text. `options` is the scenario as a file."""
    scenario = result.scenario
    verdict = "pending" if scenario.pending else result.verdict
    parts = {
        "title": escape(headline(result)),
        "style": _colours() + _asset("page.css"),
        "verdict": verdict,
        "sign": {"ok": "✓", "violated": "✗", "pending": "…"}[verdict],
        "scenario": escape(scenario.name),
        "about": escape(scenario.about or scenario.pending),
        "facts": _facts(result),
        "replay": escape(replay_command),
        "violations": _violations(chart),
        "lanes": _lanes(chart),
        "legend": _legend(),
        "omitted": f"<p class=note>Not drawn: {escape(chart.omitted)}.</p>" if chart.omitted else "",
        "lists": _lists(result),
        "coverage": _definitions(dict(sorted(result.coverage.items()))),
        "options": escape(options),
        "data": script_json(chart_data(chart)),
        "program": _asset("page.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], _asset("page.html"))


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no text in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def chart_data(chart: Chart) -> Mapping[str, Any]:
    """The chart as the program reads it. Texts stand once, in `texts`, and bars name them by number."""
    cut = _cut(chart)
    texts: dict[str, int] = {}
    return {
        "begin": chart.begin_ms,
        "end": chart.end_ms,
        "healed": chart.healed_ms,
        "settled": chart.settled_ms,
        "looks": {name: {"height": look.height, "filling": look.filling} for name, look in LOOKS.items()},
        "order": WORST_LAST,
        "rows": [_row_data(row, cut, texts) for row in chart.rows],
        "violations": [
            [violation.at_ms, violation.invariant, violation.detail[:cut]] for violation in chart.violations
        ],
        "texts": list(texts),
    }


def _row_data(row: Row, cut: int, texts: dict[str, int]) -> Mapping[str, Any]:
    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    return {
        "lane": row.lane,
        "host": row.host,
        "title": row.title,
        "tracks": row.tracks,
        "bars": [
            [
                round(bar.from_ms, 3),
                None if bar.until_ms is None else round(bar.until_ms, 3),
                WORST_LAST.index(bar.look),
                number(bar.label[:cut]),
                number(bar.detail[:cut]),
                bar.track,
            ]
            for bar in row.bars
        ],
    }


def _cut(chart: Chart) -> int:
    """How many characters of each detail fit."""
    lengths = [len(bar.detail) for row in chart.rows for bar in row.bars]
    fitting = (cut for cut in _CUTS if sum(min(length, cut) for length in lengths) <= DETAILS_CHARS_MAX)
    return next(fitting, _CUTS[-1])


def _asset(name: str) -> str:
    return (resources.files("chaos.report") / name).read_text(encoding="utf-8")


def _colours() -> str:
    """The palette as custom properties, dark ones where the reader prefers them."""
    both = {**INK} | {name: (look.light, look.dark) for name, look in LOOKS.items()}
    light = "".join(f"--{name}:{colours[0]};" for name, colours in both.items())
    dark = "".join(f"--{name}:{colours[1]};" for name, colours in both.items())
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


def _facts(result: RunResult) -> str:
    scenario = result.scenario
    facts = {
        "seed": scenario.seed,
        "nodes": scenario.nodes,
        "simulated": f"{result.simulated_s:,.1f} s",
        "healed at": f"{result.healed_ms / 1000:,.1f} s" if result.healed_ms else "never",
        "settled at": "never" if result.settled_ms is None else f"{result.settled_ms / 1000:,.1f} s",
        **{name: fact for name, fact in result.facts.items() if not isinstance(fact, list)},
        "trace hash": result.trace_hash,
    }
    return _definitions(facts)


def _definitions(values: Mapping[str, Any]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in values.items())


def _lists(result: RunResult) -> str:
    """Facts that are many lines, folded."""
    return "".join(
        f"<details><summary>{escape(name)} ({len(fact)})</summary><pre>{escape(_lines(fact))}</pre></details>"
        for name, fact in result.facts.items()
        if isinstance(fact, list)
    )


def _lines(values: Iterable[Any]) -> str:
    return "\n".join(map(str, values))


def _violations(chart: Chart) -> str:
    if not chart.violations:
        return ""
    items = "".join(
        f"<li><button type=button data-violation={number}><b>{escape(violation.invariant)}</b>"
        f" <time>{violation.at_ms / 1000:.3f} s</time> <span>{escape(violation.detail)}</span></button></li>"
        for number, violation in enumerate(chart.violations)
    )
    return f"<section><h2>Violations ({len(chart.violations)})</h2><ol class=violations>{items}</ol></section>"


def _lanes(chart: Chart) -> str:
    present = {row.lane for row in chart.rows}  # asked, never iterated
    return _buttons(lane for lane in LANES if lane in present)


def _buttons(lanes: Iterable[str]) -> str:
    return "".join(f"<button type=button data-lane={lane} aria-pressed=true>{lane}</button>" for lane in lanes)


def _legend() -> str:
    return "".join(
        f"<li><canvas class=swatch width=16 height=12 data-look={name} aria-hidden=true></canvas>"
        f"{escape(look.meaning)}</li>"
        for name, look in LOOKS.items()
    )

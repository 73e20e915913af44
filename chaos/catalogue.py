"""What there is to play and to judge, in words: what `relaymesh chaos list` prints."""

from __future__ import annotations

import inspect
from typing import Any

from chaos import coverage, scenario_file
from chaos.fault_menu import MENU
from chaos.invariants import ALL


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Rows by kind of thing: scenarios, faults, invariants, coverage. Names are what other commands take."""
    return {
        "scenarios": [
            {
                "name": scenario.name,
                "scale": scenario.scale,
                "nodes": scenario.nodes,
                "pending": scenario.pending,
                "about": " ".join(scenario.about.split()),
            }
            for scenario in scenario_file.all_named()
        ],
        "faults": [
            {
                "name": name,
                "hits": kind.hits,
                "options": [f"{option}={details.default}" for option, details in kind.options.items()],
                "scales": list(kind.scales),
                "pending": kind.pending,
                "about": kind.about,
            }
            for name, kind in MENU.items()
        ],
        "invariants": [{"name": kind.name, "promise": _first_sentence(kind)} for kind in ALL],
        "coverage": [
            {"name": name, "required": name in coverage.REQUIRED, "about": about}
            for name, about in coverage.POINTS.items()
        ],
    }


def _first_sentence(kind: Any) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())

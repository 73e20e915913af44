"""`relaymesh bench compare`: what it makes of the figures of the peers' benchmark, and what it says without one."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tools.bench.compare import OURS, compare, rows
from tools.cli import app

STAND_IN = """
import json, sys
arguments = sys.argv[1:]
of = {name: arguments[index + 1] for index, name in enumerate(arguments) if name.startswith("--")}
assert arguments[0] == "tasks" and of["--only"] == "huey-sqlite", arguments
ours = [value.partition("=")[0] for value, before in zip(arguments[1:], arguments) if before == "--extra"]
figure = lambda value: {"median": value, "min": value, "max": value}
summary = {"huey-sqlite": {"enqueue_s": figure(2000.0), "lat_p50_ms": figure(53.0), "durability": "SQLite"}}
summary["broken"] = {"error": "timed out"}
summary |= {name: {"enqueue_s": figure(4000.0), "lat_p50_ms": figure(2.65)} for name in ours}
json.dump({"summary": {"tasks": summary}}, open(of["--json"], "w"))
"""


@pytest.fixture
def peers(tmp_path):
    (tmp_path / "run_peers.py").write_text(STAND_IN)
    return tmp_path


def test_ours_and_theirs_stand_side_by_side_with_the_ratios(peers, tmp_path):
    answer = compare(peers, tmp_path, only=["huey-sqlite"], rounds=1, quick=True, environment=None)
    assert answer["ours"].keys() == OURS.keys()
    assert answer["peers"]["huey-sqlite"] == {"enqueuePerS": 2000, "p50Us": 53_000, "durability": "SQLite"}
    assert answer["peers"]["broken"] == {"error": "timed out"}
    assert answer["ratios"]["relaymesh"] == {"huey-sqlite": {"enqueuePerS": 2.0, "p50Us": 0.05}}
    assert [row["system"] for row in rows(answer)][-1] == "relaymesh-64 / huey-sqlite"


def test_the_command_prints_one_object(peers):
    answer = CliRunner().invoke(app, ["bench", "compare", "--peers", str(peers), "--only", "huey-sqlite", "--json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout).keys() == {"ours", "peers", "ratios"}


def test_a_folder_without_the_benchmark_is_named(tmp_path):
    answer = CliRunner().invoke(app, ["bench", "compare", "--peers", str(tmp_path)])
    assert answer.exit_code == 2
    assert "has no run_peers.py" in answer.stderr

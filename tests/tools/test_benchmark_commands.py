"""Goal: benchmark-run counts what ended, and says so when not all did. Method: a stand-in for the connections."""

from __future__ import annotations

import itertools
import json
import time

import pytest

from tools import benchmark_commands
from tools.session import Session


@pytest.fixture
def never_end(monkeypatch):
    """The numbers of tasks that the stand-in never ends; the n-th of the others ends n milliseconds after its start."""
    numbers, never = itertools.count(1), set()

    def ask(_session, command, **args):
        if command == "stats":
            return {"nodeId": "a"}
        if command == "submit":
            assert (args["agent"], args["input"], args["priority"]) == ("echo", b"xxx", "high")
            return {"taskId": str(next(numbers))}
        number = int(args["taskId"])
        if number in never:
            time.sleep(0.05)
            return {"status": "PENDING"}
        return {
            "status": "DEAD_LETTER" if number == 7 else "SUCCESS",
            "createdAtMs": 1_000,
            "updatedAtMs": 1_000 + number,
        }

    monkeypatch.setattr(Session, "ask", ask)
    return never


OPTIONS = ("benchmark-run", "--tasks", "100", "--input-size", "3", "--priority", "high", "--json")


def test_a_run_gives_the_contracts_figures_and_a_report(relaymesh, never_end, tmp_path):
    out = tmp_path / "bench.json"
    ran = relaymesh(*OPTIONS, "--report-out", out)

    assert ran.code == 0
    shown = ran.json
    assert (shown["submittedTasks"], shown["completedTasks"], shown["pendingTasks"], shown["timedOut"]) == (
        *(100, 100, 0),
        False,
    )
    assert (shown["latencyP50Ms"], shown["latencyP95Ms"], shown["latencyP99Ms"]) == (50, 95, 99)
    assert (shown["runDurationMs"], shown["throughputTasksPerSec"]) == (100, 1000.0)
    assert shown["statusCounts"] == {"SUCCESS": 99, "DEAD_LETTER": 1}
    assert shown["submitStartedAtMs"] <= shown["submitFinishedAtMs"]
    assert shown["stats"] == {"nodeId": "a"}
    assert json.loads(out.read_text()) == {key: value for key, value in shown.items() if key != "reportOut"}
    assert relaymesh(*OPTIONS, "--report-out", out).code == 2


def test_what_has_not_ended_in_time_is_a_negative_answer(relaymesh, never_end, monkeypatch):
    never_end.update({3, 4})
    moments = itertools.chain([0.0], itertools.count(4.0, 0.001))
    monkeypatch.setattr(benchmark_commands.time, "monotonic", lambda: next(moments))
    ran = relaymesh(*OPTIONS, "--max-seconds", "5")

    assert ran.code == 1
    assert (ran.json["completedTasks"], ran.json["pendingTasks"], ran.json["timedOut"]) == (98, 2, True)

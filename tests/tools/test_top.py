"""Goal: `top` fits any screen, tells trouble first, and leaves the terminal as it was. Method: lines, a real pty."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from tools.top_view import Rates, draw

REPOSITORY = Path(__file__).parents[2]
NOW_MS = 1_764_000_000_000


def member(name: str, status: str = "ALIVE", **more: Any) -> dict[str, Any]:
    return {
        "nodeId": name,
        "status": status,
        "effectiveStatus": status,
        "isThisNode": name == "node-a",
        "statusSinceMs": NOW_MS - 65_000,
        "lastHeartbeatMs": NOW_MS - 1_500,
        "storeFailed": False,
        "release": "0.2.0",
        "openSteps": 3,
        "runningSteps": 1,
        **more,
    }


def run(number: int) -> dict[str, Any]:
    return {
        "stepId": f"stp_{number:032x}",
        "taskId": f"tsk_{number:032x}",
        "namespace": "default",
        "name": f"part-{number}",
        "agentId": "count",
        "owner": "node-b",
        "attempt": 2,
        "startedAtMs": NOW_MS - 3_000,
        "ageMs": 3_000,
    }


def an_overview(members: int = 2, runs: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "nodeId": "node-a",
        "members": [member(f"node-{chr(97 + number % 26)}{number // 26 or ''}") for number in range(members)],
        "queue": {"high": {"depth": 3, "oldestAgeMs": 2_000}, "normal": {"depth": 0, "oldestAgeMs": None}},
        "queuedForOthers": 0,
        "slots": 4,
        "runningHere": 1,
        "totals": {"submitted": 10, "started": 8, "finished": 7, "failed": 1},
        "countedForMs": 5_000,
        "runningTotal": runs,
        "running": [run(number) for number in range(min(runs, 100))],
        "attention": [],
        "generatedAtMs": NOW_MS,
        **more,
    }


def drawn(overview: dict[str, Any], width: int = 80, height: int = 24, **more: Any) -> list[str]:
    return [line.plain for line in draw(overview, None, width=width, height=height, **more)]


def test_a_small_mesh_is_told_whole():
    lines = drawn(an_overview())

    assert lines[0].endswith("as node-a sees it: 2 ALIVE")
    assert lines[2] == "queue of node-a:  high 3 (oldest 2s)  normal 0  1 of 4 slots busy"
    assert lines[4].split() == ["NODE", "STATUS", "SINCE", "HEARD", "RUNNING", "OPEN", "RELEASE"]
    assert lines[5].split() == ["node-a", "ALIVE", "1m", "5s", "itself", "1", "3", "0.2.0"]
    assert lines[8].split() == ["RUNNING", "NODE", "AGENT", "TRY", "TASK", "STEP"]
    assert lines[9].split() == ["3s", "node-b", "count", "2", f"tsk_{0:032x}", "part-0"]


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (200, 60), (20, 4)])
@pytest.mark.parametrize("amount", [(1, 0), (3, 2), (100, 5), (3, 5_000), (100, 5_000)])
def test_nothing_leaves_the_screen(size, amount):
    width, height = size
    attention = [f"trouble number {number} that takes more words than fit on a narrow screen" for number in range(9)]

    lines = drawn(an_overview(*amount, attention=attention), width, height)

    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_a_large_mesh_leaves_room_for_what_runs_and_tells_trouble_first():
    members = [member("node-a"), *(member(f"node-b{n}") for n in range(50)), member("node-z", "DEAD")]
    lines = drawn(an_overview(runs=500, members=1) | {"members": members})

    assert lines[5].startswith("node-z")
    assert any(line.startswith("… and") and line.endswith("more members") for line in lines)
    assert sum("node-b " in line for line in lines) >= 5
    assert "more running steps" in lines[-1]


def test_what_cannot_be_heard_is_said_and_control_characters_are_not_obeyed():
    lines = drawn(an_overview(attention=["node-b is DEAD\x1b[2J"]), note="no answer: timed out")

    assert lines[0].endswith("no answer: timed out")
    assert r"! node-b is DEAD\x1b[2J" in lines


def test_rates_are_averages_over_some_seconds_and_begin_anew_with_another_node():
    rates = Rates()
    totals = {"submitted": 0, "started": 0, "finished": 0, "failed": 0}
    assert rates.per_second() is None
    for second in range(0, 21, 2):
        rates.add(float(second), {"totals": {**totals, "finished": second * second}})
    assert rates.per_second() == {
        "submitted": 0,
        "started": 0,
        "finished": (400 - 196) / 6,
        "failed": 0,
        "overMs": 6000,
    }
    rates.add(22.0, {"totals": totals})
    assert rates.per_second() is None


def test_once_prints_a_picture_and_json_has_the_rates(fake_node, relaymesh, monkeypatch):
    monkeypatch.setattr("tools.top.ONCE_S", 0.01)
    fake_node.answers["overview"] = an_overview()

    assert "queue of node-a" in relaymesh("--root", fake_node.root, "top", "--once").out
    told = relaymesh("--root", fake_node.root, "top", "--json").json

    assert told.keys() == {*an_overview(), "rates"}
    assert told["rates"]["submitted"] == 0


@pytest.mark.parametrize("end", [b"q", signal.SIGINT])
def test_on_a_terminal_it_is_drawn_until_somebody_ends_it(fake_node, end):
    fake_node.answers["overview"] = an_overview()
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-m", "tools.cli", "--root", str(fake_node.root), "top"]
    environ = {"PATH": os.environ["PATH"], "TERM": "xterm"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            shown = read_until(ours, b"part-0")
            termios.tcsetwinsize(theirs, (12, 60))
            shown += read_until(ours, b"count")
            if isinstance(end, bytes):
                os.write(ours, end)
            else:
                process.send_signal(end)
            shown += read_until(ours, b"\x1b[?1049l")
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert termios.tcgetattr(theirs) == before
    assert b"\x1b[?1049h" in shown
    assert b"Traceback" not in shown


def test_a_terminal_that_can_only_print_gets_one_look(fake_node):
    fake_node.answers["overview"] = an_overview()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tools.cli", "--root", str(fake_node.root), "top"]
    environ = {"PATH": os.environ["PATH"], "TERM": "dumb"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            shown = read_until(ours, b"part-0")
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert b"\x1b[?1049h" not in shown


def read_until(terminal: int, wanted: bytes, limit_s: float = 30.0) -> bytes:
    found, until = b"", time.monotonic() + limit_s
    while wanted not in found and time.monotonic() < until:
        if select.select([terminal], [], [], 0.1)[0]:
            found += os.read(terminal, 65_536)
    assert wanted in found, found[-2_000:]
    return found

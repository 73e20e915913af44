"""Goal: a workflow's picture fits its room and tells what runs. Method: made-up workflows, also live on a real pty."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from tools.workflow_drawing import draw_workflow, levels_of
from tools.workflow_watch import changes

REPOSITORY = Path(__file__).parents[2]
NOW_MS = 100_000.0


def step(name: str, status: str = "SUCCESS", *parents: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "status": status,
        "owner": "node-a",
        "attempt": 1 if status != "PENDING" else 0,
        "dependsOn": list(parents),
        "blocked": status == "PENDING" and bool(parents),
        "claimedAtMs": 60_000,
        "updatedAtMs": 61_500,
        "lastError": None,
        **more,
    }


def a_task(status: str = "RUNNING") -> dict[str, Any]:
    return {"taskId": "tsk_1", "status": status, "createdAtMs": 40_000, "updatedAtMs": 70_000}


def drawn(*steps: dict[str, Any], width: int = 80, height: int = 24, status: str = "RUNNING") -> list[str]:
    return [
        line.plain.rstrip() for line in draw_workflow(a_task(status), steps, now_ms=NOW_MS, width=width, height=height)
    ]


DIAMOND = (
    step("merge", "PENDING", "north", "south"),
    step("fetch"),
    step("north", "RUNNING", "fetch", attempt=2, owner="node-b"),
    step("south", "DEAD_LETTER", "fetch", lastError="no luck\x1b[2J"),
)


def test_levels_follow_the_longest_way_whatever_the_order_of_definition():
    assert [[each["name"] for each in level] for level in levels_of(DIAMOND)] == [
        ["fetch"],
        ["north", "south"],
        ["merge"],
    ]
    chain = [step(f"s{n}", "PENDING", *([f"s{n - 1}"] if n else [])) for n in reversed(range(1_000))]
    assert len(levels_of(chain)) == 1_000
    assert [len(level) for level in levels_of([step("a", "PENDING", "gone")])] == [1]
    assert levels_of([step("a", "PENDING", "b"), step("b", "PENDING", "a")]) != []


def test_a_small_workflow_is_told_step_by_step():
    assert drawn(*DIAMOND, width=120) == [
        "tsk_1 RUNNING  1 of 4 steps done, 1m",
        "level 1",
        "  [x] fetch  SUCCESS      node-a  try 1       1s",
        "level 2",
        "  [>] north  RUNNING      node-b  try 2      40s  after fetch",
        "  [!] south  DEAD_LETTER  node-a  try 1       1s  after fetch  no luck\\x1b[2J",
        "level 3",
        "  [ ] merge  PENDING      node-a    waits for north, south",
    ]
    assert drawn(*DIAMOND, status="DEAD_LETTER")[0].endswith("done, 30s")
    busy = {**step("a", "RUNNING"), "progress": {"fraction": 0.416, "text": "page 5", "atMs": 1}}
    assert drawn(busy, width=120)[2].endswith("  42 % page 5")


def wide(levels: int = 10, across: int = 200) -> list[dict[str, Any]]:
    """Level 2 runs, two of its steps failed, all below waits."""
    return [
        step(
            f"l{level}-{place}",
            "SUCCESS" if level == 0 else ("DEAD_LETTER" if place < 2 else "RUNNING") if level == 1 else "PENDING",
            *([f"l{level - 1}-{place}"] if level else []),
        )
        for level in range(levels)
        for place in range(across)
    ]


def test_a_wide_workflow_is_told_by_level_with_what_failed_and_runs_below():
    lines = drawn(*wide())

    assert len(lines) <= 24
    assert lines[1] == "level 1       200 steps  [====================]  200 SUCCESS"
    assert lines[2] == "level 2       200 steps  [....................]  198 RUNNING  2 DEAD_LETTER"
    assert lines[10].endswith("200 PENDING")
    assert lines[11].startswith("  [!] l1-0")
    assert lines[13].startswith("  [>] l1-2")
    assert lines[-1].endswith("more that run or failed")


@pytest.mark.parametrize("size", [(80, 24), (40, 4), (200, 60)])
@pytest.mark.parametrize("shape", [(1, 1), (10, 200), (300, 1), (2, 15)])
def test_nothing_leaves_the_room(size, shape):
    lines = drawn(*wide(*shape), width=size[0], height=size[1])

    assert 1 < len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]


def test_what_changed_is_told_once():
    seen: dict[str, tuple[Any, ...]] = {}

    assert changes(seen, list(DIAMOND[:3])) == [
        "fetch: SUCCESS on node-a, attempt 1",
        "north: RUNNING on node-b, attempt 2",
    ]
    assert changes(seen, list(DIAMOND[:3])) == []
    assert changes(seen, [step("merge", "RUNNING")]) == ["merge: RUNNING on node-a, attempt 1"]


def test_watching_without_a_terminal_prints_changes_and_ends_with_the_task(fake_node, relaymesh):
    answers = [
        {**a_task(), "steps": [step("a", "RUNNING"), step("b", "PENDING", "a")]},
        {**a_task("SUCCESS"), "steps": [step("a"), step("b")]},
    ]
    fake_node.answers["wait"] = lambda args: answers[0] if len(answers) == 1 else answers.pop(0)

    ran = relaymesh("--root", fake_node.root, "workflow", "tsk_1", "--watch")
    as_json = relaymesh("--root", fake_node.root, "workflow", "tsk_1", "--watch", "--json")

    assert ran.code == 0
    assert ran.out.splitlines() == [
        "a: RUNNING on node-a, attempt 1",
        "a: SUCCESS on node-a, attempt 1",
        "b: SUCCESS on node-a, attempt 1",
    ]
    assert as_json.json["status"] == "SUCCESS"
    assert [call["args"]["timeoutMs"] for call in fake_node.calls[:2]] == [0, 1_000]


def test_a_watched_task_that_fails_is_a_negative_answer(fake_node, relaymesh):
    fake_node.answers["wait"] = {**a_task("DEAD_LETTER"), "steps": [step("a", "DEAD_LETTER")], "lastError": "no luck"}

    ran = relaymesh("--root", fake_node.root, "workflow", "tsk_1", "--watch")

    assert (ran.code, "ended DEAD_LETTER: no luck" in ran.err) == (1, True)


@pytest.mark.parametrize("options", [["--watch"], []])
def test_on_a_terminal_it_is_drawn(fake_node, options):
    answers = [{**a_task(), "steps": list(DIAMOND)}, {**a_task("SUCCESS"), "steps": [step("fetch"), step("last")]}]
    fake_node.answers["wait"] = lambda args: answers[0] if len(answers) == 1 else answers.pop(0)
    fake_node.answers["workflow"] = {"task": a_task(), "steps": list(DIAMOND), "edges": []}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    command = [sys.executable, "-m", "tools.cli", "--root", str(fake_node.root), "workflow", "tsk_1", *options]
    environ = {"PATH": os.environ["PATH"], "TERM": "xterm"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            shown, until = b"", time.monotonic() + 30
            while (process.poll() is None or select.select([ours], [], [], 0.1)[0]) and time.monotonic() < until:
                if select.select([ours], [], [], 0.1)[0]:
                    shown += os.read(ours, 65_536)
            assert process.wait(1) == 0
        finally:
            process.kill()
    assert b"north" in shown
    assert (b"last" in shown) == bool(options)
    assert b"\x1b[2J" not in shown

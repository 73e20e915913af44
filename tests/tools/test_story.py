"""Goal: `explain` and `logs` read like a story, and cannot harm a terminal. Method: a scripted node, compared lines."""

from __future__ import annotations

import time

EXPLANATION = {
    "taskId": "tsk_1",
    "status": "SUCCESS",
    "seenFrom": "node-b",
    "summary": "1 step(s): 1 SUCCESS.",
    "keyConflicts": [{"taskId": "tsk_1", "holdsKey": True}, {"taskId": "tsk_2", "holdsKey": False}],
    "steps": [
        {
            "stepId": "stp_1",
            "name": "main",
            "status": "SUCCESS",
            "owner": "node-b",
            "summary": "node-b ran it and its result was accepted.",
            "timeline": [
                {"atMs": 10_000, "text": "submitted"},
                {"atMs": 13_250, "text": "node-b took it over from node-a (owner DEAD; it was RUNNING)"},
                {"atMs": 9_000 + 86_400_000, "text": "ended as \x1b[31mSUCCESS"},
            ],
        }
    ],
    "events": [{"more": 1}],
}


def test_an_explanation_tells_each_step_with_times_since_the_submission(fake_node, relaymesh):
    fake_node.answers["explain"] = EXPLANATION

    lines = relaymesh("--root", fake_node.root, "explain", "tsk_1").out.splitlines()

    assert lines[0].startswith("tsk_1 is SUCCESS as node-b sees it, submitted ")
    assert lines[1:] == [
        "1 step(s): 1 SUCCESS.",
        "same key: tsk_1 (holds the key)",
        "same key: tsk_2",
        "",
        "step main: SUCCESS, owner node-b (stp_1)",
        "  node-b ran it and its result was accepted.",
        "    +0.000 s  submitted",
        "    +3.250 s  node-b took it over from node-a (owner DEAD; it was RUNNING)",
        r"    +23h 59m  ended as \x1b[31mSUCCESS",
    ]
    assert fake_node.args("explain") == {"taskId": "tsk_1"}
    assert relaymesh("--root", fake_node.root, "explain", "tsk_1", "--json").json == EXPLANATION


def test_an_explanation_with_nothing_but_a_status_is_still_one(fake_node, relaymesh):
    fake_node.answers["explain"] = {"taskId": "tsk_1", "status": "PENDING"}

    assert relaymesh("--root", fake_node.root, "explain", "tsk_1").out == "tsk_1 is PENDING as this node sees it\n"


def test_a_step_that_ran_twice_tells_each_run_and_what_decided(fake_node, relaymesh):
    step = {
        **EXPLANATION["steps"][0],
        "reasons": [{"code": "owner-away", "text": "First."}, {"code": "cancel", "text": "A cancel was requested."}],
        "runs": [
            {"epoch": 1, "node": "node-a", "text": "its success does not count"},
            {"epoch": 2, "node": "node-b", "text": "its result is the accepted one"},
        ],
        "ties": [{"winner": "node-b", "loser": "node-a", "text": "the later lease counts"}],
        "timeline": [{"atMs": at, "text": f"event {at}"} for at in range(45)],
    }
    fake_node.answers["explain"] = {**EXPLANATION, "steps": [step]}

    lines = relaymesh("--root", fake_node.root, "explain", "tsk_1").out.splitlines()

    assert lines[6:11] == [
        "  node-b ran it and its result was accepted.",
        "  also: A cancel was requested.",
        "  run under epoch 1 on node-a: its success does not count",
        "  run under epoch 2 on node-b: its result is the accepted one",
        "  node-b won over node-a: the later lease counts",
    ]
    assert "event 4\n" not in "\n".join(lines)
    assert lines[-2:] == ["    +0.044 s  event 44", "  (5 earlier events: --json has them)"]


def test_a_large_task_tells_of_the_steps_that_need_attention(fake_node, relaymesh):
    def step(name: str, status: str, *codes: str) -> dict:
        return {"stepId": name, "name": name, "status": status, "reasons": [{"code": c, "text": c} for c in codes]}

    steps = [step(f"done{n}", "SUCCESS") for n in range(10)]
    steps += [step("child", "PENDING", "parents"), step("queued", "PENDING", "slots"), step("dead", "DEAD_LETTER")]
    fake_node.answers["explain"] = {"taskId": "tsk_1", "status": "PENDING", "steps": steps}

    out = relaymesh("--root", fake_node.root, "explain", "tsk_1").out
    told = [line.split()[1] for line in out.splitlines() if line.startswith("step ")]

    assert told[:3] == ["dead:", "queued:", "child:"]
    assert len(told) == 8
    assert "5 more steps: `relaymesh workflow tsk_1` shows all" in out


def test_logs_keep_their_lines_and_say_whose_they_are(fake_node, relaymesh):
    at_ms = int(time.time() * 1000) - 5_500
    entries = [
        {
            "action": "logged",
            "step": "a",
            "attempt": 1,
            "nodeId": "node-a",
            "occurredAtMs": at_ms,
            "details": {"log": "one\ntwo\x07\n"},
        },
        {
            "action": "failed",
            "step": "a",
            "attempt": 2,
            "nodeId": "node-b",
            "occurredAtMs": at_ms,
            "details": {"kind": "failed", "error": "boom", "attempt": 2},
        },
    ]
    fake_node.answers["logs"] = entries

    ran = relaymesh("--root", fake_node.root, "logs", "t", "--step", "a", "--limit", "7")

    assert ran.out.splitlines() == [
        "step a, attempt 1 on node-a, 5s ago: logged",
        "  one",
        r"  two\x07",
        "step a, attempt 2 on node-b, 5s ago: failed",
        "  boom",
    ]
    assert fake_node.args("logs") == {"taskId": "t", "step": "a", "limit": 7}
    assert relaymesh("--root", fake_node.root, "logs", "t", "--json").json == entries


def test_no_logs_say_so(fake_node, relaymesh):
    fake_node.answers["logs"] = []

    assert relaymesh("--root", fake_node.root, "logs", "t").out == "(nothing was written)\n"

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

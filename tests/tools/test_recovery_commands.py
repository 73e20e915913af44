"""Goal: recovery commands ask what they should, and their files are whole or not there. Method: a scripted node."""

from __future__ import annotations

import json
import stat

import pytest

from mesh.errors import NotFoundError, UnavailableError

TASK = {"taskId": "t", "status": "SUCCESS"}


def test_replay_asks_for_a_step_or_from_one_and_not_for_both(fake_node, relaymesh):
    fake_node.answers["replay"] = lambda args: {"taskId": "t", "replayed": "fromStep" not in args}

    assert relaymesh("--root", fake_node.root, "replay", "t", "--step", "s").code == 0
    assert relaymesh("--root", fake_node.root, "replay", "t", "--failed").code == 0
    assert relaymesh("--root", fake_node.root, "replay", "t", "--from-step", "s").code == 1
    assert [call["args"] for call in fake_node.calls] == [
        {"taskId": "t", "step": "s"},
        {"taskId": "t"},
        {"taskId": "t", "fromStep": "s"},
    ]
    both = relaymesh("--root", fake_node.root, "replay", "t", "--failed", "--from-step", "s")
    assert (both.code, len(fake_node.calls)) == (2, 3)
    assert "give one of" in both.err


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (1, 1)])
def test_a_batch_with_a_failure_is_a_negative_answer(fake_node, relaymesh, failed, code):
    fake_node.answers["replay-batch"] = {"status": "DEAD_LETTER", "total": 1, "failed": failed, "details": []}

    ran = relaymesh("--root", fake_node.root, "replay-batch", "--agent", "x", "--cause", "timeout", "--json")

    assert ran.code == code
    assert fake_node.args("replay-batch") == {"status": "DEAD_LETTER", "limit": 100, "agent": "x", "cause": "timeout"}


def letter(number, **more):
    return {"taskId": f"t{number}", "stepId": f"s{number}", "cause": "timeout", "input": "in"} | more


def test_dead_letters_are_exported_page_by_page_into_a_private_file(fake_node, relaymesh, tmp_path):
    first = letter(0, inputBytes=99)
    del first["input"]
    fake_node.answers["dead"] = lambda args: (
        {"dead": [letter(2)], "next": None} if "before" in args else {"dead": [first, letter(1)], "next": [7, "s1"]}
    )
    fake_node.answers["step-payload"] = {"content": b"\xff"}
    out = tmp_path / "dead.json"

    ran = relaymesh("--root", fake_node.root, "dead-export", "--out", out, "--limit", "500", "--json")

    assert (ran.code, ran.json["exported"], ran.json["outputPath"]) == (0, 3, str(out))
    written = json.loads(out.read_text())
    assert written["schema_version"] == "relaymesh.dead-letters.v1"
    assert [each["taskId"] for each in written["dead_letters"]] == ["t0", "t1", "t2"]
    assert written["dead_letters"][0]["inputBase64"] == "/w=="
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [call["args"].get("limit") for call in fake_node.calls if call["command"] == "dead"] == [200, 200]

    again = relaymesh("--root", fake_node.root, "dead-export", "--out", out)
    assert again.code == 2
    assert "exists already" in again.err
    assert relaymesh("--root", fake_node.root, "dead-export", "--out", out, "--limit", "1", "--force").code == 0
    assert len(json.loads(out.read_text())["dead_letters"]) == 2  # the scripted node gave more than was asked for


def test_an_export_that_breaks_off_leaves_no_file_and_the_old_one_as_it_was(fake_node, relaymesh, tmp_path):
    pages = {"dead": [letter(0)], "next": [1, "s0"]}
    fake_node.answers["dead"] = lambda args: UnavailableError("gone") if "before" in args else pages
    out = tmp_path / "dead.json"

    assert relaymesh("--root", fake_node.root, "dead-export", "--out", out).code == 3
    assert not out.exists()
    out.write_text("old")
    assert relaymesh("--root", fake_node.root, "dead-export", "--out", out, "--force").code == 3
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["control.sock", "dead.json"]
    missing = relaymesh("--root", fake_node.root, "dead-export", "--out", tmp_path / "no" / "dead.json")
    assert (missing.code, "cannot write" in missing.err) == (2, True)


def test_a_task_is_exported_with_payloads_and_history(fake_node, relaymesh, tmp_path):
    small = {"stepId": "s0", "input": "in", "result": "out", "resultBytes": 3}
    large = {"stepId": "s1", "inputBytes": 20_000, "resultMissing": True, "resultBytes": None}
    fake_node.answers["task-export"] = lambda args: (
        {"items": [{"action": "failed"}], "next": None}
        if args["part"] == "events"
        else {"task": TASK, "items": [large if args["offset"] else small], "next": None if args["offset"] else 1}
    )
    fake_node.answers["step-payload"] = {"content": b"large"}
    out = tmp_path / "task.json"

    ran = relaymesh("--root", fake_node.root, "task-export", "t", "--out", out, "--json")

    assert ran.code == 1  # a result is not there
    assert {"exported": True, "stepCount": 2, "auditEvents": 1, "payloadsMissing": 1}.items() <= ran.json.items()
    written = json.loads(out.read_text())
    assert (written["schema_version"], written["task"]) == ("relaymesh.task-export.v1", TASK)
    assert [step["input"] for step in written["workflow"]] == ["in", "large"]
    assert written["audit_events"] == [{"action": "failed"}]
    assert [call["args"]["column"] for call in fake_node.calls if call["command"] == "step-payload"] == ["input"]


def test_an_unknown_task_leaves_no_file(fake_node, relaymesh, tmp_path):
    fake_node.answers["task-export"] = NotFoundError("task t is not known here")
    assert relaymesh("--root", fake_node.root, "task-export", "t", "--out", tmp_path / "t.json").code == 1
    assert not (tmp_path / "t.json").exists()


def test_a_lease_report_is_printed_or_written(fake_node, relaymesh, tmp_path):
    report = {"schema_version": "relaymesh.lease-report.v1", "rows": 2, "more": False, "sample": []}
    fake_node.answers["lease-report"] = report
    out = tmp_path / "leases.json"

    assert relaymesh("--root", fake_node.root, "lease-report", "--json").json == report
    ran = relaymesh("--root", fake_node.root, "lease-report", "--hours", "2", "--limit", "9", "--out", out, "--json")
    assert ran.json == {"generated": True, "path": str(out), "rows": 2, "more": False}
    assert json.loads(out.read_text()) == report
    assert fake_node.calls[-1]["args"] == {"hours": 2, "limit": 9}

    report |= {"top_steps": [{"stepId": "s7", "events": 41}], "top_workers": [{"nodeId": "a", "events": 42}]}
    shown = relaymesh("--root", fake_node.root, "lease-report").out
    assert [line.split() for line in shown.splitlines() if line.startswith(("s7", "a "))] == [["s7", "41"], ["a", "42"]]


def test_dead_letters_are_listed_for_people_without_what_only_programs_need(fake_node, relaymesh):
    fake_node.answers["dead"] = {"dead": [letter(0)], "byCause": {"timeout": 1}, "next": [7, "s0"]}

    ran = relaymesh("--root", fake_node.root, "dead", "--cause", "timeout", "--agent", "x", "--limit", "1")

    assert fake_node.args("dead") == {"limit": 1, "cause": "timeout", "agent": "x"}
    assert "TASK_ID" in ran.out
    assert "next" not in ran.out
    assert relaymesh("--root", fake_node.root, "dead", "--json").json["next"] == [7, "s0"]
    assert relaymesh("--root", fake_node.root, "dead", "--cause", "luck").code == 2

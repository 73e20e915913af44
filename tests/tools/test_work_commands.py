"""Goal: each command about work asks what it should, and its exit code is the answer. Method: a scripted node."""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.errors import ConflictError, NotFoundError
from tools import work_commands
from tools.work_commands import INPUT_BYTES_MAX

REPOSITORY = Path(__file__).parents[2]

DONE = {"taskId": "tsk_1", "status": "SUCCESS", "steps": [{"name": "main", "status": "SUCCESS"}]}
RUNNING = {"taskId": "tsk_1", "status": "RUNNING", "steps": [{"name": "main", "status": "RUNNING"}]}
FAILED = {"taskId": "tsk_1", "status": "DEAD_LETTER", "lastError": "boom", "steps": []}
SUBMITTED = {"taskId": "tsk_1", "deduplicated": False, "message": "submitted", "replicated": 0}


def test_submit_sends_every_option(fake_node, relaymesh):
    fake_node.answers["submit"] = SUBMITTED

    ran = relaymesh(
        *("--root", fake_node.root, "--namespace", "blue", "submit", "--agent", "echo", "--input", "grüße"),
        *("--priority", "high", "--idempotency-key", "k", "--node", "b", "--label", "site=n", "--label", "gpu="),
        *("--timeout", "1.5s", "--replicas", "2", "--replicas-timeout", "3s", "--json"),
    )

    assert fake_node.calls[0]["namespace"] == "blue"
    assert fake_node.args("submit") == {
        "agent": "echo",
        "input": "grüße".encode(),
        "priority": "high",
        "idempotencyKey": "k",
        "node": "b",
        "labels": {"site": "n", "gpu": ""},
        "timeoutMs": 1_500,
        "replicas": 2,
        "replicasTimeoutMs": 3_000,
    }
    assert ran.json == SUBMITTED
    assert ran.code == 1  # 0 of 2 replicas
    assert "task tsk_1 exists" in ran.err


def test_submit_leaves_unset_options_out_and_makes_a_fresh_key_each_time(fake_node, relaymesh):
    fake_node.answers["submit"] = SUBMITTED

    for _ in range(2):
        assert relaymesh("--root", fake_node.root, "submit", "--agent", "echo", "--input", "").code == 0

    first, second = (call["args"] for call in fake_node.calls)
    assert sorted(first) == ["agent", "idempotencyKey", "input", "priority"]
    assert len(first["idempotencyKey"]) == 32
    assert first["idempotencyKey"] != second["idempotencyKey"]


@pytest.mark.parametrize(("replicated", "code"), [(2, 0), (3, 0), (1, 1), (True, 0), (False, 1), (None, 1)])
def test_replicas_that_were_not_reached_are_a_negative_answer(fake_node, relaymesh, replicated, code):
    fake_node.answers["submit"] = SUBMITTED | {"replicated": replicated}

    ran = relaymesh("--root", fake_node.root, "submit", "--agent", "a", "--input", "", "--replicas", "2", "--json")

    assert ran.code == code
    assert ran.json["taskId"] == "tsk_1"


def test_input_can_come_from_a_file_or_from_standard_input(fake_node, relaymesh, tmp_path):
    fake_node.answers["submit"] = SUBMITTED
    (tmp_path / "in").write_bytes(b"\x00\xff")

    relaymesh("--root", fake_node.root, "submit", "--agent", "a", "--input-file", tmp_path / "in")
    relaymesh("--root", fake_node.root, "submit", "--agent", "a", "--input-file", "-", stdin=b"piped")

    assert [call["args"]["input"] for call in fake_node.calls] == [b"\x00\xff", b"piped"]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ([], "either --input TEXT or --input-file"),
        (["--input", "a", "--input-file", "b"], "either --input TEXT or --input-file"),
        (["--input-file", "/does/not/exist"], "--input-file /does/not/exist: cannot be read (No such file"),
        (["--input", "a", "--timeout", "5"], "write 500ms, 30s"),
        (["--input", "a", "--label", "x"], "not KEY=VALUE"),
        (["--input", "a", "--priority", "urgent"], "relaymesh submit --help"),
        (["--input", "a", "--replicas", "0"], "relaymesh submit --help"),
        (["--input"], "'--input' requires an argument"),
    ],
)
def test_a_wrong_submit_is_refused_in_one_line_before_any_node_is_asked(fake_node, relaymesh, options, hint):
    ran = relaymesh("--root", fake_node.root, "submit", "--agent", "a", *options)

    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("relaymesh: ")
    assert hint in ran.err
    assert fake_node.calls == []


def test_input_at_the_limit_is_sent_and_one_byte_more_is_refused(fake_node, relaymesh, tmp_path):
    fake_node.answers["submit"] = SUBMITTED
    file = tmp_path / "in"

    file.write_bytes(bytes(INPUT_BYTES_MAX))
    assert relaymesh("--root", fake_node.root, "submit", "--agent", "a", "--input-file", file).code == 0
    file.write_bytes(bytes(INPUT_BYTES_MAX + 1))
    ran = relaymesh("--root", fake_node.root, "submit", "--agent", "a", "--input-file", file)

    assert ran.code == 2
    assert str(INPUT_BYTES_MAX) in ran.err
    assert len(fake_node.calls) == 1


def test_submit_and_wait_prints_the_task_and_only_success_is_zero(fake_node, relaymesh):
    fake_node.answers["submit"] = SUBMITTED
    for task, code in ((DONE, 0), (FAILED, 1), (DONE | {"status": "CANCELLED"}, 1)):
        answers = iter([RUNNING, RUNNING, task])
        fake_node.answers["wait"] = lambda args, answers=answers: next(answers)

        ran = relaymesh("--root", fake_node.root, "submit", "--agent", "a", "--input", "", "--wait", "--json")

        assert ran.code == code
        assert ran.json == task
    assert "relaymesh explain tsk_1" in ran.err


def test_waiting_ends_when_its_time_is_over(fake_node, relaymesh):
    fake_node.answers["wait"] = RUNNING

    ran = relaymesh("--root", fake_node.root, "wait", "tsk_1", "--timeout", "50ms")

    assert ran.code == 1
    assert "task tsk_1 is RUNNING" in ran.err
    assert all(0 < call["args"]["timeoutMs"] <= 50 for call in fake_node.calls)


def test_the_reason_of_a_failure_is_shown_on_one_line(fake_node, relaymesh):
    fake_node.answers["wait"] = FAILED | {"lastError": "a\nb\x1b[1m"}

    ran = relaymesh("--root", fake_node.root, "wait", "tsk_1")

    assert ran.err.splitlines() == [
        r"relaymesh: task tsk_1 ended DEAD_LETTER: a\nb\x1b[1m; see `relaymesh explain tsk_1`"
    ]


def test_submit_workflow_sends_the_definition_and_a_wrong_file_is_refused(fake_node, relaymesh, tmp_path):
    fake_node.answers["submit-workflow"] = SUBMITTED
    definition = {"steps": [{"id": "a", "agent": "echo"}, {"id": "b", "agent": "echo", "dependsOn": ["a"]}]}
    file = tmp_path / "flow.json"

    file.write_text(json.dumps(definition))
    assert relaymesh("--root", fake_node.root, "submit-workflow", "--file", file).code == 0
    assert fake_node.args("submit-workflow")["definition"] == definition

    for text, hint in (("{", "is not JSON"), ("[]", "must hold one object"), ("[" * 100_000, "is not JSON")):
        file.write_text(text)
        ran = relaymesh("--root", fake_node.root, "submit-workflow", "--file", file)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert hint in ran.err


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"status": "SUCCESS", "resultPayload": "grüße\n"}, "grüße\n".encode()),
        ({"status": "SUCCESS", "resultPayloadBase64": base64.b64encode(b"\xff\x00").decode()}, b"\xff\x00"),
        ({"status": "SUCCESS", "resultPayload": ""}, b""),
    ],
)
def test_result_prints_the_bytes_and_nothing_else(fake_node, relaymesh, answer, expected):
    fake_node.answers["result"] = {"taskId": "tsk_1"} | answer

    ran = relaymesh("--root", fake_node.root, "result", "tsk_1")

    assert (ran.code, ran.raw, ran.err) == (0, expected, "")


def test_result_of_an_unfinished_task_is_a_negative_answer(fake_node, relaymesh):
    fake_node.answers["result"] = {"taskId": "tsk_1", "status": "PENDING"}

    ran = relaymesh("--root", fake_node.root, "result", "tsk_1")

    assert (ran.code, ran.raw) == (1, b"")
    assert "relaymesh wait tsk_1" in ran.err
    assert relaymesh("--root", fake_node.root, "result", "tsk_1", "--json").json["status"] == "PENDING"


@pytest.mark.parametrize(("cancelled", "code"), [(True, 0), (False, 1)])
def test_cancel_is_zero_only_when_the_task_is_cancelled(fake_node, relaymesh, cancelled, code):
    fake_node.answers["cancel"] = {"taskId": "tsk_1", "cancelled": cancelled, "state": "too_late", "mode": "soft"}

    ran = relaymesh("--root", fake_node.root, "cancel", "tsk_1", "--mode", "soft", "--reason", "why not")

    assert ran.code == code
    assert fake_node.args("cancel") == {"taskId": "tsk_1", "mode": "soft", "reason": "why not"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["task", "t"], {"taskId": "t"}),
        (["workflow", "t"], {"taskId": "t"}),
        (["tasks"], {"limit": 50, "offset": 0}),
        (
            ["tasks", "--status", "dead_letter", "--limit", "3", "--offset", "9"],
            {"status": "DEAD_LETTER", "limit": 3, "offset": 9},
        ),
    ],
)
def test_questions_carry_their_options_and_show_the_answer(fake_node, relaymesh, command, expected):
    fake_node.answers[command[0]] = [{"taskId": "t", "status": "PENDING"}]

    ran = relaymesh("--root", fake_node.root, *command)

    assert ran.code == 0
    assert fake_node.args(command[0]) == expected
    assert "PENDING" in ran.out


def test_a_task_shows_how_far_its_running_step_is(fake_node, relaymesh):
    step = {"name": "s", "status": "RUNNING", "progress": {"fraction": 0.416, "text": "page 5 of 12", "atMs": 1}}
    fake_node.answers["task"] = {"taskId": "t", "status": "RUNNING", "steps": [step]}

    assert "42 % page 5 of 12" in relaymesh("--root", fake_node.root, "task", "t").out
    assert relaymesh("--root", fake_node.root, "task", "t", "--json").json["steps"] == [step]


def test_a_refusal_of_the_node_is_one_line_and_its_class_the_exit_code(fake_node, relaymesh):
    fake_node.answers["task"] = NotFoundError("task t is not known here")
    fake_node.answers["submit"] = ConflictError("key k belongs to task tsk_2 with another definition")

    missing = relaymesh("--root", fake_node.root, "task", "t")
    conflict = relaymesh("--root", fake_node.root, "submit", "--agent", "a", "--input", "", "--json")

    assert (missing.code, missing.out, missing.err) == (1, "", "relaymesh: task t is not known here\n")
    assert conflict.code == 4
    assert conflict.json["error"] == {
        "code": "conflict",
        "message": "key k belongs to task tsk_2 with another definition",
    }


def test_a_wait_on_a_terminal_shows_progress_and_cleans_up_after_itself(fake_node):
    steps = [{"name": "a", "status": "SUCCESS"}, {"name": "b", "status": "RUNNING"}]
    answers = iter([RUNNING | {"steps": steps}, DONE])
    fake_node.answers["wait"] = lambda args: next(answers)
    shown, terminal = pty.openpty()

    ran = subprocess.run(
        [sys.executable, "-m", "tools.cli", "--root", str(fake_node.root), "wait", "tsk_1"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=terminal,
        timeout=20,
        check=True,
    )
    os.close(terminal)
    progress = os.read(shown, 4096).decode()
    os.close(shown)

    assert b"SUCCESS" in ran.stdout
    assert "RUNNING, 1 of 2 steps done" in progress
    assert progress.endswith("\r\x1b[K")


def test_stopping_a_wait_says_that_the_task_goes_on(fake_node, relaymesh, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    fake_node.answers["wait"] = RUNNING
    monkeypatch.setattr(work_commands, "_show_progress", interrupt)

    ran = relaymesh("--root", fake_node.root, "wait", "tsk_1")

    assert (ran.code, ran.out) == (130, "")
    assert "task tsk_1 goes on" in ran.err

"""Goal: pause, resume, drain, batches and times ask what they should, and the exit code is the answer."""

from __future__ import annotations

import json

import pytest

from mesh.errors import ConfigError
from tools.durations import parse_date_ms

SUBMITTED = {"taskId": "tsk_1", "deduplicated": False, "message": "submitted", "replicated": 0}


def test_submit_sends_times_as_milliseconds(fake_node, relaymesh):
    fake_node.answers["submit"] = SUBMITTED
    root = ("--root", fake_node.root, "submit", "--agent", "a", "--input", "")
    assert relaymesh(*root, "--delay", "30s", "--expires", "2h").code == 0
    assert relaymesh(*root, "--not-before", "2026-11-25T18:00:00+01:00").code == 0
    first, second = (call["args"] for call in fake_node.calls)
    assert (first["delayMs"], first["expiresMs"], "notBeforeMs" in first) == (30_000, 7_200_000, False)
    assert second["notBeforeMs"] == 1_795_626_000_000
    for option, text in (("--delay", "30"), ("--expires", "-1s"), ("--not-before", "tomorrow")):
        ran = relaymesh(*root, option, text)
        assert ran.code == 2
        assert option in ran.err
    assert len(fake_node.calls) == 2


def test_dates_are_iso_8601_or_milliseconds():
    assert parse_date_ms("1795626000000", option="x") == 1_795_626_000_000
    assert parse_date_ms("2026-11-25T17:00Z", option="x") == 1_795_626_000_000
    assert parse_date_ms("20261125", option="x") == parse_date_ms("2026-11-25", option="x")
    seconds = "1795626000"  # as milliseconds they would be long past, and the work would start at once
    for text in ("", "25.11.2026", "-5", "1e3", "9" * 16, "0001-01-01T00:00", "2026", seconds):
        with pytest.raises(ConfigError, match="is not a date"):
            parse_date_ms(text, option="x")


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ([], {}),
        (["--mesh"], {"mesh": True}),
        (["--node", "b"], {"node": "b"}),
        (["--agent", "echo", "--reason", "closed"], {"agent": "echo", "reason": "closed"}),
    ],
)
def test_pause_names_its_scope(fake_node, relaymesh, options, sent):
    fake_node.answers["pause"] = {"scope": "x", "paused": True}
    assert relaymesh("--root", fake_node.root, "pause", *options).code == 0
    assert fake_node.args("pause") == sent
    ran = relaymesh("--root", fake_node.root, "pause", "--mesh", "--node", "b")
    assert (ran.code, len(fake_node.calls)) == (2, 1)
    assert "give one of --agent, --node and --mesh" in ran.err


@pytest.mark.parametrize(("command", "field"), [("resume", "resumed"), ("drain", "drained")])
@pytest.mark.parametrize("answer", [True, False])
def test_the_exit_code_says_whether_it_was_so(fake_node, relaymesh, command, field, answer):
    fake_node.answers[command] = {field: answer}
    assert relaymesh("--root", fake_node.root, command, "--node", "b").code == (0 if answer else 1)
    assert fake_node.args(command)["node"] == "b"


def test_a_batch_is_read_from_lines_and_errors_name_them(fake_node, relaymesh, tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text('\n{"agent": "a", "idempotencyKey": "k"}\n\n{"agent": "b"}\n')
    fake_node.answers["submit-batch"] = {
        "results": [
            {"index": 0, "taskId": "tsk_1", "deduplicated": False},
            {"index": 1, "error": {"code": "config", "message": "no agent 'b'"}},
        ],
        "accepted": 1,
        "refused": 1,
        "replicated": 0,
    }
    ran = relaymesh("--root", fake_node.root, "submit-batch", "--file", file, "--json")
    assert ran.code == 1
    assert f"{file} line 4: no agent 'b'" in ran.err
    assert [result["line"] for result in ran.json["results"]] == [2, 4]
    first, second = fake_node.args("submit-batch")["tasks"]
    assert first == {"agent": "a", "idempotencyKey": "k"}
    assert len(second["idempotencyKey"]) == 32

    fake_node.answers["submit-batch"] = {"results": [], "replicated": 1}
    piped = json.dumps({"agent": "a"}).encode()
    base = ("--root", fake_node.root, "submit-batch", "--file", "-")
    assert relaymesh(*base, stdin=piped).code == 0
    assert relaymesh(*base, "--replicas", "2", stdin=piped).code == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no task"),
        ('{"agent": "a"}\n{"agent"\n', "line 2: is not JSON"),
        ("[]", "line 1: must be an object"),
        ('{"agent": "a"}\n' * 1001, "the limit is 1000"),
    ],
)
def test_a_file_that_holds_no_batch_is_refused_before_anything_is_sent(fake_node, relaymesh, tmp_path, text, says):
    file = tmp_path / "tasks.jsonl"
    file.write_text(text)
    ran = relaymesh("--root", fake_node.root, "submit-batch", "--file", file)
    assert ran.code == 2
    assert says in ran.err
    assert fake_node.calls == []

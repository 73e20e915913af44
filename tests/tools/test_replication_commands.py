"""Goal: envelopes go into files and out of them, whole, and exit codes tell what is left. Method: a scripted node."""

from __future__ import annotations

import base64
import json

import pytest

SUMMARY = {"schemaVersion": "relaymesh.replication.v2", "rows": 1, "counts": {"tasks": 1}}


@pytest.mark.parametrize(("more", "code"), [(False, 0), (True, 1)])
def test_an_export_writes_the_envelope_once(fake_node, relaymesh, tmp_path, more, code):
    out = tmp_path / "e"
    fake_node.answers["replication-export"] = {**SUMMARY, "more": more, "envelope": b"{}"}

    assert relaymesh("--root", fake_node.root, "replication-export", "--out", out).code == code
    assert out.read_bytes() == b"{}"
    again = relaymesh("--root", fake_node.root, "replication-export", "--out", out)
    assert (again.code, len(fake_node.calls)) == (2, 1)


def test_an_export_goes_on_since_an_earlier_envelope(fake_node, relaymesh, tmp_path):
    earlier = tmp_path / "earlier"
    earlier.write_text(json.dumps({"cursor": base64.b64encode(b"\x01\x02").decode(), "other": 1}))
    fake_node.answers["replication-export"] = {**SUMMARY, "more": False, "envelope": b"{}"}

    options = ["--since", earlier, "--since-ms", "5"]
    relaymesh("--root", fake_node.root, "replication-export", "--out", tmp_path / "e", *options)

    assert fake_node.args("replication-export") == {"since": b"\x01\x02", "sinceMs": 5, "limit": 10_000}


def test_a_file_that_is_no_envelope_is_one_line(fake_node, relaymesh, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("hello")
    for options in (
        ["replication-export", "--out", tmp_path / "e", "--since", wrong],
        ["replication-import", "--in", tmp_path / "absent"],
        ["replication-verify", "--in", tmp_path],
    ):
        ran = relaymesh("--root", fake_node.root, *options)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert fake_node.calls == []


@pytest.mark.parametrize(("command", "word"), [("replication-import", "vectorJoined"), ("replication-verify", "ok")])
def test_what_is_left_to_do_is_the_exit_code(fake_node, relaymesh, tmp_path, command, word):
    envelope = tmp_path / "e"
    envelope.write_bytes(b"{}")
    for value, code in ((True, 0), (False, 1)):
        fake_node.answers[command] = {**SUMMARY, word: value}
        assert relaymesh("--root", fake_node.root, command, "--in", envelope).code == code
    assert fake_node.calls[0]["args"] == {"envelope": b"{}"}


@pytest.mark.parametrize(("converged", "code"), [(True, 0), (False, 1)])
def test_replicas_that_differ_are_a_negative_answer(fake_node, relaymesh, converged, code):
    behind = [{"nodeId": "node-z", "incarnation": "07", "rows": 3, "oldestAgeMs": 12_000}]
    peer = {"nodeId": "b", "missingHere": 0, "missingThere": 3, "originsBehindHere": [], "originsBehindThere": behind}
    fake_node.answers["convergence-report"] = {"converged": converged, "peers": [peer, {"nodeId": "c", "error": "cut"}]}
    ran = relaymesh("--root", fake_node.root, "convergence-report")
    assert ran.code == code
    (line,) = [line.split() for line in ran.out.splitlines() if "node-z" in line]
    assert line == ["b", "there", "node-z", "3", "12s"]
    assert relaymesh("--root", fake_node.root, "convergence-report", "--json").json["peers"][0] == peer

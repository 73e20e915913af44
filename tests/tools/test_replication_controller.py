"""Goal: rounds go on until Ctrl-C, and wrong input is one line before the first. Method: a scripted node."""

from __future__ import annotations

import base64
import json

import pytest

from mesh.errors import UnavailableError
from mesh.ids import Origin
from mesh.version_vector import VersionVector
from tools import replication_controller

ENVELOPE = json.dumps(
    {"cursor": base64.b64encode(VersionVector({Origin("a", 1): [(1, 3)]}).to_wire()).decode()}
).encode()


@pytest.fixture
def folder(tmp_path):
    for name in ("inbox", "outbox"):
        (tmp_path / "spool" / name).mkdir(parents=True)
    return tmp_path / "spool"


@pytest.fixture
def node(fake_node):
    fake_node.answers["replication-export"] = {"rows": 3, "complete": True, "envelope": ENVELOPE}
    fake_node.answers["replication-import"] = {"rows": 3, "vectorJoined": True}
    return fake_node


@pytest.fixture
def sleeps(monkeypatch):
    """Ctrl-C comes while it waits for the second time."""
    taken = []

    def sleep(seconds):
        taken.append(seconds)
        if len(taken) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(replication_controller.time, "sleep", sleep)
    return taken


def test_rounds_are_lines_of_json_until_it_is_stopped(node, relaymesh, folder, sleeps):
    ran = relaymesh(
        *("--root", node.root, "replication-controller", "--peers", f"dir:{folder}", "--interval-ms", "250", "--json")
    )

    assert (ran.code, sleeps) == (0, [0.25, 0.25])
    first, second = map(json.loads, ran.out.splitlines())
    assert (first["peers"], first["pushes"], first["pushedRows"], first["failures"], first["errors"]) == (
        1,
        1,
        3,
        0,
        [],
    )
    assert second["pushes"] == 0
    assert first["stateFile"] == str(node.root / "replication" / "controller-state.json")
    (file,) = (folder / "outbox").iterdir()
    assert file.read_bytes() == ENVELOPE
    assert node.calls[1]["args"]["since"] == VersionVector({Origin("a", 1): [(1, 3)]}).to_wire()


def test_a_failure_is_told_to_people_once(node, relaymesh, folder, sleeps):
    node.answers["replication-export"] = UnavailableError("the node is busy")
    ran = relaymesh("--root", node.root, "replication-controller", "--peers", f"dir:{folder}")
    assert ran.code == 0
    assert ran.err.count("the node is busy") == 1
    assert ran.out == ""


def test_one_round_says_by_its_exit_code_what_is_left(node, relaymesh, folder):
    options = ("--root", node.root, "replication-controller", "--peers", f"dir:{folder}", "--once")
    assert relaymesh(*options).code == 0
    (folder / "inbox" / f"{'0' * 16}-{1:012d}.envelope").write_bytes(ENVELOPE)
    node.answers["replication-import"] = {"rows": 3, "vectorJoined": False}
    ran = relaymesh(*options, "--json")
    assert (ran.code, ran.json["waiting"]) == (1, 1)
    node.answers["replication-import"] = {"rows": 3, "vectorJoined": True}
    assert relaymesh(*options).code == 0
    assert list((folder / "inbox").iterdir()) == []


def test_full_begins_from_nothing_under_the_next_number(node, relaymesh, folder):
    options = ("--root", node.root, "replication-controller", "--peers", f"dir:{folder}", "--once")
    relaymesh(*options)
    relaymesh(*options, "--full")
    assert "since" not in node.calls[-1]["args"]
    assert [file.name[-22:] for file in sorted((folder / "outbox").iterdir())] == [
        "-000000000001.envelope",
        "-000000000002.envelope",
    ]


def test_a_state_that_is_none_is_left_alone(node, relaymesh, folder, tmp_path):
    for text in ("hello", '{"peers": {}}', '{"peers": {"x:1": {"cursor": "AAAA"}}, "updated_at_ms": 0}'):
        (tmp_path / "state").write_text(text)
        ran = relaymesh(
            *("--root", node.root, "replication-controller", "--peers", f"dir:{folder}", "--once"),
            *("--state-file", tmp_path / "state"),
        )
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert "move it away" in ran.err
        assert (tmp_path / "state").read_text() == text
    assert node.calls == []


def test_two_controllers_do_not_share_a_state(node, relaymesh, folder, tmp_path):
    with replication_controller.locked(tmp_path / "state"):
        ran = relaymesh(
            *("--root", node.root, "replication-controller", "--peers", f"dir:{folder}", "--once"),
            *("--state-file", tmp_path / "state"),
        )
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "another replication-controller" in ran.err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "HOST:PORT or dir:PATH"),
        (["--peers", ","], "HOST:PORT or dir:PATH"),
        (["--peers", "nowhere"], "HOST:PORT"),
        (["--peers", "h:1"], "does not exist"),
        (["--peers", ",".join(f"dir:{n}" for n in range(17))], "1 to 16"),
        (["--peers-file", "/does/not/exist"], "--peers-file"),
        (["--peers", "dir:x", "--interval-ms", "5"], "100"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anything_is_asked(node, relaymesh, options, word):
    ran = relaymesh("--root", node.root, "replication-controller", "--once", *options)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert word in ran.err
    assert node.calls == []


def test_a_file_of_peers_has_comments_and_names_nobody_twice(tmp_path):
    (tmp_path / "peers").write_text("# sites\ndir:/a,b # a comma is part of it\n\n10.0.0.1:18443\n")
    assert replication_controller.read_peers("10.0.0.1:18443", tmp_path / "peers") == ["10.0.0.1:18443", "dir:/a,b"]


def test_what_is_remembered_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(replication_controller, "PEERS_REMEMBERED_MAX", 2)
    state = replication_controller.StateFile(tmp_path / "state")
    for peer in ("a:1", "b:1", "c:1"):
        state.link(peer).number = 7
    state.save()
    again = replication_controller.StateFile(tmp_path / "state")
    assert [again.link(peer).number for peer in ("b:1", "c:1", "a:1")] == [7, 7, 0]

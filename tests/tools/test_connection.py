"""Goal: the right node is asked, and another one when it is safe to. Method: scripted nodes and stand-in targets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mesh.errors import ConfigError, UnavailableError
from node.admin_client import LocalTarget
from tools.connection import PEERS_MAX, ConnectionChoice, MeshClient


def test_a_root_means_its_control_socket_and_flags_beat_the_environment(tmp_path):
    environ = {"RELAYMESH_ROOT": str(tmp_path / "other"), "RELAYMESH_PEER": "10.0.0.1:1"}

    assert ConnectionChoice(root=tmp_path).targets(environ) == [LocalTarget(tmp_path)]
    assert ConnectionChoice().targets({"RELAYMESH_ROOT": str(tmp_path)}) == [LocalTarget(tmp_path)]


@pytest.mark.parametrize(
    ("choice", "environ", "hint"),
    [
        (ConnectionChoice(), {}, "--root DIR"),
        (ConnectionChoice(root=Path("/does/not/exist")), {}, "is not a directory"),
        (ConnectionChoice(peer="10.0.0.1:1"), {}, "relaymesh mesh enroll"),
        (ConnectionChoice(), {"RELAYMESH_PEER": "10.0.0.1:1"}, "--identity FILE"),
        (ConnectionChoice(peer="10.0.0.1"), {}, "HOST:PORT"),
        (ConnectionChoice(peer=","), {}, "1 to 16 addresses"),
        (ConnectionChoice(peer="h:1", identity=Path("/does/not/exist")), {}, "/does/not/exist does not exist"),
        (ConnectionChoice(peer="h:1", root=Path("/does/not")), {}, "/does/not/identity.json does not exist"),
        (ConnectionChoice(peer="h:1"), {"RELAYMESH_IDENTITY": "/nowhere"}, "/nowhere does not exist"),
    ],
)
def test_a_choice_that_cannot_be_used_says_what_to_give(choice, environ, hint):
    with pytest.raises(ConfigError, match=hint):
        choice.targets(environ)


def test_as_many_peers_as_allowed_and_one_more(tmp_path):
    missing = tmp_path / "none"
    for count, hint in ((PEERS_MAX, "does not exist"), (PEERS_MAX + 1, "1 to 16 addresses")):
        with pytest.raises(ConfigError, match=hint):
            ConnectionChoice(peer=",".join(["h:1"] * count), identity=missing).targets({})


def test_a_question_moves_on_to_the_next_node_and_stays_there(fake_node, tmp_path):
    fake_node.answers["tasks"] = ["here"]
    client = MeshClient([LocalTarget(tmp_path / "nobody"), LocalTarget(fake_node.root)])

    assert client.call("tasks", {}, namespace="default") == ["here"]
    assert client.call("tasks", {}, namespace="default") == ["here"]
    client.close()

    assert len(fake_node.calls) == 2


def test_a_submit_whose_answer_was_lost_is_sent_again_with_the_same_key(fake_node, relaymesh):
    fake_node.answers["submit"] = {"taskId": "t"}
    fake_node.drop_next = 1
    target = LocalTarget(fake_node.root)
    client = MeshClient([target, target])

    assert client.call("submit", {"idempotencyKey": "k"}, namespace="default") == {"taskId": "t"}
    client.close()

    assert fake_node.args("submit") == {"idempotencyKey": "k"}


@pytest.mark.parametrize("command", ["replay", "cluster-epoch-bump", "mesh-recover", "maintenance"])
def test_what_could_act_twice_is_never_sent_twice(fake_node, command):
    fake_node.drop_next = 1
    target = LocalTarget(fake_node.root)
    client = MeshClient([target, target])

    with pytest.raises(UnavailableError):
        client.call(command, {}, namespace="default")
    client.close()

    assert fake_node.calls == []


def test_nobody_anywhere_is_unreachable(relaymesh, tmp_path):
    ran = relaymesh("--root", tmp_path, "tasks")

    assert ran.code == 3
    assert f"relaymesh-node --root {tmp_path}" in ran.err


def test_something_else_on_the_socket_is_unreachable_not_a_traceback(relaymesh, tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "control.sock"))
    listener.listen()
    # A backlog accepts the connection; nobody ever reads, and closing resets it.
    listener.close()

    assert relaymesh("--root", tmp_path, "tasks").code == 3

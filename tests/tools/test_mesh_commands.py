"""Goal: a mesh and its enrolments can be made, and then used with --peer. Method: real files, and TLS on loopback."""

from __future__ import annotations

import socket
import ssl
import stat

import pytest

from node.identity_files import read_enrolment
from node.streams.tls import make_contexts


@pytest.fixture
def mesh_dir(relaymesh, tmp_path):
    assert relaymesh("mesh", "create", "--out", tmp_path / "mesh").code == 0
    return tmp_path / "mesh"


def enrol(relaymesh, mesh_dir, out, *who):
    return relaymesh("mesh", "enroll", "--mesh", mesh_dir, "--out", out, *who, "--json")


def test_creating_a_mesh_names_the_next_command(relaymesh, tmp_path):
    ran = relaymesh("mesh", "create", "--out", tmp_path / "mesh", "--json")

    assert ran.code == 0
    assert ran.json["directory"] == str(tmp_path / "mesh")
    assert f"relaymesh mesh enroll --mesh {tmp_path / 'mesh'}" in ran.err


def test_enrolments_of_a_name_are_numbered_upwards_and_belong_to_one_reader(relaymesh, mesh_dir, tmp_path):
    first = enrol(relaymesh, mesh_dir, tmp_path / "a1", "--node-id", "node-a")
    second = enrol(relaymesh, mesh_dir, tmp_path / "a2", "--node-id", "node-a")
    person = enrol(relaymesh, mesh_dir, tmp_path / "me", "--operator", "alice")

    assert (first.json["role"], first.json["name"]) == ("node", "node-a")
    assert second.json["enrolment"] > first.json["enrolment"]
    assert "--enroll" in first.err
    assert (person.json["role"], person.json["name"]) == ("operator", "alice")
    assert f"--identity {tmp_path / 'me'}" in person.err
    assert stat.S_IMODE((tmp_path / "a1").stat().st_mode) == 0o600


@pytest.mark.parametrize("who", [[], ["--node-id", "a", "--operator", "b"], ["--node-id", "no spaces"]])
def test_a_wrong_enrolment_is_refused_in_one_line_and_writes_nothing(relaymesh, mesh_dir, tmp_path, who):
    ran = enrol(relaymesh, mesh_dir, tmp_path / "out", *who)

    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


def test_a_mesh_is_not_created_over_something(relaymesh, mesh_dir):
    before = sorted(mesh_dir.iterdir())

    ran = relaymesh("mesh", "create", "--out", mesh_dir)

    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert sorted(mesh_dir.iterdir()) == before


@pytest.fixture
def fake_peer(fake_node, relaymesh, mesh_dir, tmp_path, serving, serve_requests):
    """The scripted node at a TLS address, with the identity of node-a; its address."""
    enrol(relaymesh, mesh_dir, tmp_path / "node-a.enrolment", "--node-id", "node-a")
    contexts = make_contexts(read_enrolment(tmp_path / "node-a.enrolment").tls_material)

    def serve(plain: socket.socket) -> None:
        try:
            with contexts.server.wrap_socket(plain, server_side=True) as secure:
                serve_requests(secure, fake_node, contexts.cluster)
        except (ssl.SSLError, ConnectionError):
            return  # a stranger was turned away

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    with serving(listener, serve):
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_an_operator_asks_any_peer(fake_peer, fake_node, relaymesh, mesh_dir, tmp_path, monkeypatch):
    enrol(relaymesh, mesh_dir, tmp_path / "me", "--operator", "alice")
    fake_node.answers["members"] = [{"nodeId": "node-a"}]

    for args in (["--peer", fake_peer, "--identity", tmp_path / "me"], ["--peer", f"127.0.0.1:1,{fake_peer}"]):
        assert relaymesh(*args, "members", "--json").json == [{"nodeId": "node-a"}]
        monkeypatch.setenv("RELAYMESH_IDENTITY", str(tmp_path / "me"))


def test_the_identity_of_the_node_here_serves_too(fake_peer, fake_node, relaymesh, mesh_dir, tmp_path):
    (tmp_path / "root").mkdir()
    enrol(relaymesh, mesh_dir, tmp_path / "root" / "identity.json", "--node-id", "node-b")
    fake_node.answers["health"] = {"ok": True}

    assert relaymesh("--root", tmp_path / "root", "--peer", fake_peer, "health").code == 0


def test_a_stranger_gets_no_answer_and_hears_why(fake_peer, fake_node, relaymesh, tmp_path):
    relaymesh("mesh", "create", "--out", tmp_path / "other")
    enrol(relaymesh, tmp_path / "other", tmp_path / "stranger", "--operator", "mallory")
    fake_node.answers["members"] = []

    ran = relaymesh("--peer", fake_peer, "--identity", tmp_path / "stranger", "members")

    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
    assert "identity" in ran.err
    assert fake_node.calls == []

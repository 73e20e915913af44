"""The `relaymesh` command against real nodes: any peer answers, with the identity of a person."""

import json
import sqlite3

import pytest

from chaos.real.processes import wait_until
from mesh.errors import UnavailableError
from node import identity_files


@pytest.fixture(scope="module")
def operator(module_mesh):
    """An enrolment of a person in this mesh."""
    out = module_mesh.cluster.directory / "olga.enrolment"
    identity_files.enroll(module_mesh.cluster.mesh_directory, operator="olga", out=out)
    return out


def test_work_is_submitted_at_one_peer_and_its_result_read_at_another(mesh, operator, relaymesh):
    nodes = mesh.cluster.nodes
    done = relaymesh(
        *("--peer", nodes["a"].stream, "--identity", operator, "--json"),
        *("submit", "--agent", "echo", "--input", "grüße", "--wait", "--replicas", 2),
    )
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout)
    assert (task["status"], task["resultPayload"]) == ("SUCCESS", "grüße")
    wait_until(
        lambda: (
            relaymesh("--peer", nodes["b"].stream, "--identity", operator, "result", task["taskId"]).stdout == "grüße"
        ),
        5,
        "the other peer has the result",
    )


def test_a_failed_task_is_exit_code_one_with_its_reason(mesh, relaymesh):
    done = relaymesh("--root", mesh.cluster.nodes["a"].root, "submit", "--agent", "fail", "--input", "x", "--wait")
    assert done.returncode == 1
    assert "DEAD_LETTER" in done.stdout + done.stderr


def test_a_person_of_another_mesh_is_turned_away(mesh, relaymesh, tmp_path):
    identity_files.create_mesh(tmp_path / "other")
    identity_files.enroll(tmp_path / "other", operator="mallory", out=tmp_path / "mallory")
    done = relaymesh("--peer", mesh.cluster.nodes["a"].stream, "--identity", tmp_path / "mallory", "members")
    assert done.returncode == 3
    assert done.stdout == ""


def test_every_look_at_the_mesh_works_from_every_node(mesh, relaymesh):
    for node in mesh.cluster.nodes.values():
        for command in (
            "members",
            "mesh-summary",
            "health",
            "stats",
            "agents",
            "cluster-state",
            "maintenance",
            "version",
        ):
            done = relaymesh("--root", node.root, "--json", command)
            assert done.returncode == 0, (command, done.stderr)
            json.loads(done.stdout)


def test_a_raised_cluster_epoch_is_known_everywhere_and_finished_work_stays(mesh):
    task_id = mesh.submit("a", "echo", "before")
    mesh.wait_everywhere(task_id, "SUCCESS")
    bumped = mesh.cluster.admin("b", "cluster-epoch-bump", reason="drill", actor="olga")
    for node in mesh.cluster.nodes:
        mesh.cluster.wait_answer(
            node,
            "cluster-state",
            lambda state: state["epoch"] == bumped["currentEpoch"],
            10,
            f"{node} knows the epoch",
        )
    after = mesh.submit("c", "echo", "after")
    mesh.wait_everywhere(after, "SUCCESS")
    mesh.wait_everywhere(task_id, "SUCCESS")


def test_namespaces_do_not_see_each_other(mesh):
    admin = mesh.cluster.admin
    blue = admin("a", "submit", namespace="blue", agent="echo", input=b"b", idempotencyKey="same")["taskId"]
    red = admin("a", "submit", namespace="red", agent="echo", input=b"b", idempotencyKey="same")["taskId"]
    assert blue != red
    assert [task["taskId"] for task in admin("a", "tasks", namespace="blue", limit=10, offset=0)] == [blue]


def test_a_database_of_a_newer_release_is_refused_and_not_touched(mesh):
    """The last test of this module: its node stays down."""
    spec = mesh.cluster.nodes["c"]
    mesh.cluster.terminate("c")
    database = spec.root / "relaymesh.db"
    with sqlite3.connect(database) as connection:
        connection.execute(
            "UPDATE schema_migrations SET version = 9999 WHERE version = (SELECT max(version) FROM schema_migrations)"
        )
    connection.close()
    before = database.read_bytes()
    with pytest.raises(UnavailableError, match=r"(?s)exited with 2.*newer"):
        mesh.cluster.start("c")
    assert database.read_bytes() == before

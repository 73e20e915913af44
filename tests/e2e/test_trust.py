"""Keys are rotated, members revoked and hosts enrolled anew while real nodes run, and nobody restarts for it."""

import json
import secrets
import shutil
import time

import pytest

from chaos.real.processes import wait_until
from mesh.errors import RelayMeshError
from mesh.key_rotation import GRACE_MS, add, open_ring, promote, retire, sign_ring
from node.admin_client import AdminClient, PeerTarget
from node.identity_files import IDENTITY_FILE, enroll, opened_mesh, read_enrolment, store_ring
from node.streams.tls import client_context


def as_node(mesh, node, asked, file=None):
    """A connection to the streams of `asked` with the identity of `node`."""
    enrolment = read_enrolment(file or mesh.cluster.enrolment(node))
    context = client_context(enrolment.tls_material)
    return AdminClient(PeerTarget(mesh.cluster.nodes[asked].stream, enrolment.cluster, context))


def refusal(client):
    """Why the node does not answer; None when it does."""
    try:
        client.call("members")
    except RelayMeshError as error:
        return str(error)
    return None


def rings(mesh):
    return {node: mesh.cluster.admin(node, "mesh-keys")["ring"] for node in mesh.cluster.running()}


def wait_for_one_ring(mesh):
    wait_until(lambda: len(set(rings(mesh).values())) == 1, 5, "all running nodes have one ring")
    for node in mesh.cluster.running():
        mesh.cluster.wait_answer(node, "mesh-keys", lambda shown: not shown["lagging"], 5, "nobody lags")


def next_ring(mesh, node, change):
    """One step as `mesh keys` makes it, in this process; returns the ring."""
    directory = mesh.cluster.mesh_directory
    wait_for_one_ring(mesh)
    with opened_mesh(directory) as opened:
        said = mesh.cluster.admin(node, "mesh-keys", withStatement=True)["statement"]
        ring = change(open_ring(opened.authority, said)[0])
        statement = sign_ring(opened.ca_key, opened.authority.cluster, ring)
        mesh.cluster.admin(node, "mesh-keys-install", statement=statement)
        store_ring(directory, ring, statement)
    return ring


def rotate_by_command(mesh, relaymesh, node):
    """The steps of a rotation up to the day of grace; returns the former key."""

    def run(*args):
        where = ("--root", mesh.cluster.nodes[node].root)
        ran = relaymesh(*where, "mesh", "keys", *args, "--mesh", mesh.cluster.mesh_directory, "--json")
        assert ran.returncode == 0, ran.stderr
        wait_for_one_ring(mesh)
        return json.loads(ran.stdout)["keys"]

    former, added = run("add")
    run("promote", added["keyId"])
    run("retire", former["keyId"])
    return int(former["keyId"], 16)


def test_a_node_that_was_down_through_two_rotations_comes_back_by_its_certificate(mesh, relaymesh):
    mesh.cluster.kill("c")
    mesh.wait_members(10, c="DEAD")
    former = rotate_by_command(mesh, relaymesh, "a")
    day_after_ms = int(time.time() * 1000) + GRACE_MS + 60_000
    ring = next_ring(mesh, "b", lambda ring: retire(ring, former, day_after_ms))
    second = ring.primary.key_id
    ring = next_ring(mesh, "b", lambda ring: add(ring, secrets.token_bytes(32)))
    third = ring.keys()[-1].key_id
    next_ring(mesh, "a", lambda ring: promote(ring, third))
    next_ring(mesh, "a", lambda ring: retire(ring, second, 0))
    ring = next_ring(mesh, "a", lambda ring: retire(ring, second, GRACE_MS))
    assert (ring.number, [key.key_id for key in ring]) == (8, [third])
    wait_for_one_ring(mesh)

    mesh.cluster.start("c")
    mesh.wait_members(15, a="ALIVE", b="ALIVE", c="ALIVE")
    wait_for_one_ring(mesh)
    task_id = mesh.submit("c", "echo", "under new keys")
    mesh.wait_everywhere(task_id, "SUCCESS")

    # What it fetched is on its disk, for its owner alone, and it starts with that.
    trust = mesh.cluster.nodes["c"].root / "trust.json"
    assert trust.stat().st_mode & 0o777 == 0o600
    mesh.cluster.restart("c")
    mesh.wait_members(10, c="ALIVE")
    assert rings(mesh)["c"] == rings(mesh)["a"]


def test_a_revoked_node_is_out_within_two_seconds_and_back_when_it_is_enrolled_anew(mesh, relaymesh):
    cluster = mesh.cluster
    with as_node(mesh, "b", "c") as open_stream:
        assert refusal(open_stream) is None
        ran = relaymesh("--root", cluster.nodes["a"].root, "mesh", "revoke", "b", "--mesh", cluster.mesh_directory)
        revoked = time.monotonic()
        assert ran.returncode == 0, ran.stderr
        # The connection of the client is gone, and a new one is refused, at a node that was not asked.
        wait_until(lambda: refusal(open_stream) is not None, 2, "the open stream is closed")
        assert "was revoked" in (refusal(open_stream) or "")
        for node in ("a", "c"):
            seen = cluster.wait_answer(
                node, "members", lambda members: "b" not in {m["nodeId"] for m in members}, 2, "b is gone"
            )
            assert {m["nodeId"] for m in seen} == {"a", "c"}
        assert time.monotonic() - revoked < 2

    # Restarts forget nothing.
    cluster.restart("c")
    mesh.wait_seen("c", 10, a="ALIVE")
    assert [each["name"] for each in cluster.admin("c", "mesh-revocations")["enrolments"]] == ["b"]
    assert "b" not in mesh.statuses("c")
    with as_node(mesh, "b", "c") as client:
        assert "was revoked" in (refusal(client) or "")

    cluster.kill("b")
    cluster.enrolment("b").unlink()
    enroll(cluster.mesh_directory, node_id="b", out=cluster.enrolment("b"))
    cluster.start("b")
    mesh.wait_members(15, a="ALIVE", b="ALIVE", c="ALIVE")
    task_id = mesh.submit("b", "echo", "welcome back")
    mesh.wait_everywhere(task_id, "SUCCESS")


def test_a_host_whose_disk_died_comes_back_under_a_new_enrolment_and_its_old_one_is_refused(mesh, tmp_path):
    cluster = mesh.cluster
    task_id = mesh.submit("c", "echo", "kept by others")
    mesh.wait_everywhere(task_id, "SUCCESS")
    stolen = tmp_path / "stolen.enrolment"
    shutil.copy(cluster.nodes["c"].root / IDENTITY_FILE, stolen)
    cluster.kill("c")
    cluster.enrolment("c").unlink()
    for entry in cluster.nodes["c"].root.iterdir():
        if entry.suffix != ".json" or entry.name in (IDENTITY_FILE, "trust.json"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    enroll(cluster.mesh_directory, node_id="c", out=cluster.enrolment("c"))

    cluster.start("c")
    mesh.wait_members(15, a="ALIVE", b="ALIVE", c="ALIVE")
    mesh.wait_task("c", task_id, "SUCCESS", 10)
    assert {m["enrolment"] for m in cluster.admin("a", "members") if m["nodeId"] == "c"} == {2}
    for asked in ("a", "b"):
        with as_node(mesh, "c", asked, file=stolen) as thief:
            assert "enrolment 1 of c was followed by 2" in (refusal(thief) or "")
        with as_node(mesh, "c", asked) as owner:
            assert refusal(owner) is None


def test_a_node_takes_a_new_certificate_into_use_while_it_runs_and_works(mesh, relaymesh, tmp_path):
    cluster = mesh.cluster
    pid, journal = cluster.pid("b"), mesh.journal()
    former = tmp_path / "former.enrolment"
    shutil.copy(cluster.nodes["b"].root / IDENTITY_FILE, former)
    number = read_enrolment(former).enrolment
    before = cluster.admin("b", "tls-status")["serverCertSerialHex"]
    task_id = mesh.submit("b", "work", {"seconds": 2, "journal": str(journal)})
    mesh.wait_owned("b", task_id, "b")

    cluster.enrolment("b").unlink()
    enroll(cluster.mesh_directory, node_id="b", out=cluster.enrolment("b"))
    ran = relaymesh("--root", cluster.nodes["b"].root, "mesh", "install", cluster.enrolment("b"))
    assert ran.returncode == 0, ran.stderr
    for node in ("a", "c"):
        cluster.wait_answer(
            node,
            "members",
            lambda members: {m["nodeId"]: (m["enrolment"], m["status"]) for m in members}["b"] == (number + 1, "ALIVE"),
            3,
            f"{node} knows the new enrolment",
        )
        with as_node(mesh, "b", node, file=former) as old, as_node(mesh, "b", node) as new:
            assert f"was followed by {number + 1}" in (refusal(old) or "")
            assert refusal(new) is None
    assert cluster.admin("b", "tls-status")["serverCertSerialHex"] != before
    mesh.wait_everywhere(task_id, "SUCCESS")
    assert cluster.pid("b") == pid
    assert mesh.step("a", task_id)["leaseEpoch"] == 1  # nobody took the running step
    mesh.wait_everywhere(mesh.submit("b", "echo", "signed anew"), "SUCCESS")

    again = relaymesh("--root", cluster.nodes["b"].root, "mesh", "install", former)
    assert again.returncode == 4
    mesh.cluster.restart("b")
    mesh.wait_members(10, a="ALIVE", b="ALIVE", c="ALIVE")


@pytest.mark.parametrize("command", ["mesh-keys-install", "mesh-revocations-install"])
def test_a_statement_that_the_ca_did_not_sign_changes_nothing(mesh, command):
    before = rings(mesh), mesh.cluster.admin("a", "mesh-revocations")
    said = mesh.cluster.admin("a", "mesh-keys", withStatement=True)["statement"]
    for forged in (b"", b"nonsense", said[:-1] + bytes([said[-1] ^ 1]), said[: len(said) // 2]):
        with pytest.raises(RelayMeshError, match="CA statement"):
            mesh.cluster.admin("a", command, statement=forged)
    assert (rings(mesh), mesh.cluster.admin("a", "mesh-revocations")) == before

"""The mesh's CA is rotated while real nodes run and one is switched off; nobody restarts, and nobody is cut off."""

import json
import shutil
import socket
import ssl
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.authorities import add, first_authorities, promote, retire, sign_authorities
from mesh.errors import RelayMeshError
from node import x509_certificates
from node.admin_client import AdminClient, PeerTarget
from node.identity_files import enroll, read_enrolment
from node.streams.tls import TlsMaterial, client_context, san_uri


def refusal(target):
    """Why nodes do not answer this one; None when they do."""
    try:
        with AdminClient(target) as client:
            client.call("members")
    except RelayMeshError as error:
        return str(error)
    return None


def with_file(mesh, file, asked):
    """To the streams of `asked`, as whoever was enrolled with this file, which nobody has changed since."""
    enrolment = read_enrolment(file)
    return PeerTarget(mesh.cluster.nodes[asked].stream, enrolment.cluster, client_context(enrolment.tls_material))


def serial_of(mesh, file, asked):
    """The number of the certificate that a node's streams prove it by."""
    with with_file(mesh, file, asked).connect() as connection:
        return connection.getpeercert()["serialNumber"].lower().lstrip("0")


def thief(mesh, asked, ca_key, ca_pem, role, name, enrolment):
    """To the streams of `asked`, with a certificate that the holder of a stolen CA key made for itself."""
    key, cluster = Ed25519PrivateKey.generate(), read_enrolment(mesh.cluster.enrolment("a")).cluster
    uri = san_uri(cluster, role, name, enrolment)
    leaf = x509_certificates.make_leaf(ca_key, ca_pem, public_key=key.public_key(), name=name, uri=uri)
    material = TlsMaterial(cluster, leaf, x509_certificates.private_key_pem(key), ca_pem)
    context = client_context(material)
    context.verify_mode = ssl.CERT_NONE  # it does not care whom it talks to
    return NameBlind(mesh.cluster.nodes[asked].stream, cluster, context)


class NameBlind(PeerTarget):
    """Talks to whoever answers."""

    def connect(self):
        return self.context.wrap_socket(socket.create_connection(self.address, timeout=5))


def forgeries(stolen_key, cluster):
    """What the holder of a retired CA's key would say of the mesh's CAs."""
    mine = Ed25519PrivateKey.generate()
    begun = first_authorities(stolen_key.public_key().public_bytes_raw())
    begun = add(begun, stolen_key, mine.public_key().public_bytes_raw())
    signing = replace(promote(begun, begun.cas[-1].name, []), number=99)
    yield sign_authorities(mine, cluster, signing), "takes back CA .* which is retired here"
    retired = retire(signing, signing.cas[0].name, [])
    yield sign_authorities(mine, cluster, retired), "which no CA that is trusted here endorsed"
    yield sign_authorities(mine, cluster, retired)[:-1], "cannot be read"


def cas(mesh, node):
    return mesh.cluster.admin(node, "mesh-ca")


def wait_all_under(mesh, ca):
    """Until all three are there, and each knows that all have a certificate of this CA."""
    mesh.wait_members(15, a="ALIVE", b="ALIVE", c="ALIVE")
    for node in ("a", "b", "c"):
        mesh.cluster.wait_answer(
            node,
            "mesh-ca",
            lambda seen: not seen["lagging"] and {each["certificateBy"] for each in seen["members"]} == {ca},
            10,
            f"{node} sees all under CA {ca}",
        )


def rotate(mesh, relaymesh, node):
    """Add, promote, retire by command line; returns the names of the new CA and the former one."""

    def run(*args):
        where = ("--root", mesh.cluster.nodes[node].root)
        ran = relaymesh(*where, "mesh", "ca", *args, "--mesh", mesh.cluster.mesh_directory, "--json")
        assert ran.returncode == 0, ran.stderr
        shown = json.loads(ran.stdout)
        for each in mesh.cluster.running():
            mesh.cluster.wait_answer(
                each,
                "mesh-ca",
                lambda seen: seen["number"] == shown["number"] and not seen["lagging"],
                5,
                f"{each} follows list {shown['number']}, and so do all others",
            )
        return shown["cas"]

    former = next(ca["ca"] for ca in cas(mesh, node)["cas"] if ca["state"] == "signing")
    new = run("add")[-1]["ca"]
    run("promote", new)
    run("retire", former)
    return new, former


def test_a_node_that_was_off_through_two_rotations_comes_back_and_the_stolen_keys_are_worth_nothing(
    mesh, relaymesh, tmp_path
):
    cluster, directory = mesh.cluster, mesh.cluster.mesh_directory
    pids = {node: cluster.pid(node) for node in ("a", "b")}
    where = ("--root", cluster.nodes["a"].root)
    # The ring and the revocations have words of the first CA, which have to outlive it.
    for args in (("keys", "add"), ("revoke", "--serial", "abc")):
        ran = relaymesh(*where, "mesh", *args, "--mesh", directory)
        assert ran.returncode == 0, ran.stderr
    for name in ("ann", "eve"):
        enroll(directory, operator=name, out=tmp_path / name)
    stolen_key = x509_certificates.load_private_key((directory / "ca-key.pem").read_text())
    stolen_pem = (directory / "ca-cert.pem").read_text()
    assert cas(mesh, "a")["number"] == 0

    proven = {node: cluster.admin(node, "tls-status")["serverCertSerialHex"] for node in ("a", "b")}
    cluster.kill("c")
    mesh.wait_members(10, c="DEAD")
    task_id = mesh.submit("a", "echo", "before")
    second, first = rotate(mesh, relaymesh, "a")
    assert refusal(with_file(mesh, tmp_path / "ann", "a")) is None
    for node in ("a", "b"):
        shown = cluster.admin(node, "tls-status")
        assert shown["ok"]
        assert shown["serverCertSerialHex"] != proven[node]
        assert serial_of(mesh, tmp_path / "ann", node) == shown["serverCertSerialHex"]  # on streams, not by its word
    third, _ = rotate(mesh, relaymesh, "b")
    assert [(ca["ca"], ca["state"]) for ca in cas(mesh, "b")["cas"]] == [
        (first, "retired"),
        (second, "retired"),
        (third, "signing"),
    ]
    mesh.wait_everywhere(task_id, "SUCCESS")
    mesh.wait_everywhere(mesh.submit("b", "echo", "under the third CA"), "SUCCESS")

    # Who was enrolled before is welcome as ever, with the file from then; who is enrolled now is too.
    enroll(directory, operator="bob", out=tmp_path / "bob")
    for file in (tmp_path / "ann", tmp_path / "bob", cluster.enrolment("c")):
        for asked in ("a", "b"):
            assert refusal(with_file(mesh, file, asked)) is None
    # What the holder of the first CA's key makes is worth nothing.
    for role, name, number in (("node", "b", 9), ("node", "c", 1), ("operator", "ann", 1), ("operator", "x", 1)):
        why = refusal(thief(mesh, "a", stolen_key, stolen_pem, role, name, number))
        assert f"of CA {first}, which was retired" in (why or ""), why
    for statement, complaint in forgeries(stolen_key, read_enrolment(tmp_path / "bob").cluster):
        with pytest.raises(RelayMeshError, match=complaint):
            cluster.admin("a", "mesh-ca-install", statement=statement, force=True)
    assert cas(mesh, "a")["number"] == 6

    cluster.start("c")
    wait_all_under(mesh, third)
    mesh.wait_everywhere(mesh.submit("c", "echo", "back"), "SUCCESS")
    assert cluster.admin("c", "mesh-keys")["ring"] == cluster.admin("a", "mesh-keys")["ring"]
    assert cluster.admin("c", "mesh-revocations")["serials"] == ["abc"]
    assert {node: cluster.pid(node) for node in ("a", "b")} == pids

    # And again, from a CA that is not the mesh's first.
    cluster.kill("c")
    mesh.wait_members(10, c="DEAD")
    fourth, _ = rotate(mesh, relaymesh, "b")
    cluster.start("c")
    wait_all_under(mesh, fourth)

    # A later enrolment comes into use while its node runs, as ever.
    again = tmp_path / "c-again"
    enroll(directory, node_id="c", out=again)
    before = cluster.admin("c", "tls-status")["serverCertSerialHex"]
    ran = relaymesh("--root", cluster.nodes["c"].root, "mesh", "install", again)
    assert ran.returncode == 0, ran.stderr
    wait_all_under(mesh, fourth)
    assert before != cluster.admin("c", "tls-status")["serverCertSerialHex"] == serial_of(mesh, again, "c")
    for asked in ("a", "b"):
        cluster.wait_answer(
            asked,
            "members",
            lambda members: {each["nodeId"]: each["enrolment"] for each in members}["c"] == 2,
            5,
            f"{asked} knows the later enrolment of c",
        )
        assert "was followed by 2" in (refusal(with_file(mesh, cluster.enrolment("c"), asked)) or "")
        assert refusal(with_file(mesh, again, asked)) is None

    # Restarts forget nothing.
    shutil.copy(again, cluster.enrolment("c"))
    cluster.restart("c")
    cluster.restart("a")
    mesh.wait_members(15, a="ALIVE", b="ALIVE", c="ALIVE")
    mesh.wait_everywhere(mesh.submit("c", "echo", "restarted"), "SUCCESS")
    for node in ("a", "b", "c"):
        assert {m["certificateBy"] for m in cas(mesh, node)["members"]} == {fourth}
        why = refusal(thief(mesh, node, stolen_key, stolen_pem, "node", "b", 9))
        assert "was retired" in (why or ""), why

"""Goal: keys are rotated and trust is ended by command line. Method: a real mesh directory, and a node by script."""

from __future__ import annotations

import pytest

from mesh.errors import ConflictError
from mesh.identity import Authority
from mesh.key_rotation import add, key_name, open_ring, sign_ring
from mesh.revocations import open_revocations
from mesh.sealing import KeyRing, KeyState
from node.identity_files import create_mesh, enroll, opened_mesh, read_enrolment
from node.x509_certificates import names_of

TEMPLATE = "node-rpc-revocation-template"


class Ringmaster:
    """What a node would answer: it takes every statement in, after checking who signed it."""

    def __init__(self, mesh_dir):
        with opened_mesh(mesh_dir) as opened:
            self.authority = Authority(opened.authority.ca_public_key)
            self.ring: KeyRing = opened.ring
        self.statement = b""
        self.revoked = None
        self.revocations = b""
        self.lagging: list[str] = []

    def keys(self, args):
        return {
            "ring": self.ring.number,
            "keys": [{"keyId": key_name(key.key_id), "state": key.state.value} for key in self.ring],
            "members": [],
            "lagging": self.lagging,
            "statement": self.statement,
        }

    def install(self, args):
        if self.lagging and not args.get("force"):
            return ConflictError(f"not installed yet on {', '.join(self.lagging)}")
        self.statement = args["statement"]
        self.ring, _ = open_ring(self.authority, self.statement)
        return self.keys(args)

    def listed(self, args):
        enrolments = self.revoked.enrolments if self.revoked else ()
        return {
            "number": self.revoked.number if self.revoked else 0,
            "enrolments": [{"role": e.role, "name": e.name, "upToEnrolment": e.enrolment} for e in enrolments],
            "serials": list(self.revoked.serials) if self.revoked else [],
            "fingerprints": list(self.revoked.fingerprints) if self.revoked else [],
            "lagging": [],
            "statement": self.revocations,
        }

    def revoke(self, args):
        self.revocations = args["statement"]
        self.revoked, _ = open_revocations(self.authority, self.revocations)
        return self.listed(args)


@pytest.fixture
def mesh_dir(tmp_path):
    create_mesh(tmp_path / "secrets")
    enroll(tmp_path / "secrets", node_id="node-b", out=tmp_path / "b.enroll")
    return tmp_path / "secrets"


@pytest.fixture
def node(fake_node, mesh_dir):
    master = Ringmaster(mesh_dir)
    fake_node.answers |= {
        "mesh-keys": master.keys,
        "mesh-keys-install": master.install,
        "mesh-revocations": master.listed,
        "mesh-revocations-install": master.revoke,
    }
    return master


@pytest.fixture
def mesh(relaymesh, fake_node, mesh_dir, node):
    """Run `relaymesh mesh …` at the node, with the mesh directory where it is needed."""

    def run(*args, **options):
        needs = () if args[-1] in ("list", "revocations") else ("--mesh", mesh_dir)
        return relaymesh("--root", fake_node.root, "mesh", *args, *needs, **options)

    return run


def states(ring):
    return [key.state for key in ring]


def test_keys_are_added_promoted_and_retired_and_new_enrolments_bring_them(mesh, node, mesh_dir, tmp_path):
    former = key_name(node.ring.primary.key_id)
    assert mesh("keys", "add").code == 0
    new = key_name(node.ring.keys()[-1].key_id)
    assert mesh("keys", "promote", new).code == 0
    assert mesh("keys", "retire", former).code == 0
    assert states(node.ring) == [KeyState.RETIRING, KeyState.PRIMARY]
    assert node.ring.number == 3

    early = mesh("keys", "retire", former)
    assert (early.code, early.err.count("\n")) == (4, 1)
    assert "h more" in early.err
    shown = mesh("keys", "list")
    assert former in shown.out
    assert "ring 3, installed on all others" in shown.out

    enroll(mesh_dir, node_id="node-c", out=tmp_path / "c.enroll")
    enrolment = read_enrolment(tmp_path / "c.enroll")
    assert enrolment.ring_statement == node.statement
    assert enrolment.ring().primary.key_id == node.ring.primary.key_id


def test_a_member_without_the_ring_is_named_and_left_behind_only_by_its_typed_name(mesh, node):
    mesh("keys", "add")
    new = key_name(node.ring.keys()[-1].key_id)
    node.lagging = ["node-x"]
    refused = mesh("keys", "promote", new)
    assert (refused.code, node.ring.number) == (4, 1)
    assert "node-x" in refused.err

    mistyped = mesh("keys", "promote", new, "--force", stdin=b"yes\n")
    assert (mistyped.code, node.ring.number) == (2, 1)
    assert mesh("keys", "promote", new, "--force", stdin=b"node-x\n").code == 0
    assert node.ring.number == 2


def test_the_mesh_is_believed_before_the_directory_and_a_node_that_is_behind_is_not_asked_to_sign(mesh, node, mesh_dir):
    with opened_mesh(mesh_dir) as opened:  # as after a crash between the node's answer and the note of it
        ring = add(opened.ring, b"k" * 32)
        node.install({"statement": sign_ring(opened.ca_key, opened.authority.cluster, ring)})
    assert mesh("keys", "add").code == 0
    assert (node.ring.number, len(node.ring.keys())) == (2, 3)

    node.ring, node.statement = ring, b""
    behind = mesh("keys", "add")
    assert (behind.code, behind.err.count("\n")) == (4, 1)
    assert "ask another node" in behind.err


def test_a_host_is_revoked_up_to_its_latest_enrolment(mesh, node, mesh_dir, tmp_path):
    enroll(mesh_dir, node_id="node-b", out=tmp_path / "b2.enroll")
    assert mesh("revoke", "node-b", "--up-to", "1").code == 0
    assert node.revoked.refusal("node", "node-b", 2) is None
    ran = mesh("revoke", "node-b")
    assert ran.code == 0
    assert "node-b, enrolments 1 to 2" in ran.out
    assert "keys add" in ran.err  # the host still has the gossip key
    assert node.revoked.number == 2
    assert "node-b" in mesh("revocations").out


def test_a_revoked_certificate_ends_its_enrolment_too(mesh, node, tmp_path):
    serial, fingerprint = names_of(read_enrolment(tmp_path / "b.enroll").tls_certificate_pem)
    (tmp_path / "gone").write_text(f"serial:{serial}\n")
    assert mesh("revoke", "--file", tmp_path / "gone").code == 0
    assert mesh("revoke", "--fingerprint", fingerprint, "--serial", "aa,bb").code == 0
    assert node.revoked.refusal("node", "node-b", 1)
    assert (node.revoked.serials, node.revoked.fingerprints) == (tuple(sorted(["aa", "bb", serial])), (fingerprint,))


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        ((), 2, "name what to revoke"),
        (("node-z",), 1, "never enrolled node node-z"),
        (("--serial", "zz"), 2, "no serial number"),
        (("--file", "/no/such/file"), 2, "cannot be read"),
    ],
)
def test_what_cannot_be_revoked_is_one_clear_line(mesh, node, args, code, word):
    ran = mesh("revoke", *args)
    assert (ran.code, ran.err.count("\n")) == (code, 1)
    assert word in ran.err
    assert node.revoked is None


def test_signing_needs_the_mesh_directory(relaymesh, fake_node, node):
    ran = relaymesh("--root", fake_node.root, "mesh", "keys", "add")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "--mesh DIR" in ran.err


def test_a_template_counts_what_it_holds_and_replaces_nothing(relaymesh, tmp_path):
    out = tmp_path / "gone.txt"
    ran = relaymesh(TEMPLATE, "--out", out, "--serial", "1A,2b", "--fingerprint", "ab" * 32, "--json")
    assert ran.json == {
        "output": str(out),
        "revokedSerialCount": 2,
        "revokedFingerprintCount": 1,
        "revokedEntryCount": 3,
    }
    again = relaymesh(TEMPLATE, "--out", out)
    assert (again.code, again.err.count("\n")) == (2, 1)


def test_tls_status_is_shown_as_the_node_tells_it(relaymesh, fake_node):
    fake_node.answers["tls-status"] = {"ok": True, "revokedEntryCount": 2}
    ran = relaymesh("--root", fake_node.root, "tls-status", "--json")
    assert ran.json == {"ok": True, "revokedEntryCount": 2}

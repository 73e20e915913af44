"""Goal: the mesh's CA is rotated by command line. Method: a real mesh directory, and a node by script."""

from __future__ import annotations

import secrets

import msgspec
import pytest

from mesh.authorities import CaState, open_authorities
from mesh.errors import ConflictError, UnavailableError
from mesh.key_rotation import add, open_ring, sign_ring
from mesh.revocations import RevokedEnrolment, open_revocations, sign_revocations
from node.identity_files import authority_of, create_mesh, enroll, opened_mesh, read_enrolment


class Follower:
    """What a node would answer: it takes every list in, after checking that it follows the one before."""

    def __init__(self, mesh_dir, shown):
        with opened_mesh(mesh_dir) as opened:
            self.authorities = opened.authorities
            self.cluster = opened.authority.cluster
        self.statement = self.ring = self.revocations = b""
        self.certificates = [msgspec.msgpack.encode(each.certificate) for each in shown]
        self.lagging: list[str] = []
        self.members: list[dict] = []
        self.error = None

    @property
    def authority(self):
        return authority_of(self.authorities)

    def cas(self, args):
        return {
            "number": self.authorities.number,
            "cas": [{"ca": ca.name, "state": ca.state.value, "endorsedBy": None} for ca in self.authorities.cas],
            "members": self.members,
            "lagging": self.lagging,
            "statement": self.statement,
            "certificates": self.certificates,
        }

    def install(self, args):
        if self.error is not None:
            return self.error
        if self.lagging and not args.get("force"):
            return ConflictError(f"not followed yet by {', '.join(self.lagging)}")
        self.authorities, said = open_authorities(self.authorities, self.cluster, args["statement"])
        self.statement = said.raw
        if "ring" in args:
            open_ring(self.authority, args["ring"])
            self.ring = args["ring"]
        if "revocations" in args:
            open_revocations(self.authority, args["revocations"])
            self.revocations = args["revocations"]
        return self.cas(args)


@pytest.fixture
def mesh_dir(tmp_path):
    create_mesh(tmp_path / "secrets")
    return tmp_path / "secrets"


@pytest.fixture
def node(fake_node, mesh_dir, tmp_path):
    follower = Follower(mesh_dir, [enroll(mesh_dir, node_id="node-b", out=tmp_path / "b.enroll")])
    fake_node.answers |= {
        "mesh-ca": follower.cas,
        "mesh-ca-install": follower.install,
        "mesh-keys": lambda args: {"statement": follower.ring},
        "mesh-revocations": lambda args: {"statement": follower.revocations},
    }
    return follower


@pytest.fixture
def ca(relaymesh, fake_node, mesh_dir, node):
    """Run `relaymesh mesh ca …` at the node, with the mesh directory where it is needed."""

    def run(*args, **options):
        needs = () if args[-1] == "list" else ("--mesh", mesh_dir)
        return relaymesh("--root", fake_node.root, "mesh", "ca", *args, *needs, **options)

    return run


def files(mesh_dir):
    return {path.name: path.read_bytes() for path in mesh_dir.iterdir()}


def test_a_ca_is_added_promoted_and_the_former_retired_and_enrolments_are_by_it(ca, node, mesh_dir, tmp_path):
    former = node.authorities.signing.name
    assert ca("add").code == 0
    new = node.authorities.cas[-1].name
    assert enroll(mesh_dir, node_id="node-c", out=tmp_path / "c.enroll").authorities.signing.name == former
    ran = ca("promote", new)
    assert (ran.code, ran.err) == (0, "")
    assert {each.certificate.name for each in node.authorities.reissued} == {"node-b", "node-c"}
    assert ca("retire", former).code == 0
    assert [(each.name, each.state) for each in node.authorities.cas] == [
        (former, CaState.RETIRED),
        (new, CaState.SIGNING),
    ]
    shown = ca("list")
    assert new in shown.out
    assert "CA list 3, followed by all others" in shown.out

    key_file = mesh_dir / f"ca-key-{new}.pem"
    assert key_file.stat().st_mode & 0o777 == 0o600
    enroll(mesh_dir, operator="ann", out=tmp_path / "ann")
    made = read_enrolment(tmp_path / "ann")
    assert made.authorities_statement == node.statement
    assert node.authority.signer_of(made.certificate) == node.authorities.signing.public_key


def test_what_the_former_ca_said_is_said_anew_by_the_next(ca, node, mesh_dir, tmp_path):
    with opened_mesh(mesh_dir) as opened:
        node.ring = sign_ring(opened.ca_key, node.cluster, add(opened.ring, secrets.token_bytes(32)))
        listed = opened.revocations.with_more([RevokedEnrolment("node", "gone", 1)], [], [])
        node.revocations = sign_revocations(opened.ca_key, node.cluster, listed)
    former, ring_before = node.authorities.signing.name, node.ring
    ca("add")
    assert (node.ring, node.authorities.number) == (ring_before, 1)
    assert ca("promote", node.authorities.cas[-1].name).code == 0
    assert ca("retire", former).code == 0
    ring, _ = open_ring(node.authority, node.ring)
    revoked, _ = open_revocations(node.authority, node.revocations)
    assert (ring.number, len(ring.keys()), revoked.number) == (2, 2, 2)
    with opened_mesh(mesh_dir) as opened:  # and the directory goes on from there
        assert (opened.ring.number, opened.revocations.number) == (2, 2)
    assert enroll(mesh_dir, node_id="node-z", out=tmp_path / "z").ring_statement == node.ring


def test_a_refused_step_leaves_no_trace(ca, node, mesh_dir):
    before = files(mesh_dir)
    node.error = ConflictError("not now")
    refused = ca("add")
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert files(mesh_dir) == before
    node.error = None
    ca("add")
    before, new = files(mesh_dir), node.authorities.cas[-1].name
    node.error = ConflictError("not now")
    assert ca("promote", new).code == 4
    assert files(mesh_dir) == before


def test_an_answer_that_is_lost_loses_no_key(ca, node, fake_node, mesh_dir):
    def lost(args):
        node.install(args)
        return UnavailableError("the connection broke")

    fake_node.answers["mesh-ca-install"] = lost
    assert ca("add").code == 3
    new = node.authorities.cas[-1].name
    fake_node.answers["mesh-ca-install"] = node.install
    assert ca("promote", new).code == 0
    assert node.authorities.signing.name == new


def test_a_member_that_lags_is_named_and_left_behind_only_by_its_typed_name(ca, node):
    ca("add")
    new = node.authorities.cas[-1].name
    node.lagging = ["node-x"]
    refused = ca("promote", new)
    assert (refused.code, node.authorities.number) == (4, 1)
    assert "node-x" in refused.err
    mistyped = ca("promote", new, "--force", stdin=b"yes\n")
    assert (mistyped.code, node.authorities.number) == (2, 1)
    assert ca("promote", new, "--force", stdin=b"node-x\n").code == 0
    assert node.authorities.number == 2


def test_a_member_that_gets_no_certificate_is_left_behind_by_its_typed_name_too(ca, node):
    ca("add")
    new = node.authorities.cas[-1].name
    node.members = [{"nodeId": name, "status": status} for name, status in (("node-b", "ALIVE"), ("rogue", "DEAD"))]
    node.members.append({"nodeId": "gone", "status": "LEFT"})
    assert ca("promote", new, "--force", stdin=b"node-b\n").code == 2
    assert ca("promote", new, "--force", stdin=b"rogue\n").code == 0


def test_whose_key_nobody_knows_is_named(ca, node, mesh_dir, tmp_path):
    enroll(mesh_dir, operator="ann", out=tmp_path / "ann")
    notes = msgspec.json.decode((mesh_dir / "enrolments.json").read_bytes())
    for each in notes["issued"]:
        del each["public_key"]  # as releases before left it
    (mesh_dir / "enrolments.json").write_bytes(msgspec.json.encode(notes))
    ca("add")
    ran = ca("promote", node.authorities.cas[-1].name)
    assert ran.code == 0
    assert "operator ann" in ran.err
    assert "Enroll them anew" in ran.err
    assert [each.certificate.name for each in node.authorities.reissued] == ["node-b"]  # the node shows its own


def test_a_node_that_is_behind_or_a_directory_that_is_without_the_key_does_not_sign(ca, node, mesh_dir):
    start = node.authorities, node.statement
    ca("add")
    added = node.authorities, node.statement
    node.authorities, node.statement = start
    behind = ca("add")
    assert (behind.code, behind.err.count("\n")) == (4, 1)
    assert "ask another node" in behind.err
    node.authorities, node.statement = added
    new = node.authorities.cas[-1].name
    (mesh_dir / f"ca-key-{new}.pem").unlink()
    without = ca("promote", new)
    assert (without.code, without.err.count("\n")) == (2, 1)
    assert f"ca-key-{new}.pem" in without.err
    assert node.authorities.number == 1


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (("promote", "nonsense"), 2, "names no CA"),
        (("promote", "00000000"), 1, "there is no CA 00000000"),
        (("retire", "FIRST"), 4, "promote another one first"),
        (("promote", "FIRST"), 4, "signing CA already"),
    ],
)
def test_a_step_that_cannot_be_is_one_clear_line(ca, node, mesh_dir, args, code, word):
    before = files(mesh_dir)
    first = node.authorities.signing.name
    ran = ca(*(first if each == "FIRST" else each for each in args))
    assert (ran.code, ran.err.count("\n")) == (code, 1)
    assert word in ran.err
    assert (files(mesh_dir), node.authorities.number) == (before, 0)

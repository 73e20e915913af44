"""Goal: a new CA certifies what this mesh directory enrolled, and nothing else. Method: real directories."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.authorities import add, promote, retire, sign_authorities
from mesh.errors import ConfigError
from mesh.identity import issue
from mesh.revocations import RevokedEnrolment, sign_revocations
from node import ca_files
from node.identity_files import (
    authority_of,
    create_mesh,
    enroll,
    install,
    opened_mesh,
    read_enrolment,
    store_issued,
    store_revocations,
    tls_material,
)
from node.reissue import reissue
from node.streams.tls import make_contexts
from node.x509_certificates import der_of, make_ca, make_cross, names_of, pem_of


@pytest.fixture
def mesh_dir(tmp_path):
    create_mesh(tmp_path / "mesh")
    return tmp_path / "mesh"


def new_ca(mesh_dir):
    """The next list with one more CA, and that CA's key, as `mesh ca add` makes them."""
    with opened_mesh(mesh_dir) as opened:
        key = Ed25519PrivateKey.generate()
        root = make_ca(key, name=f"RelayMesh {opened.authority.cluster.hex()}")
        cross = make_cross(opened.ca_key, pem_of(opened.authorities.signing.root), key.public_key())
        added = add(
            opened.authorities,
            opened.ca_key,
            key.public_key().public_bytes_raw(),
            root=der_of(root),
            cross=der_of(cross),
        )
        ca_files.store_ca_key(mesh_dir, added.cas[-1].name, key)
        return added, key


def promoted(mesh_dir, shown=()):
    """The whole of `mesh ca promote` but for the node."""
    added, key = new_ca(mesh_dir)
    with opened_mesh(mesh_dir) as opened:
        made = reissue(opened, added, shown, ca_key=key, ca_pem=pem_of(added.cas[-1].root))
        following = promote(added, added.cas[-1].name, made.reissued)
        ca_files.store_authorities(mesh_dir, sign_authorities(key, opened.authority.cluster, following))
        store_issued(mesh_dir, made.issued)
    return following, made


def forget_keys(mesh_dir):
    """Make the directory's notes those of a release that kept no keys."""
    path = mesh_dir / "enrolments.json"
    notes = msgspec.json.decode(path.read_bytes())
    for each in notes["issued"]:
        del each["public_key"]
    path.write_bytes(msgspec.json.encode(notes))


def names(made):
    return [(each.certificate.role, each.certificate.name, each.certificate.enrolment) for each in made.reissued]


def test_everybody_gets_a_certificate_for_the_key_that_it_has(mesh_dir, tmp_path):
    enroll(mesh_dir, node_id="a", out=tmp_path / "a1")
    latest = enroll(mesh_dir, node_id="a", out=tmp_path / "a2")
    ann = enroll(mesh_dir, operator="ann", out=tmp_path / "ann")
    following, made = promoted(mesh_dir)
    assert names(made) == [("node", "a", 2), ("operator", "ann", 1)]
    assert made.uncovered == []
    assert [each.certificate.public_key for each in made.reissued] == [
        latest.certificate.public_key,
        ann.certificate.public_key,
    ]
    authority = authority_of(following)
    for each in made.reissued:
        assert authority.signer_of(each.certificate) == following.signing.public_key
    assert [bool(each.leaf) for each in made.reissued] == [True, False]
    with opened_mesh(mesh_dir) as opened:  # it is revoked by the new certificate's number as by the old one's
        serials = {each.serial for each in opened.issued if each.name == "a" and each.enrolment == 2}
    assert serials == {names_of(latest.tls_certificate_pem)[0], names_of(pem_of(made.reissued[0].leaf))[0]}


def test_old_enrolments_are_known_by_what_members_show_and_named_where_nobody_shows_it(mesh_dir, tmp_path):
    shown = []
    for name in "abc":
        made = enroll(mesh_dir, node_id=name, out=tmp_path / name)
        shown.append(msgspec.msgpack.encode(made.certificate))
    enroll(mesh_dir, operator="ann", out=tmp_path / "ann")
    forget_keys(mesh_dir)
    _, made = promoted(mesh_dir, [*shown[:2], b"nonsense"])
    assert names(made) == [("node", "a", 1), ("node", "b", 1)]
    assert made.uncovered == ["node c", "operator ann"]


def test_what_the_directory_never_enrolled_is_not_certified_whoever_signed_it(mesh_dir, tmp_path):
    real = enroll(mesh_dir, node_id="a", out=tmp_path / "a")
    with opened_mesh(mesh_dir) as opened:
        thief = Ed25519PrivateKey.generate().public_key().public_bytes_raw()

        def forged(name, number, by=opened.ca_key):
            certificate = issue(
                by, cluster=opened.authority.cluster, role="node", name=name, enrolment=number, public_key=thief
            )
            return msgspec.msgpack.encode(certificate)

    stranger = Ed25519PrivateKey.generate()
    _, made = promoted(mesh_dir, [forged("a", 1), forged("a", 2), forged("x", 1), forged("a", 1, by=stranger)])
    assert [each.certificate.public_key for each in made.reissued] == [real.certificate.public_key]


def test_who_was_revoked_gets_nothing_and_is_not_missed(mesh_dir, tmp_path):
    enroll(mesh_dir, node_id="a", out=tmp_path / "a")
    enroll(mesh_dir, node_id="b", out=tmp_path / "b")
    with opened_mesh(mesh_dir) as opened:
        listed = opened.revocations.with_more([RevokedEnrolment("node", "b", 1)], [], [])
        store_revocations(mesh_dir, sign_revocations(opened.ca_key, opened.authority.cluster, listed))
    _, made = promoted(mesh_dir)
    assert (names(made), made.uncovered) == ([("node", "a", 1)], [])


def test_what_the_signing_ca_has_issued_stays_as_it_is(mesh_dir, tmp_path):
    enroll(mesh_dir, node_id="a", out=tmp_path / "a")
    following, first = promoted(mesh_dir)
    enroll(mesh_dir, node_id="b", out=tmp_path / "b")
    with opened_mesh(mesh_dir) as opened:
        again = reissue(opened, following, (), ca_key=opened.ca_key, ca_pem=pem_of(following.signing.root))
    assert again.reissued[0] == first.reissued[0]
    assert (names(again), len(again.issued)) == ([("node", "a", 1), ("node", "b", 1)], 1)


def test_notes_of_certificates_do_not_grow_with_every_rotation(mesh_dir, tmp_path):
    enroll(mesh_dir, node_id="a", out=tmp_path / "a")
    for _ in range(4):
        promoted(mesh_dir)
    with opened_mesh(mesh_dir) as opened:
        assert len(opened.issued) == 2
        assert len(opened.authorities.cas) == 5


def test_an_enrolment_after_a_rotation_brings_the_cas_and_the_mesh_keeps_its_name(mesh_dir, tmp_path):
    before = enroll(mesh_dir, node_id="a", out=tmp_path / "a1")
    install(tmp_path / "root", tmp_path / "a1")
    following, _ = promoted(mesh_dir)
    with opened_mesh(mesh_dir) as opened:
        retired = retire(following, following.cas[0].name, following.reissued)
        ca_files.store_authorities(mesh_dir, sign_authorities(opened.ca_key, opened.authority.cluster, retired))
    (mesh_dir / "ca-key.pem").unlink()  # which is what one does with the key of a retired CA
    after = enroll(mesh_dir, node_id="a", out=tmp_path / "a2")
    read = read_enrolment(tmp_path / "a2")
    assert read == after
    assert (read.cluster, read.identity().ca_public_key) == (before.cluster, before.identity().ca_public_key)
    assert authority_of(read.authorities).signer_of(read.certificate) == retired.signing.public_key
    make_contexts(read.tls_material)
    assert install(tmp_path / "root", tmp_path / "a2").enrolment == 2
    # The former one is worth as much as the list that came after it says.
    material = tls_material(before, read.authorities)
    assert material.certificate_pem == pem_of(following.reissued[0].leaf)
    make_contexts(material)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_an_enrolment_without_the_cas_it_is_of_is_refused_in_one_line(mesh_dir, tmp_path, damage):
    promoted(mesh_dir)
    enroll(mesh_dir, node_id="a", out=tmp_path / "a")
    file = msgspec.json.decode((tmp_path / "a").read_bytes())
    if damage is None:
        del file["authorities"]
    else:
        file["authorities"] = msgspec.to_builtins(damage)
    (tmp_path / "a").write_bytes(msgspec.json.encode(file))
    with pytest.raises(ConfigError, match="does not hold") as refused:
        read_enrolment(tmp_path / "a")
    assert "\n" not in str(refused.value)


def test_a_directory_without_the_signing_key_or_with_another_says_so(mesh_dir, tmp_path):
    following, _ = promoted(mesh_dir)
    key_file = ca_files.key_file(mesh_dir, following, following.signing)
    for content, complaint in ((None, "cannot be read"), ((mesh_dir / "ca-key.pem").read_bytes(), "not the key of CA")):
        key_file.unlink()
        if content is not None:
            key_file.write_bytes(content)
            key_file.chmod(0o600)
        with pytest.raises(ConfigError, match=complaint):
            enroll(mesh_dir, node_id="a", out=tmp_path / "a")
        if content is None:
            key_file.touch()

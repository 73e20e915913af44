"""Identity files are verified whole, written whole, and never give two holders one number."""

from __future__ import annotations

import base64
import json
import os
import ssl
import threading
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.errors import ConfigError, ConflictError
from mesh.identity import Authority, Certificate, issue, verify
from node import durable_files, identity_files
from node.identity_files import (
    IDENTITY_FILE,
    create_mesh,
    enroll,
    found,
    install,
    load,
    read_enrolment,
)
from node.small_files import FILE_BYTES_MAX
from node.streams.tls import make_contexts


@pytest.fixture(scope="module")
def mesh_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("identity") / "mesh"
    create_mesh(out)
    return out


@pytest.fixture(scope="module")
def other_mesh_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("other") / "mesh"
    create_mesh(out)
    return out


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def everything_below(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_mesh_directory_is_private_and_complete(tmp_path):
    cluster = create_mesh(tmp_path / "deep" / "mesh")
    files = {file.name: mode(file) for file in (tmp_path / "deep" / "mesh").iterdir()}
    assert mode(tmp_path / "deep" / "mesh") == 0o700
    assert files == dict.fromkeys(["mesh.json", "ca-key.pem", "ca-cert.pem", "keyring.json", "enrolments.json"], 0o600)
    assert json.loads((tmp_path / "deep" / "mesh" / "mesh.json").read_text())["cluster"] == cluster
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["mesh"]


def test_an_empty_directory_may_become_a_mesh_directory(tmp_path):
    create_mesh(tmp_path)
    assert (tmp_path / "ca-key.pem").exists()


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_mesh_is_never_created_over_something(tmp_path, what):
    out = tmp_path / "mesh"
    if what == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        create_mesh(out)
    assert list(everything_below(tmp_path).values()) == [b"mine"]


def test_a_failure_in_the_middle_leaves_no_mesh_directory(tmp_path, monkeypatch):
    written = []

    def full_disk(path: Path, data: bytes) -> None:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.write_bytes(data)

    monkeypatch.setattr(durable_files, "write_new", full_disk)
    with pytest.raises(ConfigError, match="No space left on device"):
        create_mesh(tmp_path / "mesh")
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []


def test_an_enrolment_proves_its_holder_in_both_forms(mesh_dir, tmp_path):
    enrolment = enroll(mesh_dir, node_id="node-a", out=tmp_path / "a.json")
    assert read_enrolment(tmp_path / "a.json") == enrolment
    assert mode(tmp_path / "a.json") == 0o600
    identity = enrolment.identity()
    Authority(identity.ca_public_key).check(identity.certificate)
    verify(identity.certificate, b"test", b"data", identity.sign(b"test", b"data"))
    assert identity.node_id == "node-a"
    assert enrolment.ring().primary.secret
    leaf = x509.load_pem_x509_certificate(enrolment.tls_certificate_pem.encode())
    assert leaf.not_valid_before_utc.year == 1970
    assert leaf.not_valid_after_utc.year == 9999
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"relaymesh:{enrolment.cluster.hex()}/node/node-a/{enrolment.enrolment}"]


def test_certificates_hold_under_the_strictest_x509_rules(mesh_dir, tmp_path):
    enrolment = enroll(mesh_dir, node_id="strict", out=tmp_path / "s.json")
    contexts = make_contexts(enrolment.tls_material)
    for context in (contexts.client, contexts.server):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    client_in, client_out, server_in, server_out = (ssl.MemoryBIO() for _ in range(4))
    client = contexts.client.wrap_bio(client_in, client_out)
    server = contexts.server.wrap_bio(server_in, server_out, server_side=True)
    done = {client: False, server: False}
    for _ in range(4):
        for end in (client, server):
            try:
                end.do_handshake()
                done[end] = True
            except ssl.SSLWantReadError:
                pass
            server_in.write(client_out.read())
            client_in.write(server_out.read())
    assert all(done.values())
    assert client.version() == "TLSv1.3"


def test_each_name_counts_its_own_enrolments(mesh_dir, tmp_path):
    numbers = [
        enroll(mesh_dir, node_id="n1", out=tmp_path / "1").enrolment,
        enroll(mesh_dir, node_id="n1", out=tmp_path / "2").enrolment,
        enroll(mesh_dir, node_id="n2", out=tmp_path / "3").enrolment,
        enroll(mesh_dir, operator="n1", out=tmp_path / "4").enrolment,
    ]
    assert numbers == [1, 2, 1, 1]


def test_enrolments_at_the_same_time_never_share_a_number(mesh_dir, tmp_path):
    numbers = []

    def one(number: int) -> None:
        numbers.append(enroll(mesh_dir, node_id="busy", out=tmp_path / f"{number}.json").enrolment)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 9))


def test_an_operator_may_have_a_human_name(mesh_dir, tmp_path):
    enroll(mesh_dir, operator="Zoë Müller/ops %", out=tmp_path / "z.json")
    assert read_enrolment(tmp_path / "z.json").name == "Zoë Müller/ops %"
    make_contexts(read_enrolment(tmp_path / "z.json").tls_material)


def test_enrolling_never_overwrites_and_then_takes_no_number(mesh_dir, tmp_path):
    out = tmp_path / "a.json"
    out.write_text("mine")
    before = everything_below(mesh_dir)
    with pytest.raises(ConfigError, match="exists"):
        enroll(mesh_dir, node_id="node-a", out=out)
    assert out.read_text() == "mine"
    assert everything_below(mesh_dir) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"node_id": "-bad-"}, "node id"),
        ({"node_id": ""}, "node id"),
        ({"node_id": "x" * 33}, "node id"),
        ({"operator": ""}, "operator's name"),
        ({"operator": "x" * 65}, "operator's name"),
        ({"operator": "a\nb"}, "operator's name"),
        ({"operator": "\udcff"}, "operator's name"),
        ({}, "either --node-id or --operator"),
        ({"node_id": "a", "operator": "b"}, "either --node-id or --operator"),
    ],
)
def test_an_unusable_name_writes_nothing(mesh_dir, tmp_path, arguments, says):
    before = everything_below(mesh_dir)
    with pytest.raises(ConfigError, match=says):
        enroll(mesh_dir, out=tmp_path / "out.json", **arguments)
    assert list(tmp_path.iterdir()) == []
    assert everything_below(mesh_dir) == before


def test_enrolling_from_a_place_that_is_no_mesh_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="relaymesh mesh create"):
        enroll(tmp_path, node_id="a", out=tmp_path / "out.json")


@pytest.mark.parametrize("name", ["mesh.json", "ca-key.pem", "ca-cert.pem", "keyring.json", "enrolments.json"])
def test_a_damaged_mesh_directory_enrolls_nobody(tmp_path, name):
    create_mesh(tmp_path / "mesh")
    (tmp_path / "mesh" / name).write_text("{}")
    with pytest.raises(ConfigError, match=name):
        enroll(tmp_path / "mesh", node_id="a", out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_mesh_file_beside_the_key_of_another_mesh_enrolls_nobody(mesh_dir, tmp_path):
    create_mesh(tmp_path / "mesh")
    (tmp_path / "mesh" / "mesh.json").write_bytes((mesh_dir / "mesh.json").read_bytes())
    with pytest.raises(ConfigError, match="different meshes"):
        enroll(tmp_path / "mesh", node_id="a", out=tmp_path / "out.json")


@pytest.fixture(scope="module")
def enrolment_bytes(mesh_dir, tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("enrolment") / "node-f.json"
    enroll(mesh_dir, node_id="node-f", out=out)
    return out.read_bytes()


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_altered_enrolment_is_refused_in_one_line(enrolment_bytes, tmp_path, data):
    position = data.draw(st.integers(0, len(enrolment_bytes) - 1))
    altered = bytearray(enrolment_bytes)
    altered[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte != altered[position]))
    path = tmp_path / "altered.json"
    path.touch(mode=0o600)
    path.write_bytes(altered)
    if altered_content(enrolment_bytes, bytes(altered)):
        with pytest.raises(ConfigError) as caught:
            read_enrolment(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    else:
        assert read_enrolment(path).name == "node-f"


def altered_content(before: bytes, after: bytes) -> bool:
    """Whether two files differ in more than the white space between values, which says nothing."""
    try:
        return json.loads(before) != json.loads(after)
    except ValueError:
        return True


@given(st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_with_a_config_error(tmp_path, data):
    path = tmp_path / "noise.json"
    path.touch(mode=0o600)
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        read_enrolment(path)


def edited(data: bytes, changes: dict[str, object]) -> bytes:
    """A file whose checksum is right again, as somebody would make it who means harm."""
    file = msgspec.json.decode(data, type=identity_files._EnrolmentFile)
    file = msgspec.structs.replace(file, **changes)
    return msgspec.json.encode(msgspec.structs.replace(file, checksum=identity_files._checksum(file)))


@pytest.mark.parametrize(
    "field", ["certificate", "private_key", "tls_certificate", "ca_certificate", "cluster", "name", "enrolment", "role"]
)
def test_parts_of_two_enrolments_never_make_a_third(mesh_dir, other_mesh_dir, tmp_path, enrolment_bytes, field):
    directory = other_mesh_dir if field in ("ca_certificate", "cluster") else mesh_dir
    person = {"operator": "node-f"} if field == "role" else {"node_id": "node-g" if field == "name" else "node-f"}
    enroll(directory, out=tmp_path / "other.json", **person)
    other = msgspec.json.decode((tmp_path / "other.json").read_bytes(), type=identity_files._EnrolmentFile)
    mixed = tmp_path / "mixed.json"
    mixed.touch(mode=0o600)
    mixed.write_bytes(edited(enrolment_bytes, {field: getattr(other, field)}))
    assert edited(enrolment_bytes, {field: getattr(other, field)}) != edited(enrolment_bytes, {})
    with pytest.raises(ConfigError, match="does not hold"):
        read_enrolment(mixed)


def test_a_certificate_of_another_authority_is_refused(tmp_path, enrolment_bytes):
    file = msgspec.json.decode(enrolment_bytes, type=identity_files._EnrolmentFile)
    certificate = msgspec.msgpack.decode(file.certificate, type=Certificate)
    forged = issue(
        Ed25519PrivateKey.generate(),
        cluster=certificate.cluster,
        role=certificate.role,
        name=certificate.name,
        enrolment=certificate.enrolment,
        public_key=certificate.public_key,
    )
    path = tmp_path / "forged.json"
    path.touch(mode=0o600)
    path.write_bytes(edited(enrolment_bytes, {"certificate": msgspec.msgpack.encode(forged)}))
    with pytest.raises(ConfigError, match="forged"):
        read_enrolment(path)


def test_a_changed_ring_key_is_noticed(tmp_path, enrolment_bytes):
    content = json.loads(enrolment_bytes)
    content["keys"][0]["secret"] = base64.b64encode(bytes(32)).decode()
    path = tmp_path / "altered.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="altered or damaged"):
        read_enrolment(path)


def test_an_enrolment_without_a_primary_key_is_refused(tmp_path, enrolment_bytes):
    path = tmp_path / "keyless.json"
    path.touch(mode=0o600)
    path.write_bytes(edited(enrolment_bytes, {"keys": ()}))
    with pytest.raises(ConfigError, match="primary"):
        read_enrolment(path)


@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o666])
def test_an_enrolment_that_others_may_read_is_refused(tmp_path, enrolment_bytes, open_mode):
    path = tmp_path / "open.json"
    path.write_bytes(enrolment_bytes)
    path.chmod(open_mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_enrolment(path)


def test_a_file_at_the_size_limit_is_read_and_one_past_it_is_not(tmp_path, enrolment_bytes):
    path = tmp_path / "large.json"
    path.touch(mode=0o600)
    path.write_bytes(enrolment_bytes + b" " * (FILE_BYTES_MAX - len(enrolment_bytes)))
    assert read_enrolment(path).name == "node-f"
    path.write_bytes(enrolment_bytes + b" " * (FILE_BYTES_MAX - len(enrolment_bytes) + 1))
    with pytest.raises(ConfigError, match="larger"):
        read_enrolment(path)


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_enrolment(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_enrolment(tmp_path)


def test_secrets_are_in_no_repr(mesh_dir, tmp_path):
    enrolment = enroll(mesh_dir, node_id="shy", out=tmp_path / "shy.json")
    shown = repr(enrolment) + repr(enrolment.tls_material) + repr(enrolment.identity())
    assert "PRIVATE" not in shown
    assert repr(enrolment.ring().primary.secret) not in shown


def test_installing_twice_is_one_installation(mesh_dir, tmp_path):
    enroll(mesh_dir, node_id="node-i", out=tmp_path / "i.json")
    first = install(tmp_path / "root", tmp_path / "i.json")
    stamp = (tmp_path / "root" / IDENTITY_FILE).stat()
    assert install(tmp_path / "root", tmp_path / "i.json") == first == load(tmp_path / "root")
    again = (tmp_path / "root" / IDENTITY_FILE).stat()
    assert (again.st_ino, again.st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    assert mode(tmp_path / "root") == 0o700
    assert mode(tmp_path / "root" / IDENTITY_FILE) == 0o600


def test_a_later_enrolment_replaces_an_earlier_one_and_not_the_other_way(mesh_dir, tmp_path):
    enroll(mesh_dir, node_id="node-r", out=tmp_path / "1.json")
    enroll(mesh_dir, node_id="node-r", out=tmp_path / "2.json")
    install(tmp_path / "root", tmp_path / "1.json")
    install(tmp_path / "root", tmp_path / "2.json")
    before = everything_below(tmp_path / "root")
    with pytest.raises(ConflictError, match=r"enrolment 2, of mesh .*; .*enrolment 1, of mesh"):
        install(tmp_path / "root", tmp_path / "1.json")
    assert everything_below(tmp_path / "root") == before


@pytest.mark.parametrize("foreign", ["mesh", "node"])
def test_a_root_belongs_to_one_node_of_one_mesh(mesh_dir, other_mesh_dir, tmp_path, foreign):
    enroll(mesh_dir, node_id="node-o", out=tmp_path / "1.json")
    if foreign == "mesh":
        enroll(other_mesh_dir, node_id="node-o", out=tmp_path / "2.json")
    else:
        enroll(mesh_dir, node_id="node-p", out=tmp_path / "2.json")
    install(tmp_path / "root", tmp_path / "1.json")
    before = everything_below(tmp_path / "root")
    with pytest.raises(ConflictError, match="another --root"):
        install(tmp_path / "root", tmp_path / "2.json")
    assert everything_below(tmp_path / "root") == before


def test_a_restored_mesh_directory_cannot_give_one_number_to_two_keys(tmp_path):
    create_mesh(tmp_path / "mesh")
    numbers = (tmp_path / "mesh" / "enrolments.json").read_bytes()
    enroll(tmp_path / "mesh", node_id="a", out=tmp_path / "1.json")
    (tmp_path / "mesh" / "enrolments.json").write_bytes(numbers)
    enroll(tmp_path / "mesh", node_id="a", out=tmp_path / "2.json")
    install(tmp_path / "root", tmp_path / "1.json")
    with pytest.raises(ConflictError, match="restored"):
        install(tmp_path / "root", tmp_path / "2.json")


def test_an_operators_file_makes_no_node(mesh_dir, tmp_path):
    enroll(mesh_dir, operator="ann", out=tmp_path / "ann.json")
    with pytest.raises(ConfigError, match="--node-id"):
        install(tmp_path / "root", tmp_path / "ann.json")
    assert not (tmp_path / "root").exists()


def test_founding_is_done_once(tmp_path):
    first = found(tmp_path / "root", "node-a")
    assert found(tmp_path / "root", "node-a") == first == load(tmp_path / "root")
    with pytest.raises(ConflictError, match="--node-id node-a"):
        found(tmp_path / "root", "node-b")
    guest = enroll(tmp_path / "root" / "mesh", node_id="node-b", out=tmp_path / "b.json")
    assert guest.cluster == first.cluster


def test_founding_goes_on_where_a_crash_ended_it(tmp_path):
    (tmp_path / "root").mkdir()
    cluster = create_mesh(tmp_path / "root" / "mesh")
    assert found(tmp_path / "root", "node-a").cluster.hex() == cluster


def test_a_node_without_identity_has_none(tmp_path):
    assert load(tmp_path) is None
    assert load(tmp_path / "absent") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_root_is_named(tmp_path):
    (tmp_path / "root").mkdir(mode=0o000)
    with pytest.raises(ConfigError, match="Permission denied"):
        load(tmp_path / "root")


def test_a_root_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Not a directory"):
        load(tmp_path / "file" / "root")
    with pytest.raises(ConfigError, match="Not a directory"):
        found(tmp_path / "file" / "root", "node-a")

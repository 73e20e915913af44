"""Revocation files are read in every form of theirs, whole or not at all."""

from __future__ import annotations

import pytest

from mesh.errors import ConfigError
from mesh.revocations import RevokedEnrolment
from node.identity_files import IssuedCertificate, create_mesh, enroll, opened_mesh
from node.small_files import FILE_BYTES_MAX
from node.trust_files import CertificateNames, certificate_names, enrolments_of, read_revocation_file, template
from node.x509_certificates import names_of

A, B = "ab" * 32, "cd" * 32
WANTED = CertificateNames(("1a2b", "3c"), (A, B))
LINES = f"# gone\nserial:0x1A2B\n3c # stolen\n\nsha256:{A}\nSHA256Fingerprint:{':'.join([B[:2]] * 32)}\n{A.upper()}\n"
JSON = f'{{"serialNumbers": ["1A:2B", "3c"], "sha256Fingerprints": ["{A}", "{B}"]}}'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", [LINES, JSON], ids=["lines", "json"])
def test_both_forms_read_alike_in_every_encoding(tmp_path, text, encoding):
    (tmp_path / "f").write_bytes(text.encode(encoding))
    assert read_revocation_file(tmp_path / "f") == WANTED


def test_a_template_reads_back():
    assert template(certificate_names(["1A2B"], [A])).decode().splitlines()[2:] == ["serial:1a2b", f"sha256:{A}"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"serial:1a\nserial:zz\n", "line 2: 'zz' is no serial number"),
        (b"sha256:abcd\n", "line 1: 'abcd' is no SHA-256 fingerprint"),
        (b"hello world\n", "line 1: 'hello world' is no serial number"),
        (b'{"serialNumbers": ["zz"]}', "is no revocation file: 'zz'"),
        (b'{"serials": []}', "is no revocation file"),
        (b'{"serialNumbers": ', "is no revocation file"),
        (b"\xff\xff\xff", "neither UTF-8 nor UTF-16"),
        (bytes(FILE_BYTES_MAX + 1), "larger than"),
    ],
)
def test_a_file_with_one_bad_entry_is_refused_in_one_line(tmp_path, text, complaint):
    (tmp_path / "f").write_bytes(text)
    with pytest.raises(ConfigError, match=complaint) as refused:
        read_revocation_file(tmp_path / "f")
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_revocation_file(tmp_path / "none")


def test_a_certificate_leads_to_its_enrolment_by_number_and_by_fingerprint(tmp_path):
    create_mesh(tmp_path / "mesh")
    first = enroll(tmp_path / "mesh", node_id="node-a", out=tmp_path / "1")
    second = enroll(tmp_path / "mesh", node_id="node-a", out=tmp_path / "2")
    with opened_mesh(tmp_path / "mesh") as opened:
        issued = opened.issued
    (serial, _), (_, fingerprint) = names_of(first.tls_certificate_pem), names_of(second.tls_certificate_pem)
    assert enrolments_of(certificate_names([serial], []), issued) == [RevokedEnrolment("node", "node-a", 1)]
    assert enrolments_of(certificate_names([], [fingerprint]), issued) == [RevokedEnrolment("node", "node-a", 2)]
    assert enrolments_of(certificate_names(["1"], [A]), [*issued, IssuedCertificate("node", "b", 1, "2", B)]) == []

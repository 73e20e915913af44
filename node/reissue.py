"""Certificates of a new CA for all who are enrolled: made in the mesh directory, without a visit to any host.

Promise: only what this directory enrolled is issued anew, for the key that it enrolled. The directory keeps these keys
since releases that can rotate the CA; for an older enrolment the certificate that a node shows is taken, if a trusted
CA signed it and its name and number are the directory's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.authorities import Authorities, Reissued
from mesh.errors import RecordError
from mesh.identity import Authority, Certificate, Content, content_of, issue
from node import x509_certificates
from node.identity_files import IssuedCertificate, MeshDirectory, authority_of
from node.streams.tls import san_uri


@dataclass(frozen=True, slots=True)
class Reissue:
    """What the next list of CAs carries, and who has no part in it."""

    reissued: list[Reissued]
    issued: list[IssuedCertificate]
    """The X.509 certificates that are new, for the directory's notes."""
    uncovered: list[str]
    """Whose latest enrolment has a key that nobody knows: `node NAME` or `operator NAME`."""


def reissue(
    directory: MeshDirectory,
    current: Authorities,
    shown: Iterable[bytes],
    *,
    ca_key: Ed25519PrivateKey,
    ca_pem: str,
) -> Reissue:
    """Everybody's certificate by the CA with this key; what it has issued before stays as it is.

    `current` is the list of CAs that the mesh follows, and `shown` the certificates of the members that a node knows.
    """
    contents = _enrolled(directory, current, shown)
    by_this_ca = Authority(directory.authority.ca_public_key)
    by_this_ca.trust([ca_key.public_key().public_bytes_raw()], ())
    kept = {content_of(each.certificate): each for each in current.reissued if _holds(by_this_ca, each.certificate)}
    made: list[Reissued] = []
    issued: list[IssuedCertificate] = []
    for content in contents:
        if content in kept:
            made.append(kept[content])
            continue
        new, noted = _issue(content, directory.authority.cluster, ca_key, ca_pem)
        made.append(new)
        issued += noted
    covered = {content[:3] for content in contents}
    uncovered = [
        f"{role} {name}"
        for (role, name), number in directory.numbers.items()
        if (role, name, number) not in covered and directory.revocations.refusal(role, name, number) is None
    ]
    return Reissue(made, issued, sorted(uncovered))


def _enrolled(directory: MeshDirectory, current: Authorities, shown: Iterable[bytes]) -> list[Content]:
    """What this directory has certified and not revoked, as far as the keys are known; sorted."""
    authority = authority_of(current)
    keys: dict[tuple[str, str, int], bytes] = {
        (each.role, each.name, each.enrolment): each.public_key
        for each in directory.issued
        if each.public_key and each.enrolment == directory.numbers.get((each.role, each.name))
    }
    in_use = _readable(shown)
    for certificate in (*in_use, *(each.certificate for each in current.reissued)):
        role, name, number, public_key = content_of(certificate)
        latest = directory.numbers.get((role, name), 0)
        if (number == latest or (number < latest and certificate in in_use)) and _holds(authority, certificate):
            keys.setdefault((role, name, number), public_key)  # the directory's own note goes before
    return sorted(
        (role, name, number, public_key)
        for (role, name, number), public_key in keys.items()
        if directory.revocations.refusal(role, name, number) is None
    )


def _issue(
    content: Content, cluster: bytes, ca_key: Ed25519PrivateKey, ca_pem: str
) -> tuple[Reissued, list[IssuedCertificate]]:
    role, name, number, public_key = content
    certificate = issue(ca_key, cluster=cluster, role=role, name=name, enrolment=number, public_key=public_key)
    if role != "node":
        return Reissued(certificate), []
    uri = san_uri(cluster, role, name, number)
    key = Ed25519PublicKey.from_public_bytes(public_key)
    pem = x509_certificates.make_leaf(ca_key, ca_pem, public_key=key, name=name, uri=uri)
    noted = IssuedCertificate("node", name, number, *x509_certificates.names_of(pem), public_key)
    return Reissued(certificate, x509_certificates.der_of(pem)), [noted]


def _readable(shown: Iterable[bytes]) -> list[Certificate]:
    found = []
    for data in shown:
        try:
            found.append(msgspec.msgpack.decode(data, type=Certificate))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # of another release: whoever it is will be named as not covered
    return found


def _holds(authority: Authority, certificate: Certificate) -> bool:
    try:
        authority.check(certificate)
    except RecordError:
        return False
    return True

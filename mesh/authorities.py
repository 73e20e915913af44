"""Which CAs a mesh trusts: its CA is rotated by add, promote and retire, and one statement carries the result.

Promises: a list that `open_authorities` returned was signed by the CA that it names as SIGNING, and that CA is trusted
by the list before, or reached from one that is by endorsements, each made by a CA's key for the next. So a node that
was away through several rotations follows them from the CA that it knows. A CA that is RETIRED stays so, and what it
signs from then on, statement, certificate or endorsement, is worth nothing to whoever knows of it.

    add       a new CA, INSTALLED: what it signed is believed
    promote   SIGNING: it alone signs from now on, and has issued everybody's certificate anew; the former is INSTALLED
    retire    RETIRED: believed no more

The list carries the re-issued certificates, so that no host has to be visited: a certificate is public, and the private
key that it goes with stays where it is. Their X.509 forms, like those of the CAs, are opaque bytes here.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.ca_statements import STATEMENT_BYTES_MAX, Statement, open_statement_of, sign_statement, unproven_statement
from mesh.errors import ConfigError, ConflictError, LimitError, NotFoundError, RecordError
from mesh.identity import (
    Bytes32,
    Certificate,
    cluster_id,
    content_of,
    sign_as_ca,
    signed_as_ca,
)

KIND = "authorities"
CAS_MAX = 32
"""Of all rotations together: retired ones stay listed, because a host that was away may know no other."""
X509_BYTES_MAX = 2_048

_ENDORSEMENT_DOMAIN = b"relaymesh ca endorsement"
_NAME = re.compile(r"[0-9a-f]{8}")

_X509 = Annotated[bytes, msgspec.Meta(max_length=X509_BYTES_MAX)]


class CaState(enum.StrEnum):
    """What a CA is to the mesh."""

    INSTALLED = "installed"
    SIGNING = "signing"
    RETIRED = "retired"


class CertificateAuthority(msgspec.Struct, frozen=True, array_like=True):
    """One CA of the mesh."""

    public_key: Bytes32
    state: CaState
    endorser: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    """Key of the CA that signed when this one was added; empty for the first CA, whose key names the mesh."""
    endorsement: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
    root: _X509 = b""
    """Its self-signed X.509 certificate (DER); empty where streams are simulated."""
    cross: _X509 = b""
    """Its X.509 certificate by the endorser, by which whoever knows only that one verifies its leafs."""

    @property
    def name(self) -> str:
        """How people name it."""
        return ca_name(self.public_key)


class Reissued(msgspec.Struct, frozen=True, array_like=True):
    """One certificate that the signing CA has issued anew, for the same enrolment and key."""

    certificate: Certificate
    leaf: _X509 = b""
    """The same as X.509 (DER); empty for operators, who keep their files, and where streams are simulated."""


class _Wire(msgspec.Struct, frozen=True, array_like=True):
    cas: Annotated[list[CertificateAuthority], msgspec.Meta(min_length=1, max_length=CAS_MAX)]
    reissued: list[Reissued]


_decoder = msgspec.msgpack.Decoder(_Wire)


@dataclass(frozen=True, slots=True)
class Authorities:
    """One list, oldest CA first. Number 0 is what a mesh begins with: one CA, and nothing said about it."""

    number: int
    cas: tuple[CertificateAuthority, ...]
    reissued: tuple[Reissued, ...] = ()

    @property
    def signing(self) -> CertificateAuthority:
        """The CA that issues certificates and signs statements."""
        return next(ca for ca in self.cas if ca.state is CaState.SIGNING)

    @property
    def trusted(self) -> tuple[bytes, ...]:
        """Keys of the CAs that are believed, the signing one first: most was signed by it."""
        others = (ca.public_key for ca in self.cas if ca.state is CaState.INSTALLED)
        return (self.signing.public_key, *others)

    @property
    def retired(self) -> frozenset[bytes]:
        """Keys of the CAs that are believed no more."""
        return frozenset(ca.public_key for ca in self.cas if ca.state is CaState.RETIRED)

    def get(self, name: str) -> CertificateAuthority:
        """The CA that people call so. NotFoundError when there is none."""
        for ca in self.cas:
            if ca.name == name:
                return ca
        known = ", ".join(ca.name for ca in self.cas)
        raise NotFoundError(f"there is no CA {name}; the mesh has {known}")

    def reissued_for(self, certificate: Certificate) -> Reissued | None:
        """What the signing CA has issued in the place of this certificate."""
        wanted = content_of(certificate)
        return next((each for each in self.reissued if content_of(each.certificate) == wanted), None)

    def line_of_signing(self) -> list[CertificateAuthority]:
        """The signing CA and its endorsers, back to the first: the chain that a leaf is sent with."""
        by_key = {ca.public_key: ca for ca in self.cas}
        line = [self.signing]
        while (endorser := by_key.get(line[-1].endorser)) is not None and endorser not in line:
            line.append(endorser)
        return line


def first_authorities(public_key: bytes, root: bytes = b"") -> Authorities:
    """What every mesh begins with."""
    return Authorities(0, (CertificateAuthority(public_key, CaState.SIGNING, root=root),))


def add(
    authorities: Authorities, ca_key: Ed25519PrivateKey, public_key: bytes, *, root: bytes = b"", cross: bytes = b""
) -> Authorities:
    """The list with one more CA, INSTALLED. `ca_key` is the key of the signing CA, which endorses it."""
    signing = authorities.signing
    assert ca_key.public_key().public_bytes_raw() == signing.public_key
    if len(authorities.cas) >= CAS_MAX:
        raise LimitError(f"the mesh has had {CAS_MAX} CAs, which is as many as one can have: make a new mesh")
    endorsement = sign_as_ca(ca_key, _ENDORSEMENT_DOMAIN, _endorsed(authorities.cas[0].public_key, public_key))
    made = CertificateAuthority(public_key, CaState.INSTALLED, signing.public_key, endorsement, root, cross)
    return replace(authorities, number=authorities.number + 1, cas=(*authorities.cas, made))


def promote(authorities: Authorities, name: str, reissued: Sequence[Reissued]) -> Authorities:
    """The list whose SIGNING CA is this one, and what it has issued anew. ConflictError when it cannot be that one."""
    chosen = authorities.get(name)
    if chosen.state is CaState.SIGNING:
        raise ConflictError(f"CA {name} is the signing CA already")
    if chosen.state is CaState.RETIRED:
        raise ConflictError(f"CA {name} is retired, which is for good: add a new one")
    states = {authorities.signing.public_key: CaState.INSTALLED, chosen.public_key: CaState.SIGNING}
    return Authorities(authorities.number + 1, _with_states(authorities, states), tuple(reissued))


def retire(authorities: Authorities, name: str, reissued: Sequence[Reissued]) -> Authorities:
    """The list in which this CA is RETIRED. ConflictError for the signing one, and for one that is retired already."""
    chosen = authorities.get(name)
    if chosen.state is CaState.SIGNING:
        raise ConflictError(f"CA {name} is the one that signs: promote another one first")
    if chosen.state is CaState.RETIRED:
        raise ConflictError(f"CA {name} is retired already")
    states = {chosen.public_key: CaState.RETIRED}
    return Authorities(authorities.number + 1, _with_states(authorities, states), tuple(reissued))


def only_added(before: Authorities, after: Authorities) -> bool:
    """True when nobody who still has the list `before` can miss anything: each CA is there, in the same state."""
    states = {ca.public_key: ca.state for ca in after.cas}
    return all(states.get(ca.public_key) is ca.state for ca in before.cas)


def ca_name(public_key: bytes) -> str:
    """How people name a CA: eight hex digits."""
    return hashlib.blake2b(public_key, digest_size=4, person=b"relaymesh-ca").hexdigest()


def parse_ca_name(text: str) -> str:
    """A CA's name; ConfigError when it is none."""
    if not _NAME.fullmatch(text):
        raise ConfigError(f"{text[:40]!r} names no CA: give the eight characters that `mesh ca list` shows")
    return text


def sign_authorities(signing_key: Ed25519PrivateKey, cluster: bytes, authorities: Authorities) -> bytes:
    """The statement of this list, by its signing CA. LimitError when it holds more certificates than one can carry."""
    assert signing_key.public_key().public_bytes_raw() == authorities.signing.public_key
    content = msgspec.msgpack.encode(_Wire(list(authorities.cas), list(authorities.reissued)))
    said = sign_statement(signing_key, cluster=cluster, kind=KIND, number=authorities.number, content=content)
    if len(said) > STATEMENT_BYTES_MAX:
        raise LimitError(
            f"{len(authorities.reissued)} certificates do not fit a statement of {STATEMENT_BYTES_MAX} bytes: "
            "`mesh revoke` the names that are gone for good"
        )
    return said


def open_authorities(current: Authorities, cluster: bytes, raw: bytes) -> tuple[Authorities, Statement]:
    """The list in a statement that whoever follows `current` may believe; RecordError when it does not hold."""
    wire = _decoded(unproven_statement(cluster, raw, KIND))
    _check_list(current, wire.cas)
    signing = next(ca.public_key for ca in wire.cas if ca.state is CaState.SIGNING)
    if signing not in _reached(current, wire.cas):
        raise RecordError(f"the CA statement is of CA {ca_name(signing)}, which no CA that is trusted here endorsed")
    statement = open_statement_of(signing, cluster, raw, KIND)
    return Authorities(statement.number, tuple(wire.cas), tuple(wire.reissued)), statement


def open_enrolled(cluster: bytes, raw: bytes) -> tuple[Authorities, Statement]:
    """The list in a statement that came with an enrolment: of the mesh only its name is known, the first CA's hash."""
    first = _decoded(unproven_statement(cluster, raw, KIND)).cas[0].public_key
    if cluster_id(first) != cluster:
        raise RecordError("the CA statement is of another mesh: its first CA does not name this one")
    return open_authorities(first_authorities(first), cluster, raw)


def _decoded(statement: Statement) -> _Wire:
    try:
        return _decoder.decode(statement.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RecordError("the CA's statement holds no usable list of CAs") from None


def _check_list(current: Authorities, cas: Sequence[CertificateAuthority]) -> None:
    if cas[0].public_key != current.cas[0].public_key:
        raise RecordError("the CA statement is of another mesh: its first CA is not ours")
    if len({ca.public_key for ca in cas}) != len(cas) or sum(ca.state is CaState.SIGNING for ca in cas) != 1:
        raise RecordError("the CA's statement names a CA twice, or not one CA that signs")
    for ca in cas:
        if ca.public_key in current.retired and ca.state is not CaState.RETIRED:
            raise RecordError(f"the CA's statement takes back CA {ca.name}, which is retired here")


def _reached(current: Authorities, cas: Iterable[CertificateAuthority]) -> set[bytes]:
    """Keys of the listed CAs that are trusted now, or endorsed by such a one. Endorsers come first in the list."""
    mesh = current.cas[0].public_key
    reached: set[bytes] = set()
    for ca in cas:
        if ca.public_key in current.trusted or (
            ca.public_key not in current.retired
            and ca.endorser in reached
            and signed_as_ca(ca.endorser, _ENDORSEMENT_DOMAIN, _endorsed(mesh, ca.public_key), ca.endorsement)
        ):
            reached.add(ca.public_key)
    return reached


def _with_states(authorities: Authorities, states: dict[bytes, CaState]) -> tuple[CertificateAuthority, ...]:
    return tuple(msgspec.structs.replace(ca, state=states.get(ca.public_key, ca.state)) for ca in authorities.cas)


def _endorsed(first_ca: bytes, public_key: bytes) -> bytes:
    # The first CA names the mesh: an endorsement cannot be moved to another one.
    return first_ca + public_key

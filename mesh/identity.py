"""Who is who: certificates of the mesh's own authority, and signatures that cannot be moved to another purpose.

Promises: a `Certificate` that `Authority.check` accepted was issued by the holder of the mesh's CA key for exactly this
mesh, role, name and enrolment. A signature made for one domain never verifies for another. There is no expiry here:
hosts without a clock chip must be able to join, so trust ends by revocation and by a higher enrolment, never by time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.errors import ConfigError, RecordError
from mesh.ids import ENROLMENT_MAX, NodeId, parse_node_id

CLUSTER_BYTES = 8
ROLES = ("node", "operator")
NAME_CHARS_MAX = 64  # operators are people; node names are stricter, see mesh/ids.py
CERTIFICATES_CACHED_MAX = 4_096  # twice the member table: a verification costs 0.2 ms, a cache hit nothing

_CERTIFICATE_DOMAIN = b"relaymesh certificate"

Bytes8 = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Bytes64 = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Certificate(msgspec.Struct, frozen=True, array_like=True):
    """The CA's word that this public key speaks for this name. Worth nothing until `Authority.check` accepted it."""

    cluster: Bytes8
    role: Annotated[str, msgspec.Meta(max_length=8)]
    """`node` or `operator`."""
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    enrolment: Annotated[int, msgspec.Meta(ge=1, le=ENROLMENT_MAX)]
    """Counts the enrolments of this name; the highest one is the valid one."""
    public_key: Bytes32
    signature: Bytes64


def cluster_id(ca_public_key: bytes) -> bytes:
    """The eight bytes that name a mesh: a hash of its CA key, so two meshes can never be merged by a setting."""
    return hashlib.blake2b(ca_public_key, digest_size=CLUSTER_BYTES, person=b"relaymesh-mesh").digest()


def issue(
    ca_key: Ed25519PrivateKey, *, cluster: bytes, role: str, name: str, enrolment: int, public_key: bytes
) -> Certificate:
    """Sign a certificate. ConfigError when the role or the name cannot be used."""
    if role not in ROLES:
        raise ConfigError(f"role {role!r} is not one of {', '.join(ROLES)}")
    if role == "node":
        parse_node_id(name)
    elif not 0 < len(name) <= NAME_CHARS_MAX:
        raise ConfigError(f"an operator's name has 1 to {NAME_CHARS_MAX} characters")
    signature = ca_key.sign(_framed(_CERTIFICATE_DOMAIN, _certified(cluster, role, name, enrolment, public_key)))
    return Certificate(cluster, role, name, enrolment, public_key, signature)


def sign_as_ca(ca_key: Ed25519PrivateKey, domain: bytes, data: bytes) -> bytes:
    """Sixty-four bytes that `Authority.check_statement` accepts for the same domain and data."""
    assert domain != _CERTIFICATE_DOMAIN, "certificates are made by `issue`"
    return ca_key.sign(_framed(domain, data))


def verify(cert: Certificate, domain: bytes, data: bytes, signature: bytes) -> None:
    """Raise RecordError unless the certificate's key signed `data` for `domain`. Does not check the certificate."""
    _verify_key(cert.public_key, domain, data, signature, f"signature of {cert.name!r} does not hold")


def _nobody_revoked(role: str, name: str, enrolment: int) -> str | None:
    return None


class Authority:
    """Checks certificates against one CA key, remembering those that held."""

    def __init__(self, ca_public_key: bytes) -> None:
        self.ca_public_key = ca_public_key
        self.cluster = cluster_id(ca_public_key)
        # A dict as a set, because its order is the order of insertion: eviction must not depend on hash order.
        self._verified: dict[Certificate, None] = {}
        self.refusal: Callable[[str, str, int], str | None] = _nobody_revoked
        """Why the enrolment (role, name, number) is trusted no more; None while it is."""

    def check(self, cert: Certificate) -> None:
        """Raise RecordError unless our CA issued this certificate for this mesh, and has not revoked it."""
        self.check_standing(cert)
        if cert in self._verified:
            return
        if cert.cluster != self.cluster:
            raise RecordError(f"certificate of {cert.name!r} belongs to another mesh")
        if cert.role not in ROLES:
            raise RecordError(f"certificate of {cert.name!r} has an unknown role")
        if cert.role == "node":
            _check_node_name(cert.name)
        data = _certified(cert.cluster, cert.role, cert.name, cert.enrolment, cert.public_key)
        _verify_key(
            self.ca_public_key, _CERTIFICATE_DOMAIN, data, cert.signature, f"certificate of {cert.name!r} is forged"
        )
        if len(self._verified) >= CERTIFICATES_CACHED_MAX:
            del self._verified[next(iter(self._verified))]
        self._verified[cert] = None

    def check_standing(self, cert: Certificate) -> None:
        """Raise RecordError when this certificate, checked before, has been revoked since."""
        refusal = self.refusal(cert.role, cert.name, cert.enrolment)
        if refusal is not None:
            raise RecordError(refusal)

    def check_statement(self, domain: bytes, data: bytes, signature: bytes) -> None:
        """Raise RecordError unless the CA itself signed `data` for `domain`."""
        _verify_key(self.ca_public_key, domain, data, signature, "a CA statement is forged or damaged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """This process's own certificate and the key that goes with it."""

    certificate: Certificate
    private_key: Ed25519PrivateKey = field(repr=False)
    ca_public_key: bytes

    @property
    def node_id(self) -> NodeId:
        """The certified name."""
        return NodeId(self.certificate.name)

    @property
    def cluster(self) -> bytes:
        """The mesh this identity belongs to."""
        return self.certificate.cluster

    def sign(self, domain: bytes, data: bytes) -> bytes:
        """Sixty-four bytes that `verify` accepts for the same domain and data."""
        return self.private_key.sign(_framed(domain, data))


def _framed(domain: bytes, data: bytes) -> bytes:
    # The length prefix keeps (domain "a", data "bc") and (domain "ab", data "c") apart.
    assert 0 < len(domain) < 256, domain
    return bytes((len(domain),)) + domain + data


def _certified(cluster: bytes, role: str, name: str, enrolment: int, public_key: bytes) -> bytes:
    return msgspec.msgpack.encode((cluster, role, name, enrolment, public_key))


def _check_node_name(name: str) -> None:
    # A CA tool of another version might be laxer than we are, and the name becomes file names and log text here.
    try:
        parse_node_id(name)
    except ConfigError as error:
        raise RecordError(str(error)) from None


def _verify_key(public_key: bytes, domain: bytes, data: bytes, signature: bytes, complaint: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _framed(domain, data))
    except (InvalidSignature, ValueError):  # ValueError: 32 bytes that are no point of the curve, or a short signature
        raise RecordError(complaint) from None

"""Who is who: certificates of the mesh's own authority, and signatures that cannot be moved to another purpose.

Promises: a `Certificate` that `Authority.check` accepted says what a CA that is trusted now has certified, for exactly
this mesh, role, name, enrolment and key. Which CAs those are changes by `mesh.authorities`. A signature made for one
domain never verifies for another. There is no expiry here: hosts without a clock chip must be able to join, so trust
ends by revocation, by a higher enrolment and with its CA, never by time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
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
    """The eight bytes that name a mesh: a hash of its first CA's key, so two meshes can never be merged by a setting.

    It stays when the CA is rotated.
    """
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


def signed_as_ca(ca_public_key: bytes, domain: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the holder of this CA key made the signature by `sign_as_ca`."""
    return _holds(ca_public_key, _framed(domain, data), signature)


def verify(cert: Certificate, domain: bytes, data: bytes, signature: bytes) -> None:
    """Raise RecordError unless the certificate's key signed `data` for `domain`. Does not check the certificate."""
    if not _holds(cert.public_key, _framed(domain, data), signature):
        raise RecordError(f"signature of {cert.name!r} does not hold")


def _nobody_revoked(role: str, name: str, enrolment: int) -> str | None:
    return None


def _nobody_asks() -> None:
    return


Content = tuple[str, str, int, bytes]
"""What a certificate says: role, name, enrolment and public key."""


def content_of(cert: Certificate) -> Content:
    """What this certificate says, whoever signed it."""
    return cert.role, cert.name, cert.enrolment, cert.public_key


class Authority:
    """Checks certificates against the CAs that are trusted, remembering those that held.

    At first that is the one CA whose key names the mesh.
    """

    def __init__(self, ca_public_key: bytes) -> None:
        self.ca_public_key = ca_public_key
        self.cluster = cluster_id(ca_public_key)
        self._trusted: tuple[bytes, ...] = (ca_public_key,)
        self._reissued: frozenset[Content] = frozenset()
        # A dict, because its order is the order of insertion: eviction must not depend on hash order.
        self._verified: dict[Certificate, bytes] = {}
        self.refusal: Callable[[str, str, int], str | None] = _nobody_revoked
        """Why the enrolment (role, name, number) is trusted no more; None while it is."""
        self.on_stranger: Callable[[], None] = _nobody_asks
        """Called when something of this mesh was signed by nobody whom we trust: perhaps its CA was rotated."""

    def trust(self, ca_public_keys: Iterable[bytes], reissued: Iterable[Certificate]) -> None:
        """Trust these CAs from now on, and no other. The CA vouches for the content of the `reissued` certificates.

        A certificate of a retired CA holds on where a trusted one has issued it anew: nobody but the holder of its key
        can use either.
        """
        self._trusted = tuple(ca_public_keys)
        self._reissued = frozenset(map(content_of, reissued))
        self._verified.clear()

    def check(self, cert: Certificate) -> None:
        """Raise RecordError unless a CA that we trust issued this certificate for this mesh, and has not revoked it."""
        self.signer_of(cert)

    def signer_of(self, cert: Certificate) -> bytes:
        """The key of the trusted CA that signed this certificate; empty where one only vouches for its content.

        RecordError when the certificate does not hold, as in `check`.
        """
        self.check_standing(cert)
        known = self._verified.get(cert)
        if known is not None:
            return known
        if cert.cluster != self.cluster:
            raise RecordError(f"certificate of {cert.name!r} belongs to another mesh")
        if cert.role not in ROLES:
            raise RecordError(f"certificate of {cert.name!r} has an unknown role")
        if cert.role == "node":
            _check_node_name(cert.name)
        signer = self._signer(cert)
        if len(self._verified) >= CERTIFICATES_CACHED_MAX:
            del self._verified[next(iter(self._verified))]
        self._verified[cert] = signer
        return signer

    def _signer(self, cert: Certificate) -> bytes:
        data = _framed(_CERTIFICATE_DOMAIN, _certified(cert.cluster, *content_of(cert)))
        for ca_public_key in self._trusted:
            if _holds(ca_public_key, data, cert.signature):
                return ca_public_key
        if content_of(cert) in self._reissued:
            return b""
        self.on_stranger()
        raise RecordError(f"certificate of {cert.name!r} is forged, or of a CA that is not trusted here")

    def check_standing(self, cert: Certificate) -> None:
        """Raise RecordError when this certificate, checked before, has been revoked since."""
        refusal = self.refusal(cert.role, cert.name, cert.enrolment)
        if refusal is not None:
            raise RecordError(refusal)

    def vouches_for(self, content: Content) -> bool:
        """Whether a trusted CA has issued a certificate of this content anew."""
        return content in self._reissued

    def check_statement(self, domain: bytes, data: bytes, signature: bytes) -> None:
        """Raise RecordError unless a CA that we trust signed `data` for `domain`."""
        framed = _framed(domain, data)
        if not any(_holds(ca_public_key, framed, signature) for ca_public_key in self._trusted):
            self.on_stranger()
            raise RecordError("a CA statement is forged or damaged, or of a CA that is not trusted here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """This process's own certificate and the key that goes with it."""

    certificate: Certificate
    private_key: Ed25519PrivateKey = field(repr=False)
    ca_public_key: bytes
    """Of the mesh's first CA, which names the mesh."""

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


def _holds(public_key: bytes, framed: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, framed)
    except (InvalidSignature, ValueError):  # ValueError: 32 bytes that are no point of the curve, or a short signature
        return False
    return True

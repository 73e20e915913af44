"""TLS 1.3 with certificates of the mesh's own CA at both ends. No loop: the synchronous CLI client uses it too.

Host names prove nothing here (edge hosts move, and have none), so they are not checked. What counts is the URI in the
peer's certificate, `relaymesh:<cluster hex>/<role>/<name>/<enrolment>`, signed by a CA of the mesh: who dials trusts
those that sign by now, who is dialled also lets former ones through the handshake, and tells by which one a peer came.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from mesh.errors import ConfigError, RecordError, RelayMeshError

_SAN_URI = re.compile(r"relaymesh:([0-9a-f]{16})/(node|operator)/([A-Za-z0-9._~%-]{1,768})/([1-9][0-9]{0,7})")


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What a TLS end needs, as PEM text, and the mesh it belongs to. The private key stays out of `repr`."""

    cluster: bytes
    certificate_pem: str
    private_key_pem: str = field(repr=False)
    ca_pem: str
    """The CAs that are trusted."""
    chain_pem: str = ""
    """Sent along with our certificate, for those who know a former CA of the mesh only."""
    retired_pem: str = ""
    """Former CAs. Who dials us by one of these is let through the handshake, to be judged by who may hold a stream."""
    ca_public_keys: tuple[bytes, ...] = ()
    """Of all of these CAs."""


@dataclass(frozen=True, slots=True)
class PeerName:
    """What a verified certificate says about its holder."""

    cluster: bytes
    role: str
    """`node` or `operator`."""
    name: str
    enrolment: int


@dataclass(frozen=True, slots=True)
class TlsContexts:
    """The two contexts of one identity. Building them parses keys, so it is done once per identity."""

    cluster: bytes
    client: ssl.SSLContext
    server: ssl.SSLContext
    ca_public_keys: tuple[bytes, ...]


def make_contexts(material: TlsMaterial) -> TlsContexts:
    """Contexts for dialling and for listening; ConfigError when the PEM texts cannot be used."""
    server = _context(ssl.PROTOCOL_TLS_SERVER, material, material.ca_pem + material.retired_pem)
    # Tickets would be written after each handshake and never used: connections are kept instead.
    server.num_tickets = 0
    return TlsContexts(
        material.cluster, client=client_context(material), server=server, ca_public_keys=material.ca_public_keys
    )


def client_context(material: TlsMaterial) -> ssl.SSLContext:
    """The context for dialling a peer; ConfigError when the PEM texts cannot be used."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, material, material.ca_pem)


def _context(protocol: int, material: TlsMaterial, trusted_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cadata=trusted_pem)
        _load_own_certificate(context, material)
    except ssl.SSLError as error:
        raise ConfigError(
            f"this identity does not work for TLS ({error.reason or error}): enroll the host anew"
        ) from error
    return context


def _load_own_certificate(context: ssl.SSLContext, material: TlsMaterial) -> None:
    # The ssl module reads keys from files only. An anonymous file in memory never reaches a disk.
    descriptor = os.memfd_create("relaymesh-tls")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(f"{material.private_key_pem}\n{material.certificate_pem}\n{material.chain_pem}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def san_uri(cluster: bytes, role: str, name: str, enrolment: int) -> str:
    """The URI that a certificate carries for this holder. A person's name may hold any characters, so it is quoted."""
    uri = f"relaymesh:{cluster.hex()}/{role}/{quote(name, safe='')}/{enrolment}"
    assert _SAN_URI.fullmatch(uri), uri
    return uri


def parse_san_uri(uri: str) -> PeerName:
    """The holder that a certificate's URI names; RecordError when it is not one of ours."""
    match = _SAN_URI.fullmatch(uri)
    if match is None:
        raise RecordError(f"certificate URI {uri[:100]!r} is not relaymesh:CLUSTER/ROLE/NAME/ENROLMENT")
    cluster, role, name, enrolment = match.groups()
    return PeerName(bytes.fromhex(cluster), role, unquote(name), int(enrolment))


def peer_name(certificate: Mapping[str, Any] | None, cluster: bytes) -> PeerName:
    """Who holds a certificate that the handshake verified, as `SSLObject.getpeercert()` gives it.

    RecordError when it names nobody, or a member of another mesh.
    """
    uris = [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:
        raise RecordError("the peer's certificate does not name one member of a mesh")
    name = parse_san_uri(uris[0])
    if name.cluster != cluster:
        raise RecordError(f"the peer belongs to cluster {name.cluster.hex()}, this is {cluster.hex()}")
    return name


def failure_text(error: BaseException) -> str:
    """Why a stream failed, in words: the innermost cause, because wrappers hide what the socket or OpenSSL said.

    Our own errors speak for themselves.
    """
    while error.__cause__ is not None and not isinstance(error, RelayMeshError):
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return failure_text(error.exceptions[0])
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused, {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

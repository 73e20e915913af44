"""X.509 certificates for TLS: the mesh's CAs, and one leaf for each enrolment.

They say the same as the compact certificates of mesh/identity.py, under the same keys, in the form that TLS wants.
All are valid from 1970 to 9999: a host without a clock chip starts in 1970, and trust ends by revocation.
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.errors import RecordError

_NOT_BEFORE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NOT_AFTER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)  # RFC 5280's "no expiry"
_COMMON_NAME_CHARS_MAX = 64


def make_ca(key: Ed25519PrivateKey, *, name: str) -> str:
    """A self-signed CA certificate as PEM."""
    subject = _name(name)
    builder = _builder(subject, subject, key.public_key(), key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return _pem(builder.sign(key, None))


def make_cross(endorser_key: Ed25519PrivateKey, endorser_pem: str, public_key: Ed25519PublicKey) -> str:
    """A CA's certificate by the CA before it, as PEM: "new with old" of RFC 4210, section 4.4.

    All CAs of a mesh have one subject. So it counts as self-issued, and the path length 0 of the CA before allows it.
    """
    subject = x509.load_pem_x509_certificate(endorser_pem.encode()).subject
    builder = _builder(subject, subject, public_key, endorser_key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return _pem(builder.sign(endorser_key, None))


def make_leaf(ca_key: Ed25519PrivateKey, ca_pem: str, *, public_key: Ed25519PublicKey, name: str, uri: str) -> str:
    """A certificate as PEM for both ends of a connection, naming its holder by `uri`."""
    ca = x509.load_pem_x509_certificate(ca_pem.encode())
    builder = _builder(_name(name), ca.subject, public_key, ca_key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
    return _pem(builder.sign(ca_key, None))


def ca_public_key(ca_pem: str) -> bytes:
    """The 32 bytes of the CA's key; RecordError when this is no CA certificate of ours."""
    ca = _load(ca_pem)
    key = ca.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise RecordError("the CA certificate's key is not Ed25519")
    _check_issued(ca, ca)
    return key.public_bytes_raw()


def check_ca(ca_pem: str, public_key: bytes) -> None:
    """RecordError unless this is a CA certificate of ours for this key."""
    if ca_public_key(ca_pem) != public_key:
        raise RecordError("the CA certificate is not for the CA key")


def check_leaf(ca_pem: str, leaf_pem: str, *, public_key: bytes, uri: str) -> None:
    """RecordError unless the CA issued this leaf for this key and this holder."""
    leaf = _load(leaf_pem)
    _check_issued(leaf, _load(ca_pem))
    key = leaf.public_key()
    if not isinstance(key, Ed25519PublicKey) or key.public_bytes_raw() != public_key:
        raise RecordError("the TLS certificate is for another key")
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise RecordError("the TLS certificate names nobody") from error
    if list(names) != [x509.UniformResourceIdentifier(uri)]:
        raise RecordError("the TLS certificate names somebody else")


def names_of(pem: str) -> tuple[str, str]:
    """A certificate's serial number and SHA-256 fingerprint, as `mesh.revocations` keeps them."""
    certificate = _load(pem)
    return f"{certificate.serial_number:x}", certificate.fingerprint(hashes.SHA256()).hex()


def signer_of(der: bytes, ca_public_keys: Iterable[bytes]) -> tuple[bytes, bytes]:
    """A leaf's own key, and which of these CA keys signed it; that is empty when none did.

    The names in it are not looked at: what counts is who could have made it.
    """
    leaf = x509.load_der_x509_certificate(der)
    key = leaf.public_key()
    own = key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else b""
    for ca_public_key in ca_public_keys:
        try:
            Ed25519PublicKey.from_public_bytes(ca_public_key).verify(leaf.signature, leaf.tbs_certificate_bytes)
        except (InvalidSignature, ValueError):
            continue
        return own, ca_public_key
    return own, b""


def pem_of(der: bytes) -> str:
    """The same certificate as text, which may be none: it is looked at when it is used."""
    return ssl.DER_cert_to_PEM_cert(der)


def der_of(pem: str) -> bytes:
    """The same certificate as bytes."""
    return _load(pem).public_bytes(serialization.Encoding.DER)


def subject_and_end(pem: str) -> tuple[str, str]:
    """A certificate's subject, and when it ends, as RFC 4514 and ISO 8601 write them."""
    certificate = _load(pem)
    return certificate.subject.rfc4514_string(), certificate.not_valid_after_utc.isoformat().replace("+00:00", "Z")


def load_private_key(pem: str) -> Ed25519PrivateKey:
    """The key in a PEM text; RecordError when there is no usable one, without quoting any of it."""
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise RecordError("the private key cannot be read") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise RecordError("the private key is not Ed25519")
    return key


def private_key_pem(key: Ed25519PrivateKey) -> str:
    """The key as unencrypted PKCS 8; the file's mode is what protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _load(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise RecordError("a TLS certificate cannot be read") from error


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise RecordError("a TLS certificate is not signed by the mesh's CA") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, issuer_key: Ed25519PublicKey
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(_NOT_BEFORE).not_valid_after(_NOT_AFTER)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
    return builder.add_extension(authority, critical=False)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_COMMON_NAME_CHARS_MAX])])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()

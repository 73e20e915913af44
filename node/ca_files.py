"""The CAs in a mesh directory: their private keys, and the CA's own word on which of them are trusted.

The first CA's key is `ca-key.pem` and its certificate `ca-cert.pem`; a later one's key has its name in it, and its
certificate stands in the statement. A retired CA's key is read by nobody any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.authorities import Authorities, CertificateAuthority, first_authorities, open_enrolled
from mesh.errors import ConfigError, RecordError
from mesh.identity import cluster_id
from node import durable_files, x509_certificates
from node.small_files import exists, read_json, read_small, to_json, writing

CA_KEY_FILE = "ca-key.pem"
CA_CERTIFICATE_FILE = "ca-cert.pem"
AUTHORITIES_FILE = "authorities.json"


class _AuthoritiesFile(msgspec.Struct, frozen=True, kw_only=True):
    schema: Literal["relaymesh.authorities.v1"]
    statement: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CaFiles:
    """What a mesh directory holds of its CAs."""

    authorities: Authorities
    statement: bytes
    """The CA's word for it; empty while the mesh has its first CA and no other."""
    signing_key: Ed25519PrivateKey = field(repr=False)
    signing_pem: str


def read_cas(mesh_dir: Path, cluster: str) -> CaFiles:
    """The CAs of the mesh with this id (hex). ConfigError when the directory is damaged, or lacks the signing key."""
    path = mesh_dir / AUTHORITIES_FILE
    if not exists(path):
        return _only_ca(mesh_dir, cluster)
    statement = read_json(path, _AuthoritiesFile, "a list of CAs", secret=False).statement
    try:
        authorities, _ = open_enrolled(bytes.fromhex(cluster), statement)
        signing_pem = x509_certificates.pem_of(authorities.signing.root)
        x509_certificates.check_ca(signing_pem, authorities.signing.public_key)
    except RecordError as error:
        raise ConfigError(f"{path}: {error}") from error
    key = ca_key(mesh_dir, authorities, authorities.signing)
    return CaFiles(authorities=authorities, statement=statement, signing_key=key, signing_pem=signing_pem)


def ca_key(mesh_dir: Path, authorities: Authorities, ca: CertificateAuthority) -> Ed25519PrivateKey:
    """The private key of one CA of the mesh; ConfigError when this directory has it not."""
    path = key_file(mesh_dir, authorities, ca)
    key = _read_key(path)
    if key.public_key().public_bytes_raw() != ca.public_key:
        raise ConfigError(f"{path}: it is not the key of CA {ca.name}")
    return key


def key_file(mesh_dir: Path, authorities: Authorities, ca: CertificateAuthority) -> Path:
    """Where the private key of one CA lies."""
    is_first = ca.public_key == authorities.cas[0].public_key
    return mesh_dir / (CA_KEY_FILE if is_first else f"ca-key-{ca.name}.pem")


def store_ca_key(mesh_dir: Path, name: str, key: Ed25519PrivateKey) -> Path:
    """Put the key of a CA of this name into the directory, before anybody hears of it."""
    path = mesh_dir / f"ca-key-{name}.pem"
    with writing(path):
        durable_files.write_new(path, x509_certificates.private_key_pem(key).encode())
    return path


def store_authorities(mesh_dir: Path, statement: bytes) -> None:
    """Put a list that the mesh follows into its directory, for later enrolments and statements."""
    file = _AuthoritiesFile(schema="relaymesh.authorities.v1", statement=statement)
    with writing(mesh_dir):
        durable_files.replace(mesh_dir / AUTHORITIES_FILE, to_json(file))


def _only_ca(mesh_dir: Path, cluster: str) -> CaFiles:
    key = _read_key(mesh_dir / CA_KEY_FILE)
    public_key = key.public_key().public_bytes_raw()
    path = mesh_dir / CA_CERTIFICATE_FILE
    pem = read_small(path, secret=False).decode(errors="replace")
    try:
        x509_certificates.check_ca(pem, public_key)
    except RecordError as error:
        raise ConfigError(f"{path}: {error}") from error
    if cluster_id(public_key).hex() != cluster:
        raise ConfigError(f"{mesh_dir}: mesh.json and {CA_KEY_FILE} belong to different meshes")
    authorities = first_authorities(public_key, x509_certificates.der_of(pem))
    return CaFiles(authorities=authorities, statement=b"", signing_key=key, signing_pem=pem)


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        return x509_certificates.load_private_key(read_small(path).decode(errors="replace"))
    except RecordError as error:
        raise ConfigError(f"{path}: {error}") from error

"""The files that say who a node is, and which mesh it belongs to.

A mesh directory (`create_mesh`) holds the CA key and hands out enrolments: one file of mode 0600 for one host or person
with everything that it needs to take part. A node keeps its enrolment in `<root>/identity.json`. Whatever is read is
verified whole, down to the signatures; whatever is written appears whole or not at all, and is on the disk when the
function returns. Functions here block: they run before a node starts, or in a command line.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.authorities import Authorities, first_authorities, open_enrolled
from mesh.errors import ConfigError, ConflictError, RecordError
from mesh.identity import Authority, Certificate, Identity, cluster_id, issue
from mesh.ids import ENROLMENT_MAX
from mesh.key_rotation import open_ring
from mesh.revocations import Revocations, open_revocations
from mesh.sealing import SECRET_BYTES, KeyRing, KeyState, RingKey
from node import ca_files, durable_files, x509_certificates
from node.small_files import exists, read_json, to_json, writing
from node.streams.tls import TlsMaterial, san_uri

IDENTITY_FILE = "identity.json"
"""A node's enrolment inside its root."""
FOUNDED_MESH = "mesh"
"""The mesh directory inside the root of a node that founded its own mesh."""

_MESH_FILE = "mesh.json"
_RING_FILE = "keyring.json"
_NUMBERS_FILE = "enrolments.json"
_REVOCATIONS_FILE = "revocations.json"

_Number = Annotated[int, msgspec.Meta(ge=1, le=ENROLMENT_MAX)]


# Every field of these files is required, so that a file of another kind is recognised as such.


class _KeyFile(msgspec.Struct, frozen=True):
    secret: bytes
    state: KeyState


class _RingFile(msgspec.Struct, frozen=True, kw_only=True):
    schema: Literal["relaymesh.keyring.v1"]
    keys: tuple[_KeyFile, ...]
    statement: bytes | msgspec.UnsetType = msgspec.UNSET
    """The CA's word for these keys; unset for the first ring of a mesh."""


class _MeshFile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema: Literal["relaymesh.mesh.v1"]
    cluster: str
    created_at_ms: int


class IssuedCertificate(msgspec.Struct, frozen=True):
    """One TLS certificate that was handed out."""

    role: Literal["node", "operator"]
    name: str
    enrolment: int
    serial: str
    fingerprint: str
    public_key: bytes = b""
    """What a new CA issues a certificate for; empty when it was handed out by an older release."""


class _RevocationsFile(msgspec.Struct, frozen=True, kw_only=True):
    schema: Literal["relaymesh.revocations.v1"]
    statement: bytes


class _NumbersFile(msgspec.Struct, frozen=True, kw_only=True):
    """The last enrolment number given to each name."""

    schema: Literal["relaymesh.enrolments.v1"]
    node: dict[str, _Number]
    operator: dict[str, _Number]
    issued: list[IssuedCertificate] | msgspec.UnsetType = msgspec.UNSET
    """Every TLS certificate since this list is kept, so that a serial number or fingerprint leads to its enrolment."""


class _EnrolmentFile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema: Literal["relaymesh.enrolment.v1"]
    role: Literal["node", "operator"]
    name: str
    enrolment: int
    cluster: str
    certificate: bytes
    private_key: str
    tls_certificate: str
    ca_certificate: str
    keys: tuple[_KeyFile, ...]
    ring: bytes | msgspec.UnsetType = msgspec.UNSET
    """The CA's word for the keys, which needs no checksum; unset for the first ring of a mesh."""
    authorities: bytes | msgspec.UnsetType = msgspec.UNSET
    """The CA's word for which CAs are trusted, likewise; unset while the mesh has its first CA and no other."""
    checksum: str = ""
    """Of all the rest. The signatures do not cover the keys, and files travel on sticks and through chats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """A verified enrolment: everything a host or person needs to take part in one mesh."""

    role: str
    """`node` or `operator`."""
    name: str
    enrolment: int
    cluster: bytes
    certificate: Certificate
    private_key_pem: str = field(repr=False)
    tls_certificate_pem: str = field(repr=False)
    ca_certificate_pem: str = field(repr=False)
    keys: tuple[RingKey, ...]
    ring_statement: bytes = field(default=b"", repr=False)
    """The CA's word for `keys`; empty for the first ring of a mesh."""
    authorities: Authorities = field(repr=False)
    """The CAs that were trusted when it was made."""
    authorities_statement: bytes = field(default=b"", repr=False)
    """The CA's word for that; empty while the mesh had its first CA and no other."""

    def identity(self) -> Identity:
        """What signs records and bundles."""
        return Identity(
            certificate=self.certificate,
            private_key=x509_certificates.load_private_key(self.private_key_pem),
            ca_public_key=self.authorities.cas[0].public_key,
        )

    def ring(self) -> KeyRing:
        """What seals datagrams."""
        return KeyRing(self.keys)

    @property
    def tls_material(self) -> TlsMaterial:
        """What proves this identity on streams, as long as nothing later is known of the mesh's CAs."""
        return tls_material(self, self.authorities)


def tls_material(enrolment: Enrolment, authorities: Authorities) -> TlsMaterial:
    """What proves this identity on streams in a mesh that trusts these CAs: by its own certificate, or a re-issued one.

    RecordError when what the CAs' list holds for it cannot be used.
    """
    certificate_pem = enrolment.tls_certificate_pem
    reissued = authorities.reissued_for(enrolment.certificate)
    if reissued is not None and reissued.leaf:
        certificate_pem = x509_certificates.pem_of(reissued.leaf)
        uri = san_uri(enrolment.cluster, enrolment.role, enrolment.name, enrolment.enrolment)
        x509_certificates.check_leaf(
            x509_certificates.pem_of(authorities.signing.root),
            certificate_pem,
            public_key=enrolment.certificate.public_key,
            uri=uri,
        )
    roots = {ca.public_key: x509_certificates.pem_of(ca.root) for ca in authorities.cas}
    return TlsMaterial(
        cluster=enrolment.cluster,
        certificate_pem=certificate_pem,
        private_key_pem=enrolment.private_key_pem,
        ca_pem="".join(roots[key] for key in authorities.trusted),
        chain_pem="".join(x509_certificates.pem_of(ca.cross) for ca in authorities.line_of_signing() if ca.cross),
        retired_pem="".join(pem for key, pem in roots.items() if key in authorities.retired),
        ca_public_keys=(*authorities.trusted, *authorities.retired),
    )


def create_mesh(out: Path) -> str:
    """Create the directory of a new mesh (mode 0700) and return its cluster id in hex.

    Whoever holds the directory can enroll anybody. ConfigError when `out` holds anything, or cannot be written;
    then nothing is left behind.
    """
    with writing(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} exists and is not empty: give a new directory as --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))  # mode 0700
        try:
            cluster = _write_mesh(building)
            building.rename(out)  # takes the place of an empty directory, but of nothing else
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        durable_files.sync_directory(out.parent)
    return cluster


def _write_mesh(directory: Path) -> str:
    ca_key = Ed25519PrivateKey.generate()
    cluster = cluster_id(ca_key.public_key().public_bytes_raw()).hex()
    ring_key = _KeyFile(secrets.token_bytes(SECRET_BYTES), KeyState.PRIMARY)
    now_ms = int(time.time() * 1000)
    files = {
        ca_files.CA_KEY_FILE: x509_certificates.private_key_pem(ca_key).encode(),
        ca_files.CA_CERTIFICATE_FILE: x509_certificates.make_ca(ca_key, name=f"RelayMesh {cluster}").encode(),
        _RING_FILE: to_json(_RingFile(schema="relaymesh.keyring.v1", keys=(ring_key,))),
        _NUMBERS_FILE: to_json(_NumbersFile(schema="relaymesh.enrolments.v1", node={}, operator={})),
        _MESH_FILE: to_json(_MeshFile(schema="relaymesh.mesh.v1", cluster=cluster, created_at_ms=now_ms)),
    }
    for name, data in files.items():
        durable_files.write_new(directory / name, data)
    return cluster


def enroll(mesh_dir: Path, *, node_id: str | None = None, operator: str | None = None, out: Path) -> Enrolment:
    """Write an enrolment file (mode 0600) for a node or an operator, numbered above all earlier ones of that name.

    The number is used up even when writing `out` fails afterwards. ConfigError when `out` exists, the name cannot be
    used or the mesh directory is damaged.
    """
    if exists(out):
        raise ConfigError(f"{out} exists: give another --out, or move it away first")
    if node_id is not None and operator is None:
        enrolment = _issue(mesh_dir, "node", node_id)
    elif operator is not None and node_id is None:
        if not operator.isprintable():  # it is shown in logs; and what is not even text cannot be encoded
            raise ConfigError(f"an operator's name has printable characters only, not {operator[:64]!r}")
        enrolment = _issue(mesh_dir, "operator", operator)
    else:
        raise ConfigError("give either --node-id or --operator")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        durable_files.write_new(out, _encode(enrolment))
    return enrolment


def read_enrolment(path: Path) -> Enrolment:
    """The enrolment in a file, verified whole. ConfigError in one line when it is malformed, altered or unreadable."""
    file = read_json(path, _EnrolmentFile, "an enrolment")
    if file.checksum != _checksum(file):
        raise ConfigError(f"{path} was altered or damaged: copy it again, or enroll anew")
    try:
        return _verified(file)
    except (RecordError, ConfigError) as error:
        raise ConfigError(f"{path} does not hold: {error}; enroll anew") from error


def install(root: Path, enrolment_file: Path) -> Enrolment:
    """Make `enrolment_file` the identity of the node on `root`, and return the identity that is in force.

    The same enrolment again changes nothing; a higher number of the same node takes over. ConflictError when the root
    belongs to another mesh or node, or to a later enrolment; ConfigError when the file cannot be used.
    """
    new = read_enrolment(enrolment_file)
    if new.role != "node":
        raise ConfigError(f"{enrolment_file} is for operator {new.name}: a node needs one made with --node-id")
    current = load(root)
    if current is not None:
        if new.certificate == current.certificate:
            return current
        _check_succession(root, current, enrolment_file, new)
    _store(root, new)
    return new


def _check_succession(root: Path, current: Enrolment, file: Path, new: Enrolment) -> None:
    there = f"{root} is {current.name}, enrolment {current.enrolment}, of mesh {current.cluster.hex()}"
    given = f"{file} is {new.name}, enrolment {new.enrolment}, of mesh {new.cluster.hex()}"
    if (new.cluster, new.name) != (current.cluster, current.name):
        raise ConflictError(f"{there}; {given}: give the node another --root")
    if new.enrolment < current.enrolment:
        raise ConflictError(f"{there}; {given}: use the latest enrolment, or enroll anew")
    if new.enrolment == current.enrolment:
        raise ConflictError(f"{there}; {given}, with another key: was the mesh directory restored? Enroll anew")


def load(root: Path) -> Enrolment | None:
    """The identity of the node on `root`; None when it has none yet. ConfigError when it is damaged."""
    path = root / IDENTITY_FILE
    return read_enrolment(path) if exists(path) else None


def found(root: Path, node_id: str) -> Enrolment:
    """Make the node on `root` the first of its own mesh, whose directory is `<root>/mesh`; others are enrolled there.

    Does nothing when this node has an identity. ConflictError when the root belongs to another node.
    """
    current = load(root)
    if current is not None:
        if current.name != node_id:
            raise ConflictError(f"{root} belongs to {current.name}: start it with --node-id {current.name}")
        return current
    mesh_dir = root / FOUNDED_MESH
    if not exists(mesh_dir):
        with writing(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_mesh(mesh_dir)
    enrolment = _issue(mesh_dir, "node", node_id)
    _store(root, enrolment)
    return enrolment


def _store(root: Path, enrolment: Enrolment) -> None:
    with writing(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable_files.replace(root / IDENTITY_FILE, _encode(enrolment))


# --- the mesh directory -----------------------------------------------------------------------------------------------


def _issue(mesh_dir: Path, role: Literal["node", "operator"], name: str) -> Enrolment:
    """A new enrolment, its number recorded durably before it is returned."""
    with _locked(mesh_dir):
        mesh = read_json(mesh_dir / _MESH_FILE, _MeshFile, "a mesh", secret=False)
        cas = ca_files.read_cas(mesh_dir, mesh.cluster)
        ca_key, ca_pem, cluster = cas.signing_key, cas.signing_pem, bytes.fromhex(mesh.cluster)
        ring = read_json(mesh_dir / _RING_FILE, _RingFile, "a key ring")
        numbers = read_json(mesh_dir / _NUMBERS_FILE, _NumbersFile, "a list of enrolments", secret=False)
        number = getattr(numbers, role).get(name, 0) + 1
        if number > ENROLMENT_MAX:
            raise ConfigError(f"{name} was enrolled {ENROLMENT_MAX} times: give the host a new name")
        key = Ed25519PrivateKey.generate()
        # Checks the name too, so an unusable one takes no number.
        certificate = issue(
            ca_key,
            cluster=cluster,
            role=role,
            name=name,
            enrolment=number,
            public_key=key.public_key().public_bytes_raw(),
        )
        uri = san_uri(cluster, role, name, number)
        tls_pem = x509_certificates.make_leaf(ca_key, ca_pem, public_key=key.public_key(), name=name, uri=uri)
        serial, fingerprint = x509_certificates.names_of(tls_pem)
        entry = IssuedCertificate(role, name, number, serial, fingerprint, certificate.public_key)
        issued = [] if numbers.issued is msgspec.UNSET else numbers.issued
        with writing(mesh_dir):
            getattr(numbers, role)[name] = number
            numbers = msgspec.structs.replace(numbers, issued=[*issued, entry])
            durable_files.replace(mesh_dir / _NUMBERS_FILE, to_json(numbers))
    return Enrolment(
        role=role,
        name=name,
        enrolment=number,
        cluster=cluster,
        certificate=certificate,
        private_key_pem=x509_certificates.private_key_pem(key),
        tls_certificate_pem=tls_pem,
        ca_certificate_pem=ca_pem,
        keys=tuple(RingKey(key.secret, key.state) for key in ring.keys),
        ring_statement=ring.statement or b"",
        authorities=cas.authorities,
        authorities_statement=cas.statement,
    )


@contextmanager
def _locked(mesh_dir: Path) -> Iterator[None]:
    """Wait for, then keep out, other enrolments. The lock is on mesh.json, which is never replaced."""
    try:
        descriptor = os.open(mesh_dir / _MESH_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigError(f"{mesh_dir} is no mesh directory: make one: relaymesh mesh create --out DIR") from error
    except OSError as error:
        raise ConfigError(f"{mesh_dir} cannot be read: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshDirectory:
    """What a locked mesh directory holds, for making the CA's next statement."""

    ca_key: Ed25519PrivateKey = field(repr=False)
    """Of the CA that signs."""
    authority: Authority
    authorities: Authorities
    ring: KeyRing
    numbers: Mapping[tuple[str, str], int]
    """The last enrolment given to each (role, name)."""
    revocations: Revocations
    issued: Sequence[IssuedCertificate]


def authority_of(authorities: Authorities) -> Authority:
    """What checks statements and certificates against these CAs."""
    authority = Authority(authorities.cas[0].public_key)
    authority.trust(authorities.trusted, [each.certificate for each in authorities.reissued])
    return authority


@contextmanager
def opened_mesh(mesh_dir: Path) -> Iterator[MeshDirectory]:
    """The mesh directory, locked against enrolments and other statements until the block ends."""
    with _locked(mesh_dir):
        mesh = read_json(mesh_dir / _MESH_FILE, _MeshFile, "a mesh", secret=False)
        cas = ca_files.read_cas(mesh_dir, mesh.cluster)
        authority = authority_of(cas.authorities)
        file = read_json(mesh_dir / _RING_FILE, _RingFile, "a key ring")
        numbers = read_json(mesh_dir / _NUMBERS_FILE, _NumbersFile, "a list of enrolments", secret=False)
        ring = KeyRing(RingKey(key.secret, key.state) for key in file.keys)
        if file.statement:
            try:
                ring, _ = open_ring(authority, file.statement)
            except RecordError as error:
                raise ConfigError(f"{mesh_dir / _RING_FILE}: {error}") from error
        yield MeshDirectory(
            revocations=_read_revocations(mesh_dir / _REVOCATIONS_FILE, authority),
            ca_key=cas.signing_key,
            authority=authority,
            authorities=cas.authorities,
            ring=ring,
            numbers={
                **{("node", name): number for name, number in numbers.node.items()},
                **{("operator", name): number for name, number in numbers.operator.items()},
            },
            issued=[] if numbers.issued is msgspec.UNSET else numbers.issued,
        )


def store_ring(mesh_dir: Path, ring: KeyRing, statement: bytes) -> None:
    """Put a ring that the mesh uses into its directory, for later enrolments. Inside of `opened_mesh` only."""
    keys = tuple(_KeyFile(key.secret, key.state) for key in ring)
    with writing(mesh_dir):
        file = _RingFile(schema="relaymesh.keyring.v1", keys=keys, statement=statement)
        durable_files.replace(mesh_dir / _RING_FILE, to_json(file))


def store_issued(mesh_dir: Path, issued: Sequence[IssuedCertificate]) -> None:
    """Note TLS certificates that a CA issued anew, beside the last ones of these enrolments. In `opened_mesh` only."""
    path = mesh_dir / _NUMBERS_FILE
    numbers = read_json(path, _NumbersFile, "a list of enrolments", secret=False)
    known = [] if numbers.issued is msgspec.UNSET else numbers.issued
    latest: dict[tuple[str, str, int], list[IssuedCertificate]] = {}
    for each in (*known, *issued):
        same = latest.setdefault((each.role, each.name, each.enrolment), [])
        same[:] = [*same[-1:], each]  # of one enrolment the last two: rotations must not make the file grow for ever
    numbers = msgspec.structs.replace(numbers, issued=[each for same in latest.values() for each in same])
    with writing(mesh_dir):
        durable_files.replace(path, to_json(numbers))


def store_revocations(mesh_dir: Path, statement: bytes) -> None:
    """Put a list that the mesh enforces into its directory. Inside of `opened_mesh` only."""
    with writing(mesh_dir):
        file = _RevocationsFile(schema="relaymesh.revocations.v1", statement=statement)
        durable_files.replace(mesh_dir / _REVOCATIONS_FILE, to_json(file))


def _read_revocations(path: Path, authority: Authority) -> Revocations:
    if not exists(path):
        return Revocations()
    try:
        return open_revocations(authority, read_json(path, _RevocationsFile, "a list of revocations").statement)[0]
    except RecordError as error:
        raise ConfigError(f"{path}: {error}") from error


# --- the enrolment file -----------------------------------------------------------------------------------------------


def _encode(enrolment: Enrolment) -> bytes:
    file = _EnrolmentFile(
        schema="relaymesh.enrolment.v1",
        role="node" if enrolment.role == "node" else "operator",
        name=enrolment.name,
        enrolment=enrolment.enrolment,
        cluster=enrolment.cluster.hex(),
        certificate=msgspec.msgpack.encode(enrolment.certificate),
        private_key=enrolment.private_key_pem,
        tls_certificate=enrolment.tls_certificate_pem,
        ca_certificate=enrolment.ca_certificate_pem,
        keys=tuple(_KeyFile(key.secret, key.state) for key in enrolment.keys),
        ring=enrolment.ring_statement or msgspec.UNSET,
        authorities=enrolment.authorities_statement or msgspec.UNSET,
    )
    return to_json(msgspec.structs.replace(file, checksum=_checksum(file)))


def _checksum(file: _EnrolmentFile) -> str:
    return hashlib.sha256(
        msgspec.json.encode(msgspec.structs.replace(file, ring=msgspec.UNSET, authorities=msgspec.UNSET, checksum=""))
    ).hexdigest()


def _verified(file: _EnrolmentFile) -> Enrolment:
    """The enrolment, after every part was checked against the CA and against every other part."""
    certificate = _decode_certificate(file.certificate)
    authorities = _authorities_in(file, certificate.cluster)
    authority = authority_of(authorities)
    authority.check(certificate)
    said = (file.cluster, file.role, file.name, file.enrolment)
    certified = (certificate.cluster.hex(), certificate.role, certificate.name, certificate.enrolment)
    if said != certified:
        raise RecordError("its certificate names somebody else")
    private_key = x509_certificates.load_private_key(file.private_key)
    if private_key.public_key().public_bytes_raw() != certificate.public_key:
        raise RecordError("its private key does not belong to its certificate")
    uri = san_uri(certificate.cluster, file.role, file.name, file.enrolment)
    x509_certificates.check_leaf(file.ca_certificate, file.tls_certificate, public_key=certificate.public_key, uri=uri)
    keys = tuple(RingKey(key.secret, key.state) for key in file.keys)
    KeyRing(keys)  # raises when the keys make no ring
    if file.ring:
        open_ring(authority, file.ring)
    return Enrolment(
        role=file.role,
        name=file.name,
        enrolment=file.enrolment,
        cluster=certificate.cluster,
        certificate=certificate,
        private_key_pem=file.private_key,
        tls_certificate_pem=file.tls_certificate,
        ca_certificate_pem=file.ca_certificate,
        keys=keys,
        ring_statement=file.ring or b"",
        authorities=authorities,
        authorities_statement=file.authorities or b"",
    )


def _authorities_in(file: _EnrolmentFile, cluster: bytes) -> Authorities:
    public_key = x509_certificates.ca_public_key(file.ca_certificate)
    if not file.authorities:
        return first_authorities(public_key, x509_certificates.der_of(file.ca_certificate))
    authorities, _ = open_enrolled(cluster, file.authorities)
    x509_certificates.check_ca(file.ca_certificate, authorities.signing.public_key)
    return authorities


def _decode_certificate(data: bytes) -> Certificate:
    try:
        return msgspec.msgpack.decode(data, type=Certificate)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError("its certificate cannot be read") from error

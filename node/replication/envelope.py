"""Rows in a file, for links that carry no stream: what one node exports by hand, another imports.

An envelope is one JSON document, signed by the node that wrote it. It says what the receiver had to have (`since`) and
what it has after it (`cursor`), both version vectors, and holds the rows between them as chunks of whole requests.
It is checked whole, digest and signature, before its first row is looked at; nothing in it is ever used as a path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from mesh.errors import ConfigError, RecordError
from mesh.identity import Authority, Certificate, Identity, verify
from mesh.row_codec import RowLimits, decode_rows
from mesh.rows import Row
from mesh.stability import Stable
from mesh.version_vector import VersionVector

SCHEMA_VERSION: Final = "relaymesh.replication.v2"
ENVELOPE_BYTES_MAX = 16 << 20
"""The whole document: below what one message of a stream may carry, since it reaches a node in one."""
CHUNKS_BYTES_MAX = 11 << 20
"""All rows of one envelope before base64 makes four bytes of three."""
CHUNKS_MAX = 10_000
ROWS_MAX = 100_000

_DOMAIN = b"relaymesh replication envelope"
_LIMITS = RowLimits(bytes_max=CHUNKS_BYTES_MAX, rows_max=ROWS_MAX)


class _Header(msgspec.Struct):
    schema_version: str


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document. Bytes are base64 in it; vectors have the form of `VersionVector.to_wire`."""

    schema_version: Literal["relaymesh.replication.v2"] = SCHEMA_VERSION
    cluster: str
    namespace: Literal["all"] = "all"
    source_node_id: str
    generated_at_ms: int
    cluster_epoch: int
    limit: int
    since: bytes
    cursor: bytes
    stable: bytes
    """What the source knew to be stable, as `mesh.stability.Stable.to_wire`: to be adopted before the rows."""
    complete: bool
    """Whether the source had nothing more behind `since`; else export again since this envelope."""
    counts: dict[str, int]
    """Rows by table, for people."""
    chunks: list[bytes]
    """Each as `mesh.row_codec.encode_rows` makes it, to be applied in one transaction."""
    certificate: bytes
    digest: str = ""
    """BLAKE2b of the document without this and the next field."""
    signature: bytes = b""


_decoder = msgspec.json.Decoder(Envelope)
_header_decoder = msgspec.json.Decoder(_Header)
_certificate_decoder = msgspec.msgpack.Decoder(Certificate)
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Opened(msgspec.Struct, frozen=True):
    """An envelope that holds in every respect."""

    envelope: Envelope
    since: VersionVector
    cursor: VersionVector
    stable: Stable
    chunks: list[list[Row]]

    @property
    def rows(self) -> int:
        """How many rows it brings."""
        return sum(map(len, self.chunks))


def seal(
    identity: Identity,
    *,
    since: VersionVector,
    cursor: VersionVector,
    stable: Stable,
    complete: bool,
    chunks: Sequence[bytes],
    counts: Mapping[str, int],
    generated_at_ms: int,
    cluster_epoch: int,
    limit: int,
) -> bytes:
    """The document, signed with this node's key."""
    unsigned = Envelope(
        cluster=identity.cluster.hex(),
        source_node_id=identity.node_id,
        generated_at_ms=generated_at_ms,
        cluster_epoch=cluster_epoch,
        limit=limit,
        since=since.to_wire(),
        cursor=cursor.to_wire(),
        stable=stable.to_wire(),
        complete=complete,
        counts=dict(counts),
        chunks=list(chunks),
        certificate=msgspec.msgpack.encode(identity.certificate),
    )
    content = msgspec.json.encode(unsigned)
    signed = msgspec.structs.replace(unsigned, digest=_digest(content), signature=identity.sign(_DOMAIN, content))
    return msgspec.json.encode(signed)


def open_envelope(authority: Authority, data: bytes) -> Opened:
    """What a document brings, or ConfigError with the reason; then nothing of it may be used."""
    envelope = _decoded(data)
    if envelope.cluster != authority.cluster.hex():
        raise ConfigError(
            f"the envelope belongs to mesh {envelope.cluster[:16]}, this node to {authority.cluster.hex()}"
        )
    content = msgspec.json.encode(msgspec.structs.replace(envelope, digest="", signature=b""))
    if envelope.digest != _digest(content):
        raise ConfigError("the envelope was altered since it was written (its digest differs): copy the file again")
    try:
        certificate = _certificate_decoder.decode(envelope.certificate)
        authority.check(certificate)
        if certificate.role != "node" or certificate.name != envelope.source_node_id:
            raise RecordError(f"it says {envelope.source_node_id[:64]!r}, but {certificate.name!r} signed it")
        verify(certificate, _DOMAIN, content, envelope.signature)
        return _opened(envelope)
    except _DECODE_ERRORS as error:
        raise ConfigError(f"the envelope carries no usable certificate ({error}): export it again") from None
    except RecordError as error:
        raise ConfigError(f"the envelope does not hold ({error}): export it again at a node of this mesh") from None


def _decoded(data: bytes) -> Envelope:
    if len(data) > ENVELOPE_BYTES_MAX:
        raise ConfigError(
            f"an envelope of {len(data)} bytes; at most {ENVELOPE_BYTES_MAX} are taken: export with a smaller --limit"
        )
    try:
        version = _header_decoder.decode(data).schema_version
        if version != SCHEMA_VERSION:
            raise ConfigError(_foreign_schema(version))
        return _decoder.decode(data)
    except _DECODE_ERRORS as error:
        raise ConfigError(f"the file is no whole replication envelope ({error}): copy or export it again") from None


def _foreign_schema(version: str) -> str:
    if version == "relaymesh.replication.v1":
        return (
            "relaymesh.replication.v1 names rows by wall time only, without the origins and epochs that a merge needs: "
            "it cannot be imported. Submit the work anew"
        )
    return f"an envelope of schema {version[:64]!r}; this release reads {SCHEMA_VERSION}: export it with this release"


def _opened(envelope: Envelope) -> Opened:
    if len(envelope.chunks) > CHUNKS_MAX or sum(map(len, envelope.chunks)) > CHUNKS_BYTES_MAX:
        raise RecordError(f"it holds more than {CHUNKS_MAX} chunks or {CHUNKS_BYTES_MAX} bytes of rows")
    since, cursor = VersionVector.from_wire(envelope.since), VersionVector.from_wire(envelope.cursor)
    stable = Stable.from_wire(envelope.stable)
    return Opened(envelope, since, cursor, stable, [decode_rows(chunk, limits=_LIMITS) for chunk in envelope.chunks])


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32, person=b"relaymesh-envlp").hexdigest()

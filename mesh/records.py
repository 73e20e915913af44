"""Member records: what a node says about itself, signed by itself, verifiable by anyone who knows the CA key.

Promises: `RecordVerifier.verify` returns a record only if its subject's certificate was issued by our CA and its key
signed exactly these bytes. So nobody but the subject can move its address, raise its incarnation or make it leave, not
even a holder of the ring key. Records are ordered by (life, incarnation); time plays no part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import msgspec

from mesh.ca_statements import NUMBER_MAX
from mesh.errors import ConfigError, RecordError
from mesh.identity import Authority, Bytes64, Certificate, Identity, verify
from mesh.ids import BOOT_MAX, Address, Life, make_life, node_tag
from mesh.messages import RECORD_BYTES_MAX, Incarnation
from mesh.protocol import SILENT, Speaks
from mesh.sealing import PROCESS_BITS

HOST_CHARS_MAX = 100  # of an advertised host name; two of them and a certificate fit half a packet
RECORDS_CACHED_MAX = 4_096  # verified records by their bytes: a gossiped record arrives a dozen times

_DOMAIN = b"relaymesh member"
_FIELDS_ALWAYS = 11  # of a record's body, up to `speaks`

# Visible ASCII only: a host goes on to the resolver and into log lines of every member.
_VISIBLE = re.compile(r"[!-~]+")
_Host = Annotated[str, msgspec.Meta(min_length=1, max_length=HOST_CHARS_MAX, pattern=r"^[!-~]+\Z")]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]


class RecordBody(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The signed part."""

    certificate: Certificate
    boot: Annotated[int, msgspec.Meta(ge=0, le=BOOT_MAX)]
    """Counts the starts of this node; persisted before the first packet of a start."""
    incarnation: Incarnation
    """Counts what this start said about itself; raised to refute, to leave, to change an address or a flag."""
    process: Annotated[int, msgspec.Meta(ge=0, lt=1 << PROCESS_BITS)]
    """Random per start: two processes with one life are a cloned disk."""
    left: bool
    store_failed: bool
    host: _Host
    port: _Port
    rpc_host: _Host
    rpc_port: _Port
    speaks: Speaks = SILENT
    """What its release understands. From here on fields have defaults: records of older releases end before them."""
    ring: Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)] = 0
    """Number of the newest key ring that this node has installed durably. Nodes of older releases have ring 0."""
    revocations: Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)] = 0
    """Number of the newest list of revocations that it enforces."""
    authorities: Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)] = 0
    """Number of the newest statement that it follows about which CAs are trusted."""


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    body: bytes
    signature: Bytes64


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """A verified record, and the bytes that prove it."""

    body: RecordBody
    raw: bytes
    tag: bytes

    @property
    def node_id(self) -> str:
        """The subject's certified name."""
        return self.body.certificate.name

    @property
    def life(self) -> Life:
        """The subject's life, see `mesh.ids.make_life`."""
        return make_life(self.body.certificate.enrolment, self.body.boot)

    @property
    def address(self) -> Address:
        """Where it receives datagrams."""
        return Address(self.body.host, self.body.port)

    @property
    def rpc_address(self) -> Address:
        """Where it accepts streams."""
        return Address(self.body.rpc_host, self.body.rpc_port)


def sign_record(identity: Identity, body: RecordBody) -> MemberRecord:
    """Sign our own record. ConfigError when an advertised host name is too long to be gossiped."""
    for host in (body.host, body.rpc_host):
        if not (_VISIBLE.fullmatch(host) and len(host) <= HOST_CHARS_MAX):
            raise ConfigError(
                f"advertised host {host[:40]!r}: give 1 to {HOST_CHARS_MAX} visible ASCII characters, or the IP address"
            )
    content = _encoded(body)
    raw = msgspec.msgpack.encode(_Envelope(content, identity.sign(_DOMAIN, content)))
    assert len(raw) <= RECORD_BYTES_MAX, len(raw)
    return MemberRecord(body, raw, node_tag(body.certificate.name))


def _encoded(body: RecordBody) -> bytes:
    # Numbers at the end that are 0 are left out: a mesh that never rotated anything speaks as it always did.
    fields = list(msgspec.structs.astuple(body))
    while fields[-1] == 0 and len(fields) > _FIELDS_ALWAYS:
        fields.pop()
    return msgspec.msgpack.encode(fields)


class RecordVerifier:
    """Verifies records against the mesh's CAs, remembering those that held. What was revoked since holds no more."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self._envelopes = msgspec.msgpack.Decoder(_Envelope)
        self._bodies = msgspec.msgpack.Decoder(RecordBody)
        self._verified: dict[bytes, MemberRecord] = {}

    def verify(self, raw: bytes) -> MemberRecord:
        """The record in these bytes, or RecordError."""
        known = self._verified.get(raw)
        if known is not None:
            self.authority.check(known.body.certificate)
            return known
        if len(raw) > RECORD_BYTES_MAX:
            raise RecordError("member record is too long")
        try:
            envelope = self._envelopes.decode(raw)
            body = self._bodies.decode(envelope.body)
        # UnicodeDecodeError: msgspec lets it through for text that is no UTF-8. RecursionError: nested arrays.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise RecordError("member record cannot be read") from None
        if body.certificate.role != "node":
            raise RecordError(f"{body.certificate.name!r} is no node and cannot be a member")
        self.authority.check(body.certificate)
        verify(body.certificate, _DOMAIN, envelope.body, envelope.signature)
        record = MemberRecord(body, raw, node_tag(body.certificate.name))
        if len(self._verified) >= RECORDS_CACHED_MAX:
            del self._verified[next(iter(self._verified))]
        self._verified[raw] = record
        return record

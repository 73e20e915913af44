"""What the mesh's CA has said: numbered, signed statements that any member may carry to any other.

Promises: a `Statement` that `open_statement` returned was signed by the holder of the CA key for this mesh, this kind
and this number. Of two statements of a kind the later one is in force on every node that heard of both: the higher
number, and of equal numbers (the mesh directory was restored, or used twice) the greater digest. Why the CA and nobody
else signs: who is a member and what members share is one decision, and a stolen operator identity must not be able to
make it. When there are several CAs, any one that is trusted may speak of the ring and of revocations; which they are is
itself such a statement, see `mesh.authorities`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.errors import RecordError
from mesh.identity import Authority, Bytes8, Bytes64, sign_as_ca, signed_as_ca

STATEMENT_BYTES_MAX = 1 << 20
"""Of a whole signed statement: 4,096 revocations of the longest names are a third of it."""
NUMBER_MAX = (1 << 31) - 1
KINDS = ("ring", "revocations", "authorities")

_DOMAIN = b"relaymesh ca statement"


class _Wire(msgspec.Struct, frozen=True, array_like=True):
    kind: Annotated[str, msgspec.Meta(max_length=16)]
    cluster: Bytes8
    number: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
    content: bytes
    signature: Bytes64


_decoder = msgspec.msgpack.Decoder(_Wire)


@dataclass(frozen=True, slots=True)
class Statement:
    """A verified statement, and the bytes that prove it."""

    number: int
    content: bytes
    raw: bytes

    @property
    def order(self) -> tuple[int, bytes]:
        """Greater is later."""
        return self.number, hashlib.sha256(self.raw).digest()


NOTHING_SAID: tuple[int, bytes] = (0, b"")
"""The order of what every mesh begins with."""


def sign_statement(ca_key: Ed25519PrivateKey, *, cluster: bytes, kind: str, number: int, content: bytes) -> bytes:
    """A statement of the CA, as bytes that `open_statement` accepts."""
    assert kind in KINDS, kind
    assert 1 <= number <= NUMBER_MAX, number
    signature = sign_as_ca(ca_key, _DOMAIN, _signed(kind, cluster, number, content))
    return msgspec.msgpack.encode(_Wire(kind, cluster, number, content, signature))


def open_statement(authority: Authority, raw: bytes, kind: str) -> Statement:
    """The statement in these bytes; RecordError unless a CA of ours made it, for this mesh and this kind."""
    wire = _read(authority.cluster, raw, kind)
    authority.check_statement(_DOMAIN, _signed(wire.kind, wire.cluster, wire.number, wire.content), wire.signature)
    return Statement(wire.number, wire.content, raw)


def unproven_statement(cluster: bytes, raw: bytes, kind: str) -> Statement:
    """What these bytes claim to be, of this mesh and this kind; nobody's signature was looked at."""
    wire = _read(cluster, raw, kind)
    return Statement(wire.number, wire.content, raw)


def open_statement_of(ca_public_key: bytes, cluster: bytes, raw: bytes, kind: str) -> Statement:
    """The statement in these bytes; RecordError unless the holder of this very CA key made it."""
    wire = _read(cluster, raw, kind)
    signed = _signed(wire.kind, wire.cluster, wire.number, wire.content)
    if not signed_as_ca(ca_public_key, _DOMAIN, signed, wire.signature):
        raise RecordError("a CA statement is forged or damaged")
    return Statement(wire.number, wire.content, raw)


def _read(cluster: bytes, raw: bytes, kind: str) -> _Wire:
    if len(raw) > STATEMENT_BYTES_MAX:
        raise RecordError(f"a CA statement of {len(raw)} bytes; at most {STATEMENT_BYTES_MAX} are allowed")
    try:
        wire = _decoder.decode(raw)
    # UnicodeDecodeError: msgspec lets it through for text that is no UTF-8. RecursionError: nested arrays.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RecordError("a CA statement cannot be read: it is damaged, or of another kind") from None
    if wire.cluster != cluster:
        raise RecordError("a CA statement belongs to another mesh")
    if wire.kind != kind:
        raise RecordError(f"a CA statement is about {wire.kind!r}, not about {kind!r}")
    return wire


def _signed(kind: str, cluster: bytes, number: int, content: bytes) -> bytes:
    return msgspec.msgpack.encode((kind, cluster, number, content))

"""Rows on their way through gossip: whole requests of one origin, signed by the node that wrote them.

Any member relays a bundle, and holding the gossip key is not enough to write a row: the receiver checks that the
mesh's CA certified the signer, and that every row was stamped by an origin of that very node. A bundle also says which
sequence numbers it completes, which the receiver notes as seen in the transaction that merges its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from mesh.errors import RecordError
from mesh.identity import Authority, Certificate, Identity, verify
from mesh.ids import Origin
from mesh.row_codec import INT_MAX, RowLimits, decode_rows, encode_rows
from mesh.rows import Row

BUNDLE_BYTES_MAX = 64 << 10
"""What a receiver looks at. A sender stops far below: a bundle must fit into one datagram."""
BUNDLE_ROWS_MAX = 256
BUNDLE_SPAN_MAX = 4_096
"""Sequence numbers that one bundle may complete. A larger claim is no request of ours."""

_DOMAIN = b"relaymesh row bundle"
_LIMITS = RowLimits(bytes_max=BUNDLE_BYTES_MAX, rows_max=BUNDLE_ROWS_MAX)
_Seq = Annotated[int, msgspec.Meta(ge=1, le=INT_MAX)]


class _WireBundle(msgspec.Struct, frozen=True, array_like=True):
    certificate: Certificate
    lo: _Seq
    hi: _Seq
    rows: bytes
    signature: bytes


_decoder = msgspec.msgpack.Decoder(_WireBundle)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Rows whose origin has been proven, and the sequence numbers `lo..hi` that they complete."""

    rows: list[Row]
    origin: Origin
    lo: int
    hi: int


def make_bundle(identity: Identity, rows: Sequence[Row], lo: int, hi: int) -> bytes:
    """Sign whole requests of our own. `lo..hi` is their range, which may have numbers without a row.

    The caller looks at the size: what is too large for its datagram is not sent, but pulled.
    """
    assert rows, "an empty bundle says nothing"
    assert all(row.origin == rows[0].origin and lo <= row.seq <= hi for row in rows), (lo, hi)
    assert rows[0].origin.node == identity.node_id, "only the writer of rows can sign them"
    encoded = encode_rows(rows)
    signature = identity.sign(_DOMAIN, _signed(lo, hi, encoded))
    return msgspec.msgpack.encode(_WireBundle(identity.certificate, lo, hi, encoded, signature))


def open_bundle(authority: Authority, data: bytes) -> Bundle:
    """The rows of a bundle that holds in every respect, else RecordError."""
    if len(data) > BUNDLE_BYTES_MAX:
        raise RecordError(f"a bundle of {len(data)} bytes; at most {BUNDLE_BYTES_MAX} are allowed")
    try:
        wire = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"a bundle cannot be decoded: {error}") from None
    # Signatures first: nothing that a stranger wrote is looked at further.
    authority.check(wire.certificate)
    if wire.certificate.role != "node":
        raise RecordError(f"{wire.certificate.name!r} is no node, and writes no rows")
    verify(wire.certificate, _DOMAIN, _signed(wire.lo, wire.hi, wire.rows), wire.signature)
    rows = decode_rows(wire.rows, limits=_LIMITS)
    _check_rows(rows, wire)
    return Bundle(rows, rows[0].origin, wire.lo, wire.hi)


def _check_rows(rows: Sequence[Row], wire: _WireBundle) -> None:
    if not rows:
        raise RecordError("a bundle without rows")
    origin = rows[0].origin
    if origin.node != wire.certificate.name:
        raise RecordError(f"rows of {origin.node!r} signed by {wire.certificate.name!r}")
    # Even its own writer must not make everybody note more as seen than one request could hold: a wrong claim would
    # hide rows that nobody then asks for.
    if wire.hi - wire.lo >= BUNDLE_SPAN_MAX:
        raise RecordError(f"a bundle claims to complete {wire.hi - wire.lo + 1} rows")
    for row in rows:
        if row.origin != origin or not wire.lo <= row.seq <= wire.hi:
            raise RecordError("a bundle with rows of another origin, or outside its range")


def _signed(lo: int, hi: int, rows: bytes) -> bytes:
    # Fixed widths before the rows: no two bundles have the same bytes here.
    return lo.to_bytes(8, "big") + hi.to_bytes(8, "big") + rows

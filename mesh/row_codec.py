"""Rows as bytes, and digests of rows: the one canonical form that all replicas agree on.

Promises: what `encode_rows` wrote, `decode_rows` gives back equal; bytes from outside raise nothing but RecordError and
never make this process allocate more than a small multiple of their own size; equal rows have equal digests on every
node, whatever release it runs, because unknown columns are part of the row and absent ones are not written as NULL.

It does not know which columns a table declares: `value_problem` tells whether a row's values can be kept.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from mesh.errors import RecordError
from mesh.ids import NODE_ID_CHARS_MAX, Origin
from mesh.rows import Row
from mesh.tables import ColumnKind, Table, Value

INT_MAX = (1 << 63) - 1  # the largest integer that SQLite keeps; larger ones would silently become floats there
INT_MIN = -(1 << 63)

KEY_CHARS_MAX = 512
NAMESPACE_CHARS_MAX = 63  # as mesh.ids.parse_namespace allows
TABLE_CHARS_MAX = 64
COLUMN_CHARS_MAX = 64
COLUMNS_MAX = 128
"""Declared and unknown columns together: room for years of migrations, too little for a flood."""
VALUES_BYTES_MAX = 16 << 20
"""All values of one row: the largest submit (16 MiB) fits into one row."""
ROW_BYTES_MAX = VALUES_BYTES_MAX + (64 << 10)
"""One encoded row: its values, and 64 KiB for names and metadata, which are bounded well below that."""

DIGEST_PART_BITS = 40
"""SQLite's SUM refuses to pass 2**63, so 80 bits are kept as two parts: 8 million rows can be summed."""

_COLUMN_NAME = re.compile(r"[a-z][a-z0-9_]*")
_NAMESPACE_PATTERN = r"^[a-z0-9_][a-z0-9._-]*\Z"  # "_" begins the mesh's own; "\Z", since "$" allows a newline
_NODE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z"


@dataclass(frozen=True, slots=True)
class RowLimits:
    """What one encoded group of rows may hold."""

    bytes_max: int
    rows_max: int


CHUNK_LIMITS = RowLimits(bytes_max=2 * ROW_BYTES_MAX, rows_max=100_000)
"""For a chunk of a pull: whole requests only, so one chunk may be as large as the largest request."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=INT_MAX)]


class _WireOrigin(msgspec.Struct, frozen=True, array_like=True):
    node: Annotated[str, msgspec.Meta(min_length=1, max_length=NODE_ID_CHARS_MAX, pattern=_NODE_PATTERN)]
    incarnation: _Count


class _WireRow(msgspec.Struct, frozen=True, array_like=True):
    # An array may grow at its end: a newer release's extra fields are skipped by msgspec, so this order is for ever.
    table: Annotated[str, msgspec.Meta(min_length=1, max_length=TABLE_CHARS_MAX)]
    namespace: Annotated[str, msgspec.Meta(min_length=1, max_length=NAMESPACE_CHARS_MAX, pattern=_NAMESPACE_PATTERN)]
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=KEY_CHARS_MAX)]
    origin_index: _Count
    seq: Annotated[int, msgspec.Meta(ge=1, le=INT_MAX)]
    hlc: _Count
    deleted: bool
    generation: _Count
    rank: _Count
    cluster_epoch: _Count
    lease_epoch: _Count
    lease_hlc: _Count
    values: dict[str, Any]  # narrowed in _check_scalars: msgspec cannot decode a union of text and bytes


class _WireRows(msgspec.Struct, frozen=True, array_like=True):
    # Origins are spelled out once; a chunk of 1,000 rows usually has a handful.
    origins: list[_WireOrigin]
    rows: list[_WireRow]


_wire_decoder = msgspec.msgpack.Decoder(_WireRows)
_values_decoder = msgspec.msgpack.Decoder(dict[str, Any])
# Sorting costs a little, so it is done only where equal content must give equal bytes.
_encoder = msgspec.msgpack.Encoder()
_canonical_encoder = msgspec.msgpack.Encoder(order="sorted")

# msgspec reports broken text and bottomless nesting by Python's own errors.
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_SCALARS: frozenset[type] = frozenset({str, int, float, bytes, type(None)})
_KINDS: dict[ColumnKind, type] = {"text": str, "int": int, "real": float, "blob": bytes}


def encode_rows(rows: Sequence[Row]) -> bytes:
    """The rows as bytes for a peer or for keeping. Order is preserved."""
    indexes: dict[Origin, int] = {}
    wire_rows = [
        _WireRow(
            table=row.table,
            namespace=row.namespace,
            key=row.key,
            origin_index=indexes.setdefault(row.origin, len(indexes)),
            seq=row.seq,
            hlc=row.hlc,
            deleted=row.deleted,
            generation=row.generation,
            rank=row.rank,
            cluster_epoch=row.cluster_epoch,
            lease_epoch=row.lease_epoch,
            lease_hlc=row.lease_hlc,
            values=row.values,
        )
        for row in rows
    ]
    origins = [_WireOrigin(node=origin.node, incarnation=origin.incarnation) for origin in indexes]
    return _encoder.encode(_WireRows(origins=origins, rows=wire_rows))


def decode_rows(data: bytes, *, limits: RowLimits) -> list[Row]:
    """The rows in `data`, or RecordError. The writer of a row is always its origin's node.

    Values are checked for being scalars only; whether a table can keep them is `value_problem`'s question, since a
    version that this node cannot keep must still count as seen.
    """
    if len(data) > limits.bytes_max:
        raise RecordError(f"{len(data)} bytes of rows are more than the {limits.bytes_max} allowed here")
    try:
        wire = _wire_decoder.decode(data)
    except _DECODE_ERRORS as error:
        raise RecordError(f"rows cannot be decoded: {error}") from None
    if len(wire.rows) > limits.rows_max:
        raise RecordError(f"{len(wire.rows)} rows are more than the {limits.rows_max} allowed here")
    # One object per origin: a chunk of thousands of rows compares and hashes few.
    origins = [Origin(origin.node, origin.incarnation) for origin in wire.origins]
    return [_from_wire(row, origins) for row in wire.rows]


def _from_wire(wire: _WireRow, origins: Sequence[Origin]) -> Row:
    if wire.origin_index >= len(origins):
        raise RecordError(f"a row names origin {wire.origin_index} of {len(origins)}")
    _check_scalars(wire.values)
    origin = origins[wire.origin_index]
    return Row(
        table=wire.table,
        namespace=wire.namespace,
        key=wire.key,
        generation=wire.generation,
        deleted=wire.deleted,
        rank=wire.rank,
        cluster_epoch=wire.cluster_epoch,
        lease_epoch=wire.lease_epoch,
        lease_hlc=wire.lease_hlc,
        hlc=wire.hlc,
        node=origin.node,
        origin=origin,
        seq=wire.seq,
        # NULL and absent are one thing, and absent is its canonical form.
        values={name: value for name, value in wire.values.items() if value is not None},
    )


def _check_scalars(values: Mapping[str, Any]) -> None:
    if len(values) > COLUMNS_MAX:
        raise RecordError(f"a row with {len(values)} columns; at most {COLUMNS_MAX} are allowed")
    for name, value in values.items():
        # Exact types: a bool is an int to Python, and would come back from SQLite as one, with another digest.
        if type(value) not in _SCALARS:
            raise RecordError(f"column {name[:COLUMN_CHARS_MAX]!r} holds a {type(value).__name__}")


def encode_values(values: Mapping[str, Value]) -> bytes:
    """Columns as canonical bytes: sorted by name, so that equal values give equal bytes on every node."""
    return _canonical_encoder.encode(values)


def decode_values(data: bytes) -> dict[str, Value]:
    """What `encode_values` wrote, or RecordError."""
    try:
        values = _values_decoder.decode(data)
    except _DECODE_ERRORS as error:
        raise RecordError(f"columns cannot be decoded: {error}") from None
    _check_scalars(values)
    return values


def row_digest(row: Row) -> tuple[int, int]:
    """Two 40-bit numbers over everything a version says. Always computed here, never taken from a peer."""
    # The writer's node is part of the origin. None never occurs in a stamped row (checked in value_problem and put).
    data = _canonical_encoder.encode(
        (
            row.table,
            row.namespace,
            row.key,
            row.generation,
            row.deleted,
            row.rank,
            row.cluster_epoch,
            row.lease_epoch,
            row.lease_hlc,
            row.hlc,
            row.origin,
            row.seq,
            row.values,
        )
    )
    # 80 bits: among 10**9 rows two wrong ones cancel each other in a sum with a chance of about 10**-15.
    number = int.from_bytes(hashlib.blake2b(data, digest_size=10, person=b"relaymesh-row").digest(), "big")
    return number >> DIGEST_PART_BITS, number & ((1 << DIGEST_PART_BITS) - 1)


def content_digest(values: Mapping[str, Value]) -> bytes:
    """Sixteen bytes over the values alone, without any stamp: equal for equal content."""
    return hashlib.blake2b(encode_values(values), digest_size=16, person=b"relaymesh-value").digest()


def value_problem(table: Table, values: Mapping[str, Value]) -> str | None:
    """Why this table cannot keep these values byte-true, or None when it can.

    Columns that the table does not declare are allowed: a newer release wrote them.
    """
    # Byte-true matters beyond tidiness: digests are taken before a row is stored and again after it was read, and two
    # replicas that disagree about one bit would report a divergence for ever.
    kinds = table.kinds
    if len(values) > COLUMNS_MAX:
        return f"{len(values)} columns, at most {COLUMNS_MAX}"
    size = 0
    for name, value in values.items():
        kind = kinds.get(name)
        # The three usual cases without a call: every write and every merge walks over all its columns here.
        if kind is not None and type(value) is _KINDS[kind]:
            if (isinstance(value, str) and value.isascii()) or isinstance(value, bytes):
                size += len(value)
                continue
            if isinstance(value, int) and INT_MIN <= value <= INT_MAX:
                size += 8
                continue
        if kind is None:
            if len(name) > COLUMN_CHARS_MAX or not _COLUMN_NAME.fullmatch(name):
                return f"column name {name[:COLUMN_CHARS_MAX]!r} is not usable"
        elif type(value) is not _KINDS[kind]:
            return f"column {name} holds a {type(value).__name__}, not a {kind}"
        problem = _scalar_problem(value)
        if problem is not None:
            return f"column {name} {problem}"
        size += _scalar_bytes(value)
    return f"{size} bytes of values, at most {VALUES_BYTES_MAX}" if size > VALUES_BYTES_MAX else None


def _scalar_problem(value: Value) -> str | None:
    if isinstance(value, str):
        # A half of a surrogate pair is no text to SQLite or to a peer. Decoded rows cannot hold one, local input can.
        return None if value.isascii() or _is_unicode(value) else "holds text that is not valid Unicode"
    if isinstance(value, bytes):
        return None
    if isinstance(value, float):
        # SQLite stores NaN as NULL and -0.0 as 0.0: what comes back would have another digest.
        broken = math.isnan(value) or (value == 0.0 and math.copysign(1.0, value) < 0)
        return "holds NaN or negative zero" if broken else None
    if value is None:
        return "holds NULL, whose canonical form is to be absent"
    return None if INT_MIN <= value <= INT_MAX else "holds an integer of more than 64 bits"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _scalar_bytes(value: Value) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    return 8


def row_bytes(row: Row) -> int:
    """Roughly what a row takes when encoded: close enough to keep a chunk near its limit."""
    names = sum(map(len, row.values)) + len(row.table) + len(row.namespace) + len(row.key)
    return sum(map(_scalar_bytes, row.values.values())) + names + 64

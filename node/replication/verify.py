"""Proves that two replicas hold the same rows, and repairs them where they do not.

Version vectors say what a node believes to have. Only the rows themselves can contradict that: after a bug, a damaged
disk or an edit by hand. So at equal vectors two nodes compare count and digest sum per origin, over the tables that
both releases know; a mismatch is counted, narrowed down by ranges of sequence numbers (a lost tail is one range, then),
and the differing rows are fetched and merged. Both sides verify, so a row that only we have travels when the peer asks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import msgspec

from mesh.ids import Address, Origin
from mesh.protocol import SILENT
from mesh.row_codec import CHUNK_LIMITS, INT_MAX, decode_rows, encode_rows, row_bytes
from mesh.rows import Row
from mesh.stability import Stable
from mesh.version_vector import VersionVector
from node.replication.calls import Caller, decode
from node.storage.reader import Reader
from node.storage.store import Store
from node.storage.transaction import Arrival, Transaction

log = logging.getLogger(__name__)

BRANCHES = 16
"""Subranges per question: 7 round trips narrow 10^8 rows down to single ones (reference: replication, section 2)."""
LEAF_ROWS_MAX = 64
ANSWER_BYTES_MAX = 1 << 20
"""Where an answer of rows ends; one large row may exceed it."""
ROUNDS_MAX = 4096
"""A bound on questions per verification; what is left is found by the next one."""

Seq = Annotated[int, msgspec.Meta(ge=0, le=INT_MAX)]
"""A larger number is none of ours, and none to SQLite."""

Sum = tuple[int, int, int]
"""Row count and the two 40-bit digest sums."""


class VerifyRequest(msgspec.Struct, array_like=True):
    """Our vector and sums; the answer says which origins differ, or that the vectors do."""

    vector: bytes
    sums: list[tuple[str, int, Sum]]
    schema: int = SILENT.schema
    """The sums cover the tables that a release of this schema knows: those that both sides can have."""
    stable: bytes = Stable().digest()
    """The digest of what we know to be stable: nodes that know other things may have forgotten other rows."""


class VerifyAnswer(msgspec.Struct, array_like=True):
    """`same_vector` False means that comparing makes no sense yet: pull first."""

    same_vector: bool
    differing: list[tuple[str, int]]


class RangesRequest(msgspec.Struct, array_like=True):
    """Sums of these ranges of one origin, please."""

    origin: tuple[str, Seq]
    ranges: list[tuple[Seq, Seq]]
    schema: int = SILENT.schema


class RowsRequest(msgspec.Struct, array_like=True):
    """The rows of one origin with sequences in `lo..hi`."""

    origin: tuple[str, Seq]
    lo: Seq
    hi: Seq


class VerifyResult(msgspec.Struct, frozen=True):
    """What one verification found."""

    compared: bool
    differing_ranges: int = 0
    repaired_rows: int = 0


async def serve_verify(store: Store, body: bytes) -> bytes:
    """Compare a peer's sums with ours."""
    request = decode(body, VerifyRequest)
    theirs = {Origin(node, incarnation): tuple(total) for node, incarnation, total in request.sums}
    vector, sums = await store.read(partial(_vector_and_sums, schema=request.schema))
    same_vector = VersionVector.from_wire(request.vector).digest() == vector.digest()
    if not same_vector or request.stable != store.stable.digest() or store.has_garbage:
        return msgspec.msgpack.encode(VerifyAnswer(False, []))
    origins = sorted(set(sums) | set(theirs))
    differing = [origin for origin in origins if sums.get(origin, (0, 0, 0)) != theirs.get(origin, (0, 0, 0))]
    return msgspec.msgpack.encode(VerifyAnswer(True, [(origin.node, origin.incarnation) for origin in differing]))


async def serve_ranges(store: Store, body: bytes) -> bytes:
    """Our sums for the ranges that a peer asks about."""
    request = decode(body, RangesRequest)
    origin = Origin(*request.origin)
    ranges = request.ranges[:BRANCHES]
    sums = await store.read(partial(_range_sums, origin=origin, ranges=ranges, schema=request.schema))
    return msgspec.msgpack.encode(sums)


async def serve_rows(store: Store, body: bytes) -> bytes:
    """Our rows in a range: as many of the first ones as an answer holds. Whoever wants the rest asks on behind them.

    Of a range wider than a leaf only the first leaf is looked at: nobody may ask for everything at once.
    """
    request = decode(body, RowsRequest)
    return encode_rows(await store.read(partial(_first_rows, request=request)))


def _first_rows(reader: Reader, *, request: RowsRequest) -> list[Row]:
    rows: list[Row] = []
    size = 0
    for seq in range(request.lo, min(request.hi, request.lo + LEAF_ROWS_MAX - 1) + 1):
        for row in reader.rows_in_range(Origin(*request.origin), seq, seq):
            size += row_bytes(row)
            if rows and size > ANSWER_BYTES_MAX:
                return rows
            rows.append(row)
    return rows


async def verify(
    store: Store, calls: Caller, node_id: str, address: Address, *, schema: int | None = None
) -> VerifyResult:
    """Compare our replica with a peer's and merge what differs. Raises what the calls raise.

    `schema` is the newest that both releases know, by default ours. The other side holds rows of later tables aside.
    """
    if store.has_garbage:
        return VerifyResult(False)
    schema = store.schema if schema is None else schema
    vector, sums = await store.read(partial(_vector_and_sums, schema=schema))
    told = [(origin.node, origin.incarnation, total) for origin, total in sorted(sums.items())]
    request = VerifyRequest(vector.to_wire(), told, schema, store.stable.digest())
    answer = await calls.call(address, "verify", msgspec.msgpack.encode(request), expect=node_id)
    verdict = decode(answer, VerifyAnswer)
    if not verdict.same_vector:
        return VerifyResult(False)
    differing = repaired = 0
    for node, incarnation in verdict.differing:
        origin = Origin(node, incarnation)
        log.error("replicas differ at equal vectors: origin %s of %s, compared with %s", incarnation, node, node_id)
        peer = _Peer(node_id, address, schema)
        ranges, rows = await _repair_origin(store, calls, peer, origin, vector.head(origin))
        differing += ranges
        repaired += rows
    return VerifyResult(True, differing, repaired)


@dataclass(frozen=True, slots=True)
class _Peer:
    """Whom we compare with, and by which tables."""

    node_id: str
    address: Address
    schema: int


async def _repair_origin(store: Store, calls: Caller, peer: _Peer, origin: Origin, head: int) -> tuple[int, int]:
    pending, differing, repaired = [(1, head)], 0, 0
    for _ in range(ROUNDS_MAX):
        if not pending:
            break
        lo, hi = pending.pop()
        if hi - lo < LEAF_ROWS_MAX:
            differing += 1
            body = msgspec.msgpack.encode(RowsRequest((origin.node, origin.incarnation), lo, hi))
            answer = await calls.call(peer.address, "rows", body, expect=peer.node_id)
            rows = decode_rows(answer, limits=CHUNK_LIMITS)
            verdicts = await store.write(partial(_merge_all, rows=rows), remote=True, rows=len(rows))
            repaired += verdicts.count("applied")
            if rows and lo <= rows[-1].seq < hi:
                pending.append((rows[-1].seq + 1, hi))  # large rows: the answer was full before its range ended
            continue
        ranges = split(lo, hi)
        body = msgspec.msgpack.encode(RangesRequest((origin.node, origin.incarnation), ranges, peer.schema))
        theirs = decode(await calls.call(peer.address, "ranges", body, expect=peer.node_id), list[Sum])
        ours = await store.read(partial(_range_sums, origin=origin, ranges=ranges, schema=peer.schema))
        pending.extend(each for each, mine, other in zip(ranges, ours, theirs, strict=False) if mine != other)
    return differing, repaired


def split(lo: int, hi: int) -> list[tuple[int, int]]:
    """At most BRANCHES adjacent ranges that cover `lo..hi` exactly, none empty."""
    width = -(-(hi - lo + 1) // BRANCHES)
    return [(start, min(start + width - 1, hi)) for start in range(lo, hi + 1, width)]


def _range_sums(reader: Reader, *, origin: Origin, ranges: list[tuple[int, int]], schema: int) -> list[Sum]:
    return [reader.range_sum(origin, lo, hi, schema) for lo, hi in ranges]


def _merge_all(tx: Transaction, *, rows: list[Row]) -> list[str]:
    return [tx.merge(row, Arrival.REPAIRED) for row in rows]


def _vector_and_sums(reader: Reader, *, schema: int) -> tuple[VersionVector, dict[Origin, Sum]]:
    return reader.vector(), reader.sums(schema)

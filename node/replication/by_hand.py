"""Replication through files: what an export holds, and how an import merges it.

An export that was cut short by a limit, or left out what is older than a time, claims the dots of its own rows only, so
a next one since its cursor brings the rest. An import merges chunk after chunk and may stop anywhere: merging again
changes nothing. What the envelope's cursor claims beyond its rows is joined in the transaction of the last chunk, and
only where everything that the envelope builds upon (`since`) is here.

Like a pull, an envelope carries what its source knew to be stable, which is adopted before its rows (`mesh.stability`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

from mesh.errors import ConfigError, LimitError
from mesh.hlc import stamp_ms
from mesh.identity import Identity
from mesh.row_codec import encode_rows, row_digest
from mesh.rows import Row
from mesh.stability import Stable, was_away_too_long
from mesh.version_vector import VersionVector
from node.replication.envelope import CHUNKS_BYTES_MAX, Opened, seal
from node.replication.pull import CHUNK_ROWS_MAX, read_chunk
from node.storage.reader import PullCursor, Reader
from node.storage.store import Store
from node.storage.transaction import Transaction
from node.work import transitions


@dataclass(frozen=True, slots=True)
class Exported:
    """An envelope, and what did not go into it."""

    document: bytes
    older: int
    """Rows that were left out for their age."""
    cut_off: bool
    """Whether a limit ended it before everything was looked at."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What one import came to."""

    rows: int
    outcomes: dict[str, int]
    """Rows by what `Transaction.merge` said of them."""
    vector_joined: bool
    """False when rows that the envelope builds upon are missing here."""


@dataclass(frozen=True, slots=True)
class Compared:
    """How an envelope relates to this replica, counted in rows; nothing was changed."""

    same: int
    overwritten: int
    """Another version of the row is current here, and this one was seen."""
    missing: int
    """Neither stored nor seen here."""
    differing: int
    """The same dot with other content: a broken promise, see `relaymesh maintenance`."""


async def export(
    store: Store, identity: Identity, since: VersionVector, *, rows_max: int, since_ms: int = 0
) -> Exported:
    """An envelope of about `rows_max` rows that the holder of `since` lacks, whole requests only.

    Rows whose stamp is before `since_ms`, in milliseconds since 1970, are left out: all rows of a request have one
    stamp, so no request is split. LimitError when a single request is larger than an envelope.
    """
    chunks: list[bytes] = []
    counts: Counter[str] = Counter()
    sent = since.copy()
    after: PullCursor | None = None
    end: VersionVector | None = None
    stable = Stable()
    size = older = 0
    while end is None and counts.total() < rows_max:
        wanted = min(CHUNK_ROWS_MAX, rows_max - counts.total())
        chunk, known = await store.read(partial(read_chunk, theirs=since, rows_max=wanted, after=after))
        stable = stable.joined(known)
        rows = [row for row in chunk.rows if stamp_ms(row.hlc) >= since_ms]
        encoded = encode_rows(rows)
        if size + len(encoded) > CHUNKS_BYTES_MAX:
            if not chunks:
                raise LimitError(
                    f"one request of {len(encoded)} bytes does not fit into an envelope of {CHUNKS_BYTES_MAX}: let it "
                    "reach the other node by a stream"
                )
            break
        size += len(encoded)
        older += len(chunk.rows) - len(rows)
        if rows:
            chunks.append(encoded)
        counts.update(row.table for row in rows)
        for row in rows:
            sent.add(row.origin, row.seq, row.seq)
        after, end = chunk.cursor, chunk.vector
    is_all = end is not None and not older
    if end is not None and is_all:
        sent.join(end)
    document = seal(
        identity,
        since=since,
        cursor=sent,
        stable=stable,
        complete=is_all,
        chunks=chunks,
        counts=dict(sorted(counts.items())),
        generated_at_ms=store.physical_ms(),
        cluster_epoch=await store.read(transitions.cluster_epoch),
        limit=rows_max,
    )
    return Exported(document, older, end is None)


async def import_opened(store: Store, opened: Opened) -> Imported:
    """Merge what an envelope brings, durably. What store.write raises leaves merged what earlier chunks brought.

    ConfigError, with nothing changed, where this replica may hold rows that the source has forgotten to be deleted.
    """
    is_known = store.stable.includes(opened.stable)
    news = store.stable.news_in(opened.stable)
    if was_away_too_long(store.vector, store.origin, news, same_stable=is_known):
        raise ConfigError(
            "this node was away for longer than the mesh remembers deletions, and no envelope can mend that: let it "
            "reach a member by gossip, from which it copies all rows; or stop it, move its database away, and import a "
            "full export"
        )
    await store.adopt(opened.stable)
    outcomes: Counter[str] = Counter()
    chunks = opened.chunks or [[]]
    # Decided first: the chunks themselves may bring some of what `since` covers, and that would be no proof.
    joins = not store.lacks(opened.since)
    for chunk in chunks[:-1]:
        outcomes.update(await _merge(store, chunk, None))
    outcomes.update(await _merge(store, chunks[-1], opened.cursor if joins else None))
    return Imported(opened.rows, dict(sorted(outcomes.items())), joins)


async def compare(store: Store, opened: Opened) -> Compared:
    """Look each of an envelope's rows up in this replica."""
    found: Counter[str] = Counter()
    for chunk in opened.chunks:
        found.update(await store.read(partial(_compare_chunk, rows=chunk)))
    return Compared(found["same"], found["overwritten"], found["missing"], found["differing"])


async def _merge(store: Store, rows: list[Row], vector: VersionVector | None) -> list[str]:
    if not rows and (vector is None or not store.lacks(vector)):
        return []  # nothing new: no write
    return await store.write(partial(_merge_chunk, rows=rows, vector=vector), remote=True, rows=len(rows))


def _merge_chunk(tx: Transaction, *, rows: list[Row], vector: VersionVector | None) -> list[str]:
    outcomes = [tx.merge(row) for row in rows]
    if vector is not None:
        tx.join(vector)
    return outcomes


def _compare_chunk(reader: Reader, *, rows: list[Row]) -> list[str]:
    seen = reader.vector()
    seen.join(reader.stable().collapsed)
    return [_compare_row(reader, seen, row) for row in rows]


def _compare_row(reader: Reader, seen: VersionVector, row: Row) -> str:
    stored = [each for each in reader.rows_in_range(row.origin, row.seq, row.seq) if each.key == row.key]
    if stored:
        return "same" if row_digest(stored[0]) == row_digest(row) else "differing"
    return "overwritten" if seen.covers(row.origin, row.seq) else "missing"

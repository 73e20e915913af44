"""The versions that were seen but not applied, one by one: listing, judging again, giving up.

An entry is named by its dot, `node/incarnation/seq`, the one name that every node has for it. Judging again is a merge
like any other: what is still not applicable is put aside anew under the reason that holds now. Giving an entry up is
for people only; its dot stays seen, so no pull brings it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.errors import ConfigError, NotFoundError
from mesh.ids import Origin
from mesh.row_codec import CHUNK_LIMITS, INT_MAX, decode_rows
from mesh.rows import Row
from node.storage.reader import Reader
from node.storage.transaction import Arrival, Transaction

_COLUMNS = "o.node, o.incarnation, q.seq, q.table_name, q.namespace, q.key, q.reason, q.detail, q.hlc, q.at_ms"
_FROM = "FROM quarantine AS q JOIN origins AS o ON o.oid = q.oid"
_BY_DOT = "o.node = ? AND o.incarnation = ? AND q.seq = ?"


@dataclass(frozen=True, slots=True)
class Entry:
    """One version that was put aside, without its content."""

    origin: Origin
    seq: int
    table: str
    namespace: str
    key: str
    reason: str
    """One of the reasons of `mesh.replica`."""
    detail: str
    hlc: int
    at_ms: int
    """When it was put aside here."""

    @property
    def name(self) -> str:
        """What `parse_name` reads."""
        return f"{self.origin.node}/{self.origin.incarnation:016x}/{self.seq}"


def parse_name(text: str) -> tuple[Origin, int]:
    """The dot behind an entry's name, or ConfigError."""
    node, _, rest = text.partition("/")
    incarnation, _, seq = rest.partition("/")
    try:
        origin, number = Origin(node, int(incarnation, 16)), int(seq)
    except ValueError:
        origin, number = Origin("", 0), 0
    if not (node and 0 <= origin.incarnation <= INT_MAX and 0 < number <= INT_MAX):
        raise ConfigError(f"{text[:80]!r} names no quarantined row: copy an id of `relaymesh quarantine list`")
    return origin, number


def entries(reader: Reader, *, reason: str | None, limit: int) -> list[Entry]:
    """The entries, newest first."""
    where, params = ("WHERE q.reason = ?", [reason]) if reason is not None else ("", [])
    found = reader.sql(f"SELECT {_COLUMNS} {_FROM} {where} ORDER BY q.rowid DESC LIMIT ?", [*params, limit])
    return [_entry(row) for row in found]


def counts(reader: Reader) -> Mapping[str, int]:
    """How many entries there are, by reason; a reason without any is absent."""
    found = reader.sql("SELECT reason, count(*) FROM quarantine GROUP BY reason ORDER BY reason")
    return {str(reason): int(count) for reason, count in found}


def entry(reader: Reader, name: str) -> tuple[Entry, Row]:
    """One entry and its version. NotFoundError when there is none of this name."""
    origin, seq = parse_name(name)
    found = reader.sql(f"SELECT {_COLUMNS}, q.row {_FROM} WHERE {_BY_DOT}", (origin.node, origin.incarnation, seq))
    if not found:
        raise NotFoundError(f"no row {name} is in quarantine here: `relaymesh quarantine list` shows what is")
    (row,) = decode_rows(found[0][-1], limits=CHUNK_LIMITS)
    return _entry(found[0][:-1]), row


def retry(transaction: Transaction, name: str) -> tuple[str, Entry | None]:
    """Judge one entry again: what became of it, and the entry as it now stands when it stays. NotFoundError.

    The outcome is what `Transaction.merge` said; `stale` without an entry means that a newer version is stored.
    """
    before, row = entry(transaction, name)
    _delete(transaction, before)
    outcome = transaction.merge(row, Arrival.REPAIRED)  # its dot was seen when it was put aside
    # How long it has been lying here is what an operator wants to know, not when somebody last looked.
    transaction.execute(
        "UPDATE quarantine SET at_ms = ? WHERE seq = ? AND oid = (SELECT oid FROM origins WHERE node = ? AND "
        "incarnation = ?)",
        (before.at_ms, before.seq, before.origin.node, before.origin.incarnation),
    )
    try:
        return outcome, entry(transaction, name)[0]
    except NotFoundError:
        return outcome, None


def drop(transaction: Transaction, name: str) -> Entry:
    """Give one entry up for good and return what it was. NotFoundError."""
    dropped, _ = entry(transaction, name)
    _delete(transaction, dropped)
    return dropped


def _delete(transaction: Transaction, of: Entry) -> None:
    transaction.execute(
        "DELETE FROM quarantine WHERE seq = ? AND oid = (SELECT oid FROM origins WHERE node = ? AND incarnation = ?)",
        (of.seq, of.origin.node, of.origin.incarnation),
    )


def _entry(found: tuple[Any, ...]) -> Entry:
    node, incarnation, *rest = found
    return Entry(Origin(node, incarnation), *rest)

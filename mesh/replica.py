"""What a replica does with a row version: the local write that makes one, and the merge that judges a foreign one.

Both are pure. `successor` makes the version that follows the current one, and promises that it beats what it replaces.
`judge` decides about a version from a peer and never raises, whatever the peer wrote: a version that this node must not
or cannot keep is put aside in quarantine, with a reason, and its dot counts as seen all the same.

The store carries verdicts out inside one transaction; this module does not know how.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from mesh.errors import ConflictError, LimitError
from mesh.ids import Origin
from mesh.registers import beats
from mesh.row_codec import (
    INT_MAX,
    KEY_CHARS_MAX,
    NAMESPACE_CHARS_MAX,
    content_digest,
    row_digest,
    value_problem,
)
from mesh.rows import Row
from mesh.tables import Register, Table, Value


class Outcome(enum.Enum):
    """What became of a merged version."""

    APPLIED = "applied"
    STALE = "stale"
    SAME = "same"
    QUARANTINED = "quarantined"


REASON_FUTURE = "future-stamp"
"""Stamped further ahead than a clock may be wrong; applied when its time has come."""
REASON_UNKNOWN_TABLE = "unknown-table"
"""Written by a newer release; applied after the upgrade."""
REASON_CONFLICT = "immutable-conflict"
"""Another content of an immutable row won; kept for people to look at."""
REASON_POISON = "poison"
"""Breaks a type or a limit of its table; never applied."""
REASON_REJECTED = "rejected"
"""Local code that follows this table failed on it; never applied by itself."""

RELEASABLE = (REASON_FUTURE, REASON_UNKNOWN_TABLE)
"""Reasons that end by themselves."""
RELAYED = (REASON_FUTURE, REASON_UNKNOWN_TABLE, REASON_POISON, REASON_REJECTED)
"""Reasons whose rows a pull still hands on: the dot counts as seen here, and the next node may judge otherwise.

A conflict's loser is an overwritten version like any other.
"""

# A stamp far ahead wins by being ahead only where the stamp is what decides. A lifecycle row's stamp comes after rank
# and epochs, and holding back a finished step would mean running it again; a maximum that came late, such as a higher
# cluster epoch, would not fence in time.
_STAMP_DECIDES = frozenset({Register.LWW, Register.REMOVE_WINS})


class Verdict(NamedTuple):
    """An outcome, and what to put aside: the version judged, or the loser of a conflict."""

    outcome: Outcome
    parked: Row | None = None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who writes, and when: the same for all rows of one request, except the sequence number."""

    origin: Origin
    hlc: int


def judge(table: Table | None, current: Row | None, row: Row, *, in_time: bool) -> Verdict:
    """Decide about `row`, given the version held now.

    `table` is None when this node does not know it. `in_time` is what `HybridClock.observe` said of the row's stamp.
    """
    if table is None:
        return Verdict(Outcome.QUARANTINED, row, REASON_UNKNOWN_TABLE, f"this release knows no table {row.table}")
    problem = value_problem(table, row.values)
    if problem is not None:
        return Verdict(Outcome.QUARANTINED, row, REASON_POISON, problem)
    # Before the comparison: a version from the future would win it.
    if not in_time and table.register in _STAMP_DECIDES:
        return Verdict(Outcome.QUARANTINED, row, REASON_FUTURE, f"stamp {row.hlc} is too far ahead")
    if current is None:
        return Verdict(Outcome.APPLIED)
    # The digest is compared, too: a reused dot with other content must be decided, not taken for a repeat.
    if current.origin == row.origin and current.seq == row.seq and row_digest(current) == row_digest(row):
        return Verdict(Outcome.SAME)
    outcome = Outcome.APPLIED if beats(table.register, row, current) else Outcome.STALE
    if table.register is Register.IMMUTABLE and _contents_conflict(current, row):
        loser = current if outcome is Outcome.APPLIED else row
        return Verdict(outcome, loser, REASON_CONFLICT, f"row {row.key} has two contents")
    return Verdict(outcome)


def _contents_conflict(a: Row, b: Row) -> bool:
    # Deleting a row contradicts nobody.
    return not (a.deleted or b.deleted) and content_digest(a.values) != content_digest(b.values)


def successor(
    table: Table,
    current: Row | None,
    stamp: Stamp,
    seq: int,
    *,
    namespace: str,
    key: str,
    values: Mapping[str, Value],
    rank: int | None = None,
    generation: int | None = None,
    cluster_epoch: int | None = None,
    lease_epoch: int | None = None,
    open_lease: bool = False,
    deleted: bool = False,
) -> Row:
    """The version that a local write makes of `current`; what is not given stays as it is.

    A deletion, and a write over a tombstone, begin without the old values; the latter is also a new generation. Writing
    an immutable row again raises ConflictError, unless it deletes it. Values that the table cannot keep, or a key
    beyond its limit, raise LimitError.

    The result beats `current`, which is asserted: a write that would lose to its own base is a bug of its writer, and
    would be undone by the next peer that merges both.
    """
    _check_name(namespace, key)
    new_values: dict[str, Value] = {}
    if current is not None and not deleted and not current.deleted:
        new_values.update(current.values)
    _overlay(table, new_values, values)
    problem = value_problem(table, new_values)
    if problem is not None:
        raise LimitError(f"row {key} of {table.name} cannot be stored: {problem}")
    if current is None:
        row = Row(
            table=table.name,
            namespace=namespace,
            key=key,
            generation=generation or 0,
            deleted=deleted,
            rank=rank or 0,
            cluster_epoch=cluster_epoch or 0,
            lease_epoch=lease_epoch or 0,
            lease_hlc=stamp.hlc if open_lease else 0,
            hlc=stamp.hlc,
            node=stamp.origin.node,
            origin=stamp.origin,
            seq=seq,
            values=new_values,
        )
        _check_metadata(row)
        return row
    if table.register is Register.IMMUTABLE and not (deleted and not current.deleted):
        raise ConflictError(f"row {key} of {table.name} exists already and never changes")
    # A lifecycle row of a host with a wrong clock may carry a stamp of the future. Our clock did not follow it, but our
    # write must still come after what it replaces; so this one row is stamped just behind its base.
    # What this very request wrote before, nobody else has seen. It keeps its stamp: one stamp is what says which rows
    # belong together, and the next request must not find that stamp taken.
    rewritten = (current.origin, current.seq) == (stamp.origin, seq)
    hlc = current.hlc if rewritten else max(stamp.hlc, current.hlc + 1)
    revived = current.deleted and not deleted
    row = Row(
        table=table.name,
        namespace=namespace,
        key=key,
        generation=current.generation + revived if generation is None else generation,
        deleted=deleted,
        rank=(0 if revived else current.rank) if rank is None else rank,
        cluster_epoch=current.cluster_epoch if cluster_epoch is None else cluster_epoch,
        lease_epoch=current.lease_epoch if lease_epoch is None else lease_epoch,
        lease_hlc=hlc if open_lease else current.lease_hlc,
        hlc=hlc,
        node=stamp.origin.node,
        origin=stamp.origin,
        seq=seq,
        values=new_values,
    )
    _check_metadata(row)
    later = msgspec.structs.replace(row, seq=seq + 1) if rewritten else row
    assert beats(table.register, later, current), f"a write to {table.name} {key} would lose to what it replaces"
    return row


def _check_name(namespace: str, key: str) -> None:
    assert 0 < len(namespace) <= NAMESPACE_CHARS_MAX, namespace  # checked where it came in: mesh.ids.parse_namespace
    if not 0 < len(key) <= KEY_CHARS_MAX:
        raise LimitError(f"a key of {len(key)} characters; give 1 to {KEY_CHARS_MAX}")


def _overlay(table: Table, target: dict[str, Value], values: Mapping[str, Value]) -> None:
    kinds = table.kinds
    for name, value in values.items():
        kind = kinds.get(name)
        # Columns of a newer release arrive from peers only; a name we do not declare here is a typing error.
        assert kind is not None, f"table {table.name} has no column {name}"
        if value is None:
            target.pop(name, None)  # absent is the canonical form of NULL
        elif kind == "real":
            assert isinstance(value, int | float), (name, value)
            target[name] = float(value) + 0.0  # turns -0.0, which SQLite cannot keep, into 0.0
        elif isinstance(value, bool):
            target[name] = int(value)
        else:
            target[name] = value


def _check_metadata(row: Row) -> None:
    assert 0 <= row.generation <= INT_MAX, row
    assert 0 <= row.rank <= INT_MAX, row
    assert 0 <= row.cluster_epoch <= INT_MAX, row
    assert 0 <= row.lease_epoch <= INT_MAX, row
    assert 1 <= row.seq <= INT_MAX, row
    assert 0 <= row.lease_hlc <= row.hlc <= INT_MAX, row

"""Which of two versions of one row wins: one total order per register kind, larger wins.

Merging is taking the maximum of a total order over values that never change, hence commutative, associative and
idempotent: replicas that saw the same versions, in whatever order and however often, hold the same one. The only thing
this needs from outside is that a dot `(origin, seq)` never names two contents; should that promise break anyway, the
row digest decides, so that replicas still agree.

There is one form of the order, this one. The store reads the current version, asks `beats`, and writes the winner; no
SQL restates the comparison, so there is nothing to keep equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from mesh.ids import NODE_ID_CHARS_MAX
from mesh.row_codec import content_digest, row_digest
from mesh.rows import Row
from mesh.tables import Register

OrderKey = tuple[int | bytes, ...]
"""Compare with `<` and `>`; keys of different register kinds must not meet."""

_INVERTED = bytes(255 - byte for byte in range(256))


@functools.lru_cache(maxsize=1024)  # one entry per node id; a mesh has at most a few hundred
def _lower_wins(text: str) -> bytes:
    # Complementing every byte turns "lexically lower" into "larger". The padding is the complement of NUL, which makes
    # a proper prefix ("a") larger than what it begins ("ab"), as it must be: "a" is the lower text.
    return text.encode().translate(_INVERTED).ljust(NODE_ID_CHARS_MAX, b"\xff")


def _lww(row: Row) -> OrderKey:
    # The epochs come from the row, never from who happens to relay it, or two replicas would decide differently.
    # Origin and sequence come last: they are unique, which makes the order total.
    return (
        row.hlc,
        row.cluster_epoch,
        row.lease_epoch,
        _lower_wins(row.node),
        row.origin.incarnation,
        row.seq,
    )


def _lifecycle(row: Row) -> OrderKey:
    # Rank stands above the epochs: a late SUCCESS of an old lease is work that was done, and beats a newer RUNNING.
    # Among equal ranks the lease epoch stands above the stamp: a stale owner with a fast clock cannot win back a lease
    # that was taken over. Only a new generation, an operator's decision, leads back from a finished state.
    return (
        row.generation,
        row.deleted,
        row.rank,
        row.cluster_epoch,
        row.lease_epoch,
        row.lease_hlc,
        row.hlc,
        _lower_wins(row.node),
        row.origin.incarnation,
        row.seq,
    )


def _immutable(row: Row) -> OrderKey:
    # Stamps must not decide between contents, or a rewrite would win by being late. Between equal contents it does not
    # matter which stamp stays, only that all replicas keep the same one: the lowest, so that a repeat changes nothing.
    return (
        row.deleted,
        -int.from_bytes(content_digest(row.values), "big"),
        -row.hlc,
        -row.cluster_epoch,
        -row.lease_epoch,
        _lower_wins(row.node),
        -row.origin.incarnation,
        -row.seq,
    )


def _max(row: Row) -> OrderKey:
    return (row.rank, *_lww(row))


def _remove_wins(row: Row) -> OrderKey:
    return (row.generation, row.deleted, *_lww(row))


_ORDERS: dict[Register, Callable[[Row], OrderKey]] = {
    Register.LWW: _lww,
    Register.LIFECYCLE: _lifecycle,
    Register.IMMUTABLE: _immutable,
    Register.MAX: _max,
    Register.REMOVE_WINS: _remove_wins,
}


def order_key(register: Register, row: Row) -> OrderKey:
    """The place of this version in its register's total order. Equal keys mean the same dot."""
    return _ORDERS[register](row)


def beats(register: Register, a: Row, b: Row) -> bool:
    """True when version `a` must replace version `b` of the same row. Never true for a version against itself."""
    # Same row is the caller's promise; comparing two keys' rows would silently delete one of them.
    assert (a.table, a.namespace, a.key) == (b.table, b.namespace, b.key), (a, b)
    order = _ORDERS[register]
    key_a, key_b = order(a), order(b)
    if key_a != key_b:
        return key_a > key_b
    # The same dot. Unless somebody reused it (a restored database that was not noticed) the digests are equal, too.
    return row_digest(a) > row_digest(b)

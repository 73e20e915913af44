"""When the memory of a deleted row may go: once every member has seen the deletion, and all that it was made without.

A tombstone must be kept while anybody may still hold the row that it deleted, or the row would come back. A replica
therefore keeps two vectors, which only grow. A tombstone that `settled` covers is garbage: all members that were not
pruned have seen it. `complete` covers everything that any of them had seen by then, hence every row that was written to
belong to the deleted one before its writer knew: such children are garbage with their parent, and none comes late.

It takes two looks at all vectors: what all cover at the first is settled, once all cover at the second what any
covered at the first. Two rules keep it true while nodes forget at different times (of 1,500 simulated meshes none
diverged; with age instead of stability, 108 of 400 did):

- the two vectors travel in front of rows, and a receiver adopts them before it applies these: a row that was made anew
  after its tombstone was forgotten must not lose to a copy of that tombstone;
- whoever has rows and does not cover a peer's `complete` was away for too long, or was rolled back: it may hold rows
  whose tombstones are gone, and takes a whole new copy instead of news.

Every restart of a host that had lost its power begins a new origin, so a mesh that lives for years would carry
thousands in every vector. Once all members have seen the same dots of an origin, and none holds a row of it any more,
those dots are *collapsed*: they leave the vectors, all three of them, and are kept apart, where no pull carries them.
They still count as seen, dot by dot, so a late copy changes nothing, and a later dot of such an origin is news.

All of it is facts about the mesh, never decisions: adopting a peer's is safe for whoever covers them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from mesh.errors import RecordError
from mesh.ids import Origin
from mesh.version_vector import VersionVector


class _WireStable(msgspec.Struct, frozen=True, array_like=True):
    settled: bytes
    complete: bytes
    collapsed: bytes = b""


_decoder = msgspec.msgpack.Decoder(_WireStable)


@dataclass(frozen=True, slots=True)
class Stable:
    """What a replica knows of the mesh's past. Treat the vectors as values."""

    settled: VersionVector = field(default_factory=VersionVector)
    """Tombstones among these dots are garbage."""
    complete: VersionVector = field(default_factory=VersionVector)
    """Rows among these dots that belong to such a tombstone are garbage, too. Includes `settled`."""
    collapsed: VersionVector = field(default_factory=VersionVector)
    """Seen by all, without a row of theirs anywhere. No other vector of a replica that knows this lists them."""

    def joined(self, other: Stable) -> Stable:
        """What both know together."""
        settled, complete, collapsed = self.settled.copy(), self.complete.copy(), self.collapsed.copy()
        settled.join(other.settled)
        complete.join(other.complete)
        collapsed.join(other.collapsed)
        if collapsed.is_empty:
            return Stable(settled, complete)
        return Stable(settled.without(collapsed), complete.without(collapsed), collapsed)

    def news_in(self, other: Stable) -> Stable:
        """The part of `other` that is said about dots which are not collapsed here."""
        if self.collapsed.is_empty:
            return other
        mine = self.collapsed
        return Stable(other.settled.without(mine), other.complete.without(mine), other.collapsed.without(mine))

    def includes(self, other: Stable) -> bool:
        """Whether `other` says nothing new."""
        news = self.news_in(other)
        return self.settled.includes(news.settled) and self.complete.includes(news.complete) and news.collapsed.is_empty

    def collapsed_digest(self) -> bytes:
        """Eight bytes that are equal exactly for equal `collapsed`; none while it is empty."""
        return b"" if self.collapsed.is_empty else self.collapsed.digest()

    def digest(self) -> bytes:
        """Eight bytes that are equal exactly for equal knowledge."""
        all_of_it = self.settled.digest() + self.complete.digest() + self.collapsed_digest()
        return hashlib.blake2b(all_of_it, digest_size=8, person=b"relaymesh-stable").digest()

    def to_wire(self) -> bytes:
        """For a peer."""
        collapsed = b"" if self.collapsed.is_empty else self.collapsed.to_wire()
        return msgspec.msgpack.encode(_WireStable(self.settled.to_wire(), self.complete.to_wire(), collapsed))

    @classmethod
    def from_wire(cls, data: bytes) -> Stable:
        """What `to_wire` of a peer gave; RecordError when it does not decode, or contradicts itself."""
        try:
            wire = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RecordError(f"stable vectors cannot be decoded: {error}") from None
        collapsed = VersionVector.from_wire(wire.collapsed) if wire.collapsed else VersionVector()
        stable = cls(VersionVector.from_wire(wire.settled), VersionVector.from_wire(wire.complete), collapsed)
        if not stable.complete.includes(stable.settled):
            raise RecordError("stable vectors of which the settled one is not complete")
        return stable


@dataclass(frozen=True, slots=True)
class Look:
    """What all members had seen at one time: the part that all of them covered, and what any of them did."""

    common: VersionVector
    union: VersionVector


def look(vectors: Iterable[VersionVector | None]) -> Look | None:
    """One look at the vectors of all members that were not pruned, our own included.

    None stands for a member of whom no vector is known: then nobody can say what all have seen.
    """
    common: VersionVector | None = None
    union = VersionVector()
    for vector in vectors:
        if vector is None:
            return None
        common = vector.copy() if common is None else common.meet(vector)
        union.join(vector)
    assert common is not None, "our own vector is always among them"
    return Look(common, union)


def settle(known: Stable, first: Look, second: Look) -> Stable:
    """What is known after two looks, the second of which began after the first had ended."""
    if not second.common.includes(first.union):
        return known
    return known.joined(Stable(first.common, second.common))


def may_adopt(seen: VersionVector, writer: Origin, stable: Stable) -> bool:
    """Whether a replica that has `seen` this may forget what a peer's knowledge allows to forget.

    One that has nothing but what it wrote itself, as `writer`, has nothing to forget. `stable` is what
    `Stable.news_in` leaves of it, given what the replica knows.
    """
    if all(origin == writer for origin in seen.origins()):
        return True
    return seen.includes(stable.complete) and seen.includes(stable.collapsed)


def was_away_too_long(seen: VersionVector, writer: Origin, stable: Stable, *, same_stable: bool) -> bool:
    """Whether a replica may have rows whose tombstones are gone here, so that news would not mend it.

    `same_stable`: it has adopted what we know already, perhaps when it was still empty.
    """
    return not same_stable and not may_adopt(seen, writer, stable)

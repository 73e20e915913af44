"""Membership anti-entropy: short digests of a view, and what one view lacks that another has.

Promises: a digest always fits one packet. It covers a contiguous range of the tag space, and says which; members
outside the range are neither claimed nor missed. Comparing never changes
anything: digests are unsigned, so they only decide which signed records and claims to send.
"""

from __future__ import annotations

import random
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.errors import PacketError
from mesh.membership import RANK, Member, Status
from mesh.messages import RANGE_BYTES, Digest

_ENTRY = struct.Struct(f"!{RANGE_BYTES}sQIB")  # tag's first bytes, life, incarnation, status rank
ENTRY_BYTES = _ENTRY.size
DIGEST_OVERHEAD_BYTES = 32  # kind, both range ends, flag and length, at their longest

LOWEST, HIGHEST = bytes(RANGE_BYTES), b"\xff" * RANGE_BYTES  # the range of all tags

View = tuple[int, int, int]  # life, incarnation, status rank


@dataclass(frozen=True, slots=True)
class Difference:
    """How two views of one range differ."""

    ours_newer: list[Member]
    """Members of whom we know more, in tag order."""
    theirs_newer: int
    """How many members the other side knows more about."""
    of_us: View | None
    """What the other side holds of this node itself, if it says."""


def make_digest(members: Sequence[Member], *, low: bytes, high: bytes, space: int, answer: bool) -> Digest:
    """A digest of the members (given in tag order) in a range, or of as many as fit from `low` on."""
    entries_max = (space - DIGEST_OVERHEAD_BYTES) // ENTRY_BYTES
    assert entries_max > 0, space
    inside = _inside(members, low, high)
    if len(inside) > entries_max:
        inside = inside[:entries_max]
        high = _short(inside[-1])
    return Digest(low, high, answer, b"".join(map(encode_entry, inside)))


def whole_digest(members: Sequence[Member], space: int) -> Digest | None:
    """A digest of all members; None when it does not fit: a part would say little, and an outline says where."""
    if DIGEST_OVERHEAD_BYTES + len(members) * ENTRY_BYTES > space:
        return None
    return make_digest(members, low=LOWEST, high=HIGHEST, space=space, answer=False)


def read_entries(digest: Digest) -> dict[bytes, View]:
    """The entries by short tag. PacketError when they are not whole."""
    if len(digest.entries) % ENTRY_BYTES:
        raise PacketError("malformed")
    return {tag: (life, incarnation, rank) for tag, life, incarnation, rank in _ENTRY.iter_unpack(digest.entries)}


def compare(members: Sequence[Member], digest: Digest, own: Member) -> Difference:
    """What we know beyond the digest, and it beyond us. `members` are all we know, in tag order."""
    theirs = read_entries(digest)
    ours_newer: list[Member] = []
    theirs_newer = 0
    of_us: View | None = None
    for member in _inside(members, digest.low, digest.high):
        view = theirs.pop(_short(member), None)
        if member is own:
            of_us = view
        order = _newer_than(_view(member), view)
        if order > 0:
            ours_newer.append(member)
        elif order < 0:
            theirs_newer += 1
    return Difference(ours_newer, theirs_newer + len(theirs), of_us)


def part_that_fits(members: Sequence[Member], low: bytes, high: bytes, space: int, rng: random.Random) -> bytes:
    """Where a digest of this range should begin: at its low end if all fit, else at a random member of it.

    Whoever knows next to nothing asks many, and should not be told of the same members by all.
    """
    inside = _inside(members, low, high)
    spare = len(inside) - (space - DIGEST_OVERHEAD_BYTES) // ENTRY_BYTES
    return low if spare <= 0 else _short(inside[rng.randint(0, spare)])


def view_of(digest: Digest, member: Member) -> View | None:
    """What a digest says of one member."""
    return read_entries(digest).get(_short(member))


def _newer_than(ours: View, theirs: View | None) -> int:
    if theirs is None:
        return 1
    # LEFT beats every incarnation of its life, so the status counts before the incarnation there.
    left = RANK[Status.LEFT]
    first = (ours[0], ours[2] == left, *ours[1:])
    second = (theirs[0], theirs[2] == left, *theirs[1:])
    return (first > second) - (first < second)


def encode_entry(member: Member) -> bytes:
    """What a digest says of one member."""
    return _ENTRY.pack(member.tag[:RANGE_BYTES], member.life, member.incarnation, RANK[member.status])


def _view(member: Member) -> View:
    return member.life, member.incarnation, RANK[member.status]


def _short(member: Member) -> bytes:
    return member.tag[:RANGE_BYTES]


def _inside(members: Sequence[Member], low: bytes, high: bytes) -> list[Member]:
    """The members of a range, from its low end on; a range may wrap round."""
    first, end = bisect_left(members, low, key=_short), bisect_right(members, high, key=_short)
    return list(members[first:end]) if low <= high else [*members[first:], *members[:end]]

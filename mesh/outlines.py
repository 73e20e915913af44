"""Whether two views of the members are equal, and where they are not: a few hashes, whatever the size of the mesh.

Promises: an outline covers the whole tag space in ranges of equal width, about one per `RANGE_MEMBERS` members, so one
differing member is found with one digest of one range. Equal views have equal outlines; the reverse fails once in 2^64.
An outline is as unsigned as a digest: it only decides which digests are sent.
"""

from __future__ import annotations

import hashlib

from mesh.digests import encode_entry
from mesh.errors import PacketError
from mesh.membership import Membership
from mesh.messages import OUTLINE_HASH_BYTES, OUTLINE_RANGES_MAX, RANGE_BYTES, Outline

RANGE_MEMBERS = 32  # a digest of a range then takes half a packet, and fits one when tags are spread unevenly

_SPACE_BITS = 8 * RANGE_BYTES


class Outlines:
    """Outlines of one table, kept until it changes."""

    def __init__(self, members: Membership) -> None:
        self._members = members
        self._kept: dict[int, list[bytes]] = {}  # range hashes by the number of ranges
        self._kept_at_version = -1

    def own(self) -> Outline:
        """Our view, in as many ranges as it takes."""
        count = len(self._members.in_tag_order())
        ranges = min(OUTLINE_RANGES_MAX, 1 << ((count - 1) // RANGE_MEMBERS).bit_length())
        return Outline(b"".join(self._hashes(ranges)))

    def differing(self, outline: Outline) -> list[tuple[bytes, bytes]]:
        """The ranges in which the sender's view is not ours, in tag order. PacketError when it is no outline."""
        ranges, rest = divmod(len(outline.hashes), OUTLINE_HASH_BYTES)
        if rest or ranges.bit_count() != 1:
            raise PacketError("malformed")
        theirs = (
            outline.hashes[at : at + OUTLINE_HASH_BYTES] for at in range(0, len(outline.hashes), OUTLINE_HASH_BYTES)
        )
        return [
            _range(index, ranges)
            for index, (one, other) in enumerate(zip(self._hashes(ranges), theirs, strict=True))
            if one != other
        ]

    def _hashes(self, ranges: int) -> list[bytes]:
        if self._kept_at_version != self._members.version:
            self._kept.clear()
            self._kept_at_version = self._members.version
        kept = self._kept.get(ranges)
        if kept is None:
            kept = self._kept[ranges] = self._computed(ranges)
        return kept

    def _computed(self, ranges: int) -> list[bytes]:
        shift = _SPACE_BITS - _bits(ranges)
        entries: list[list[bytes]] = [[] for _ in range(ranges)]
        for member in self._members.in_tag_order():
            entries[int.from_bytes(member.tag[:RANGE_BYTES], "big") >> shift].append(encode_entry(member))
        return [hashlib.blake2b(b"".join(inside), digest_size=OUTLINE_HASH_BYTES).digest() for inside in entries]


def _range(index: int, ranges: int) -> tuple[bytes, bytes]:
    shift = _SPACE_BITS - _bits(ranges)
    low, high = index << shift, ((index + 1) << shift) - 1
    return low.to_bytes(RANGE_BYTES, "big"), high.to_bytes(RANGE_BYTES, "big")


def _bits(ranges: int) -> int:
    return ranges.bit_length() - 1

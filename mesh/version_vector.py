"""What a replica has seen: for every origin, which of its sequence numbers, as ranges with gaps.

Covering a dot means: the replica holds that version, or one that beat it, or put it aside for a stated reason. A vector
only ever grows. Gaps exist because gossip delivers out of order; they close by pulling.

The wire form may claim less than the truth (ranges past a limit are left out), never more: claiming less costs a
repeated row, claiming more loses one for ever.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

import msgspec

from mesh.errors import RecordError
from mesh.ids import NODE_ID_CHARS_MAX, Origin
from mesh.row_codec import INT_MAX

Range = tuple[int, int]
"""Sequence numbers `lo..hi`, both included, `1 <= lo <= hi`."""

ORIGINS_MAX = 4_096
"""Origins in a wire vector: 100 full replicas with forty restores or power losses each."""
ORIGIN_RANGES_MAX = 1_024
"""Ranges per origin in a wire vector. A pull closes all gaps, so more than a few hundred mean a long silence."""
WIRE_BYTES_MAX = 8 << 20
"""An upper bound for any wire vector that we would decode."""


class VersionVector:
    """A growing set of dots. Not a value: copy it to keep it."""

    __slots__ = ("_digest", "_ranges")

    def __init__(self, ranges: Mapping[Origin, Iterable[Range]] | None = None) -> None:
        # Per origin: sorted, disjoint, never adjacent ranges. Nearly always there is exactly one.
        self._ranges: dict[Origin, list[Range]] = {}
        self._digest: bytes | None = None
        for origin, pairs in (ranges or {}).items():
            for lo, hi in pairs:
                self.add(origin, lo, hi)

    def add(self, origin: Origin, lo: int, hi: int) -> None:
        """Cover the sequence numbers `lo..hi` of this origin."""
        assert 1 <= lo <= hi <= INT_MAX, (origin, lo, hi)
        ranges = self._ranges.get(origin)
        if ranges is None:
            self._ranges[origin] = [(lo, hi)]
        else:
            last_lo, last_hi = ranges[-1]
            if last_lo <= lo <= last_hi + 1:  # the normal case: the next ones, or ones already seen
                if hi <= last_hi:
                    return
                ranges[-1] = (last_lo, hi)
            else:
                _insert(ranges, lo, hi)
        self._digest = None

    def covers(self, origin: Origin, seq: int) -> bool:
        """Whether this dot was seen."""
        ranges = self._ranges.get(origin)
        if ranges is None:
            return False
        # The last range that begins at or before `seq`: INT_MAX sorts behind every end that this beginning may have.
        index = bisect_right(ranges, (seq, INT_MAX)) - 1
        return index >= 0 and seq <= ranges[index][1]

    def head(self, origin: Origin) -> int:
        """The highest sequence number seen of this origin, 0 for none. There may be gaps below it."""
        ranges = self._ranges.get(origin)
        return ranges[-1][1] if ranges else 0

    def unbroken(self, origin: Origin) -> int:
        """The number up to which every one of this origin is covered; 0 when the first is not."""
        ranges = self.ranges(origin)
        return ranges[0][1] if ranges and ranges[0][0] == 1 else 0

    def origins(self) -> list[Origin]:
        """The known origins, sorted."""
        return sorted(self._ranges)

    def ranges(self, origin: Origin) -> list[Range]:
        """The covered ranges of an origin: ascending, disjoint, not adjacent."""
        return list(self._ranges.get(origin, ()))

    def join(self, other: VersionVector) -> None:
        """Cover everything that `other` covers, too."""
        for origin, ranges in other._ranges.items():
            for lo, hi in ranges:
                self.add(origin, lo, hi)

    def missing_from(self, other: VersionVector) -> dict[Origin, list[Range]]:
        """What is missing here: the ranges that `other` covers and this vector does not, by origin in order."""
        # In order, because a pull goes on after its last chunk by comparing origins.
        missing: dict[Origin, list[Range]] = {}
        for origin in other.origins():
            ours = self._ranges.get(origin)
            theirs = other._ranges[origin]
            ranges = list(theirs) if ours is None else list(_subtract(theirs, ours))
            if ranges:
                missing[origin] = ranges
        return missing

    def without(self, other: VersionVector) -> VersionVector:
        """The dots that are covered here and not by `other`."""
        return VersionVector(other.missing_from(self))

    def includes(self, other: VersionVector) -> bool:
        """Whether everything that `other` covers is covered here, too."""
        return not self.missing_from(other)

    def meet(self, other: VersionVector) -> VersionVector:
        """What both cover."""
        common = VersionVector()
        for origin in self.origins():
            theirs = other._ranges.get(origin)
            if theirs is not None:
                lost = list(_subtract(self._ranges[origin], theirs))
                for lo, hi in _subtract(self._ranges[origin], lost):
                    common.add(origin, lo, hi)
        return common

    @property
    def is_empty(self) -> bool:
        """Whether it covers nothing."""
        return not self._ranges

    @property
    def origin_count(self) -> int:
        """How many origins it lists."""
        return len(self._ranges)

    def count(self) -> int:
        """How many dots are covered."""
        return sum(hi - lo + 1 for ranges in self._ranges.values() for lo, hi in ranges)

    def copy(self) -> VersionVector:
        """An independent copy."""
        twin = VersionVector()
        twin._ranges = {origin: list(ranges) for origin, ranges in self._ranges.items()}
        twin._digest = self._digest
        return twin

    def digest(self) -> bytes:
        """Eight bytes that are equal exactly for equal vectors, however they came about."""
        if self._digest is None:
            # Sorted, since two replicas learn of origins in different orders.
            content = [(origin, self._ranges[origin]) for origin in self.origins()]
            data = msgspec.msgpack.encode(content)
            self._digest = hashlib.blake2b(data, digest_size=8, person=b"relaymesh-vector").digest()
        return self._digest

    def to_wire(self) -> bytes:
        """The vector for a peer. Beyond the limits of this module it claims less than it covers."""
        origins = []
        for origin in self.origins()[:ORIGINS_MAX]:
            flat: list[int] = []
            position = 0
            for lo, hi in self._ranges[origin][:ORIGIN_RANGES_MAX]:
                # Distances instead of positions: one or two bytes each, also for an origin at its billionth row.
                flat += (lo - position, hi - lo)
                position = hi
            origins.append(_WireVector(node=origin.node, incarnation=origin.incarnation, distances=flat))
        return msgspec.msgpack.encode(origins)

    @classmethod
    def from_wire(cls, data: bytes) -> VersionVector:
        """What `to_wire` of a peer gave, or RecordError when it breaks a limit or does not decode."""
        if len(data) > WIRE_BYTES_MAX:
            raise RecordError(f"a version vector of {len(data)} bytes; at most {WIRE_BYTES_MAX} are allowed")
        try:
            origins = _wire_decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RecordError(f"a version vector cannot be decoded: {error}") from None
        vector = cls()
        for wire in origins:
            origin = Origin(wire.node, wire.incarnation)
            # One vector has one wire form; accepting two would let equal vectors differ in their digest.
            if origin in vector._ranges or len(wire.distances) % 2:
                raise RecordError(f"a version vector with broken ranges for origin {origin.node!r}")
            vector._ranges[origin] = _from_distances(wire.distances)
        return vector

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VersionVector) and self._ranges == other._ranges

    __hash__ = None  # type: ignore[assignment]  # mutable: must not be a key

    def __repr__(self) -> str:
        return f"VersionVector({self._ranges!r})"


class _WireVector(msgspec.Struct, frozen=True, array_like=True):
    node: Annotated[str, msgspec.Meta(min_length=1, max_length=NODE_ID_CHARS_MAX)]
    incarnation: Annotated[int, msgspec.Meta(ge=0, le=INT_MAX)]
    # Alternately: steps from the last range's end to this one's start, and to this one's end.
    distances: Annotated[
        list[Annotated[int, msgspec.Meta(ge=0, le=INT_MAX)]],
        msgspec.Meta(min_length=2, max_length=2 * ORIGIN_RANGES_MAX),
    ]


_wire_decoder = msgspec.msgpack.Decoder(Annotated[list[_WireVector], msgspec.Meta(max_length=ORIGINS_MAX)])


def _from_distances(distances: list[int]) -> list[Range]:
    ranges: list[Range] = []
    position = 0
    for index in range(0, len(distances), 2):
        lo = position + distances[index]
        position = lo + distances[index + 1]
        # Adjacent ranges would make two forms of one vector; the digest needs exactly one. The first starts at 1 or
        # later, every other one leaves a gap of at least one number.
        if distances[index] < (2 if ranges else 1) or position > INT_MAX:
            raise RecordError("a version vector with ranges that overlap, touch or overflow")
        ranges.append((lo, position))
    return ranges


def _insert(ranges: list[Range], lo: int, hi: int) -> None:
    # Everything that overlaps or touches lo..hi melts into one range.
    start = bisect_right(ranges, (lo, INT_MAX))
    if start and ranges[start - 1][1] >= lo - 1:
        start -= 1
    end = start
    while end < len(ranges) and ranges[end][0] <= hi + 1:
        lo, hi = min(lo, ranges[end][0]), max(hi, ranges[end][1])
        end += 1
    ranges[start:end] = [(lo, hi)]


def _subtract(ranges: list[Range], covered: list[Range]) -> Iterator[Range]:
    # Both lists ascend, so one walk over both is enough.
    index = 0
    for lo, hi in ranges:
        while index < len(covered) and covered[index][1] < lo:
            index += 1
        position = lo
        # A covered range may reach into the next one of ours, so `index` stays on it.
        cursor = index
        while cursor < len(covered) and covered[cursor][0] <= hi:
            if covered[cursor][0] > position:
                yield position, covered[cursor][0] - 1
            position = covered[cursor][1] + 1
            cursor += 1
        if position <= hi:
            yield position, hi

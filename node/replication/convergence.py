"""How far this replica and each peer's are apart, as both sides say it now: counted in dots of their vectors.

A dot that is missing here may turn out to be a version that was overwritten since; so the distance is at least the
number of rows that a pull would bring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from mesh.hlc import stamp_ms
from mesh.ids import Address, Origin
from mesh.stability import Stable
from mesh.version_vector import Range, VersionVector
from node.replication.calls import Caller, decode
from node.replication.stability_rounds import VectorAnswer, VectorRequest
from node.storage.reader import Reader
from node.storage.store import Store


@dataclass(frozen=True, slots=True)
class Distance:
    """Dots that one side has seen and the other has not."""

    missing_here: dict[Origin, list[Range]]
    missing_there: dict[Origin, list[Range]]


async def distance(store: Store, calls: Caller, node_id: str, address: Address) -> Distance:
    """Ask one peer and compare. Raises what the call raises; an older release that cannot answer is an error, too."""
    request = msgspec.msgpack.encode(VectorRequest(store.stable.to_wire()))
    answer = decode(await calls.call(address, "vector", request, expect=node_id), VectorAnswer)
    theirs = VersionVector.from_wire(answer.vector).without(store.stable.collapsed)
    ours = store.vector.without(Stable.from_wire(answer.stable).collapsed)
    return Distance(ours.missing_from(theirs), theirs.missing_from(ours))


def most_missing(missing: Mapping[Origin, list[Range]], *, origins_max: int) -> list[tuple[Origin, int]]:
    """The origins with most missing dots and how many, most first."""
    counted = [(origin, count(ranges)) for origin, ranges in missing.items()]
    return sorted(counted, key=lambda each: (-each[1], each[0]))[:origins_max]


def count(ranges: Iterable[Range]) -> int:
    """How many dots these ranges hold."""
    return sum(hi - lo + 1 for lo, hi in ranges)


def oldest_ms(reader: Reader, missing: Mapping[Origin, list[Range]], origins: Iterable[Origin]) -> dict[Origin, int]:
    """When the oldest of the missing versions that are stored here was written, by origin, in ms since 1970.

    Origins none of whose missing versions is stored are left out: all were overwritten since.
    """
    found = {origin: reader.first_row_in(origin, missing[origin]) for origin in origins}
    return {origin: stamp_ms(row.hlc) for origin, row in found.items() if row is not None}

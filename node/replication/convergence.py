"""How far this replica and each peer's are apart, as both sides say it now: counted in dots of their vectors.

A dot that is missing here may turn out to be a version that was overwritten since; so the distance is at least the
number of rows that a pull would bring.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mesh.ids import Address, Origin
from mesh.stability import Stable
from mesh.version_vector import VersionVector
from node.replication.calls import Caller, decode
from node.replication.stability_rounds import VectorAnswer, VectorRequest
from node.storage.store import Store


@dataclass(frozen=True, slots=True)
class Distance:
    """Dots that one side has seen and the other has not."""

    missing_here: dict[Origin, int]
    missing_there: dict[Origin, int]


async def distance(store: Store, calls: Caller, node_id: str, address: Address) -> Distance:
    """Ask one peer and compare. Raises what the call raises; an older release that cannot answer is an error, too."""
    request = msgspec.msgpack.encode(VectorRequest(store.stable.to_wire()))
    answer = decode(await calls.call(address, "vector", request, expect=node_id), VectorAnswer)
    theirs = VersionVector.from_wire(answer.vector).without(store.stable.collapsed)
    ours = store.vector.without(Stable.from_wire(answer.stable).collapsed)
    return Distance(_dots(ours, theirs), _dots(theirs, ours))


def _dots(of: VersionVector, other: VersionVector) -> dict[Origin, int]:
    missing = of.missing_from(other)
    return {origin: VersionVector({origin: ranges}).count() for origin, ranges in missing.items()}

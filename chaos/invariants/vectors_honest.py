"""Version vectors: what one covers is there, in memory as on disk, and equal vectors mean equal replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import Dot, dot_of, name_of, told, wins
from chaos.invariants.promise import Promise
from chaos.observations import Committed, Rest, Sampled, Seen
from mesh.ids import Origin
from mesh.rows import Row


class VectorsHonest(Promise):
    """The vector in memory is the stored one; for each dot that it covers, the row or one that beat it is there."""

    name = "vectors-honest"
    hears = (Committed, Sampled)
    needs_rest = False

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._versions: dict[Dot, Row] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Collect versions; compare the two vectors whenever a node is looked at."""
        if isinstance(seen, Committed):
            for change in seen.changes:
                self._versions[dot_of(change.after)] = change.after
        elif isinstance(seen, Sampled) and seen.memory_vector != seen.stored_vector:
            yield f"{seen.host} believes {seen.memory_vector}, and has stored {seen.stored_vector}"

    def judge(self, rest: Rest) -> Iterator[str]:
        """Ask every replica for all that its vector covers."""
        for node, replica in rest.replicas.items():
            for row in self._versions.values():
                if self.mirror.was_deleted(row):
                    continue
                if replica.vector.covers(row.origin, row.seq):
                    found = replica.rows.get(name_of(row))
                    if found is None:
                        yield f"the vector of {node} covers {told(row)}, and it has no version of that row"
                    elif found != row and not wins(found, row):
                        yield f"the vector of {node} covers {told(row)}, and it has {told(found)}"


class EqualVectorsEqualReplicas(Promise):
    """Two replicas with equal vectors have equal digest sums, whenever they are looked at."""

    name = "equal-vectors-equal-replicas"
    hears = (Sampled,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._sums: dict[bytes, tuple[str, float, Mapping[Origin, Any]]] = {}
        """By digests of a vector and of what is known to be stable: who had it, when, and the sums then."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare with whoever had this vector before."""
        assert isinstance(seen, Sampled)
        if seen.parked or seen.has_garbage:
            return  # rows of the future are seen before they count, and forgotten ones go one by one
        sums = {origin: total for origin, total in seen.sums.items() if total[0]}
        other, at_ms, theirs = self._sums.setdefault(
            seen.stored_vector.digest() + seen.stable, (seen.host, seen.at_ms, sums)
        )
        if theirs != sums:
            differ = [
                f"{origin}: {theirs.get(origin)} and {sums.get(origin)}"
                for origin in sorted(theirs.keys() | sums.keys())
                if theirs.get(origin) != sums.get(origin)
            ]
            yield f"{other} at {at_ms:.0f} ms and {seen.host} had one vector and other sums: {'; '.join(differ)}"

"""Merging: a version gives way only to one that wins, and in the end all replicas hold what wins against all others."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import RowName, dot_of, name_of, told, wins
from chaos.invariants.promise import Promise
from chaos.observations import Committed, Rest, Seen
from mesh.rows import Row


class VersionsOnlyGrow(Promise):
    """On every replica, each version of a row is replaced only by one that wins against it."""

    name = "versions-only-grow"
    hears = (Committed,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare each change with what it replaced."""
        assert isinstance(seen, Committed)
        known = self.mirror.host(seen.host)
        for change in seen.changes:
            after = change.after
            # What the host itself says was there, and what it was seen to commit: a regress may lie in between.
            # A row that was deleted, and forgotten here, begins anew: `deleted-stays-deleted` looks at those.
            forgotten = change.before is None and self.mirror.was_deleted(after)
            for before in (change.before, None if forgotten else known.rows.get(name_of(after))):
                if before is not None and before != after and not wins(after, before):
                    yield f"{seen.host} replaced {told(before)} by {told(after)}"
                    break


class FinalIsMaximum(Promise):
    """At rest, every replica holds of each row the greatest version that was ever committed on a disk that kept it.

    Versions that nobody was seen to commit are only excused where a disk failed in the middle of a commit.
    """

    name = "final-is-maximum"
    hears = (Committed,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._dots: dict[tuple[str, int, int], None] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Remember which versions there ever were."""
        assert isinstance(seen, Committed)
        for change in seen.changes:
            self._dots[dot_of(change.after)] = None
            if change.before is not None:
                self._dots[dot_of(change.before)] = None
        yield from ()

    def judge(self, rest: Rest) -> Iterator[str]:
        """Compare every replica with the maximum of what survived."""
        greatest = self._greatest()
        for node, replica in rest.replicas.items():
            for name, best in greatest.items():
                if self.mirror.was_deleted(best):
                    continue
                found = replica.rows.get(name)
                if found is None:
                    yield f"{node} lacks {told(best)}"
                elif found != best and not wins(found, best):
                    yield f"{node} ended with {told(found)}, though {told(best)} was committed"
            for row in replica.rows.values():
                if dot_of(row) not in self._dots and not self.mirror.node_is_unsure(row.origin.node):
                    yield f"{node} ended with {told(row)}, which nobody was seen to commit"

    def _greatest(self) -> dict[RowName, Row]:
        greatest: dict[RowName, Row] = {}
        for host in self.mirror.promised():
            for name, row in host.rows.items():
                best = greatest.get(name)
                if best is None or wins(row, best):
                    greatest[name] = row
        return greatest

"""A dot, which is a node's incarnation and a sequence number, never names two contents."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import Dot, dot_of, told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, Seen
from mesh.rows import Row


class OneContentPerDot(Promise):
    """No two versions, on whatever hosts, carry one origin and sequence number, unless they are equal."""

    name = "one-content-per-dot"
    hears = (Committed,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._versions: dict[Dot, Row] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare every version with the one that had its dot first."""
        assert isinstance(seen, Committed)
        for row in (*(change.after for change in seen.changes), *(row for request in seen.written for row in request)):
            first = self._versions.setdefault(dot_of(row), row)
            if first is not row and first != row:
                yield f"{seen.host} committed {told(row)}, a dot that also names {told(first)}"

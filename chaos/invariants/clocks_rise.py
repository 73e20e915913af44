"""Order in time: the lives of a node and the stamps of its writes only rise, whatever its clock and its starts do."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import Dot, dot_of
from chaos.invariants.promise import Promise
from chaos.observations import Committed, HostStarted, Seen


class LivesRise(Promise):
    """Each start of a node is a later life than all before, unless its disk went back in time or is there twice."""

    name = "lives-rise"
    hears = (HostStarted,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare with the last life."""
        assert isinstance(seen, HostStarted)
        host = self.mirror.host(seen.host)
        if seen.life <= host.life and not host.has_lost and not self.mirror.node_was_doubled(seen.origin.node):
            yield f"{seen.host} began life {seen.life:x} after life {host.life:x}"


class StampsRise(Promise):
    """The stamps of a node's requests rise from each to the next, also over restarts on a host without a clock."""

    name = "stamps-rise"
    hears = (Committed,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._last: dict[str, tuple[int, float]] = {}
        """By host, the last stamp and when it was committed."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare with the request before."""
        assert isinstance(seen, Committed)
        # A row that a wrong clock stamped in the future is replaced just behind its stamp, which says nothing of ours.
        behind: dict[Dot, None] = {
            dot_of(change.after): None
            for change in seen.changes
            if change.before is not None and change.after.hlc == change.before.hlc + 1
        }
        for request in seen.written:
            stamps = [row.hlc for row in request if dot_of(row) not in behind]
            if not stamps:
                continue
            last, at_ms = self._last.get(seen.host, (0, 0.0))
            if min(stamps) <= last and self.mirror.host(seen.host).lost_ms < at_ms:
                yield f"{seen.host} stamped {min(stamps)} after {last}"
            self._last[seen.host] = min(stamps), seen.at_ms

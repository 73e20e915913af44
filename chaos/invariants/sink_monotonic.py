"""The outside: a service that checks fences is never written to by a stale owner, and refuses nobody else."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import Lease, parse_fence
from chaos.invariants.promise import Promise
from chaos.observations import Seen, SinkWrite


class SinkMonotonic(Promise):
    """The byte order of fences is the order of leases: a sink that compares texts takes no lower lease after a higher.

    A step that was replayed, or taken over, can always write again: fences of later turns are greater. That ends with
    the deletion of its task.
    """

    name = "sink-monotonic"
    hears = (SinkWrite,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._accepted: dict[str, tuple[Lease, str]] = {}
        """By step, the greatest lease that wrote, and its fence."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare leases where the sink compared texts."""
        assert isinstance(seen, SinkWrite)
        if self.mirror.step_was_deleted(seen.step_id):
            return  # asked for again after it was forgotten, a task begins with low fences anew
        lease = parse_fence(seen.fence)
        highest, fence = self._accepted.get(seen.step_id, (lease, seen.fence))
        if seen.accepted and lease < highest:
            yield f"{seen.step_id}: the sink took {lease} after {highest}"
        elif not seen.accepted and lease >= highest:
            yield (
                f"{seen.step_id}: the sink refused {lease} ({seen.fence}), though it had seen no higher than "
                f"{highest} ({fence})"
            )
        if seen.accepted and lease >= highest:
            self._accepted[seen.step_id] = lease, seen.fence

"""A node refuses its own commit once it has seen a higher epoch: of the step, or of the cluster."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.oracle import name_of, told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, Seen
from mesh.rows import Row
from node.storage.transaction import Change

_ENDS_OF_RUNS = ("SUCCESS", "RETRYING", "DEAD_LETTER")
"""A cancel is obeyed whatever the epoch is."""
_CLUSTER_EPOCH = ("cluster", "_mesh", "cluster_epoch")


class RefusedAfterHigherEpoch(Promise):
    """No node writes a step under a lower lease, or ends a run under a lower cluster epoch, than it has seen."""

    name = "refused-after-higher-epoch"
    hears = (Committed,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Hold the host's own writes against what it knew before."""
        assert isinstance(seen, Committed)
        known = self.mirror.host(seen.host).rows
        epoch_row = known.get(_CLUSTER_EPOCH)
        cluster_epoch = 1 if epoch_row is None else epoch_row.rank
        for change in seen.changes:
            if not change.local or change.after.table != "steps" or change.after.deleted:
                continue
            for before in (change.before, known.get(name_of(change.after))):
                if before is not None and not before.deleted and _lease(change.after) < _lease(before):
                    yield f"{seen.host} wrote {told(change.after)}, and knew {told(before)}"
                    break
            ends = change.after.text("status") in _ENDS_OF_RUNS and not _is_old_end(change)
            if ends and change.after.cluster_epoch < cluster_epoch:
                yield f"{seen.host} wrote {told(change.after)}, and knew cluster epoch {cluster_epoch}"


def _lease(row: Row) -> tuple[int, int, int]:
    return row.generation, row.cluster_epoch, row.lease_epoch


def _is_old_end(change: Change) -> bool:
    return change.before is not None and change.before.text("status") == change.after.text("status")

"""Dispatch: a node runs a step only under an epoch that it opened itself, and one lease is one run."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import fence_of, owner_of, parse_fence, status_of, told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, HostEnded, RunStarted, Seen
from node.storage.transaction import Change


class OwnEpoch(Promise):
    """A run's fence names a lease which that very process opened in a commit of its own, one epoch above the last."""

    name = "own-epoch"
    hears = (Committed, RunStarted, HostEnded)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._claims: dict[str, dict[str, str]] = {}
        """By host and step, the fence of the last claim of the process that runs."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Note claims, and hold runs against them."""
        match seen:
            case Committed():
                for change in seen.changes:
                    if change.local and change.after.table == "steps" and _may_be_claim(change):
                        yield from self._claim(seen.host, change)
            case RunStarted(job=job):
                claimed = self._claims.get(seen.host, {}).get(job.step_id)
                if claimed is None:
                    yield f"{seen.host} runs {job.step_id} under {parse_fence(job.fence)}, which it did not claim"
                elif claimed != job.fence:
                    lease = parse_fence(claimed)
                    yield f"{seen.host} runs {job.step_id} under {job.fence}, and had claimed {claimed} ({lease})"
            case HostEnded():
                self._claims.pop(seen.host, None)
            case _:
                pass

    def _claim(self, host: str, change: Change) -> Iterator[str]:
        before, after = change.before, change.after
        self._claims.setdefault(host, {})[after.key] = fence_of(after)
        if owner_of(after) != after.node:
            yield f"{host} claimed for somebody else: {told(after)}"
        if before is None or after.lease_epoch <= before.lease_epoch or after.lease_hlc != after.hlc:
            yield f"{host} claimed {told(after)} without opening an epoch; before: {before and told(before)}"


def _may_be_claim(change: Change) -> bool:
    """Whether this is anything else than a word of a run under the lease that it has, as a checkpoint is."""
    before, after = change.before, change.after
    goes_on = before is not None and status_of(before) == "RUNNING" and fence_of(before) == fence_of(after)
    return status_of(after) == "RUNNING" and not goes_on


class OneRunPerFence(Promise):
    """No two runs ever carry the same fence."""

    name = "one-run-per-fence"
    hears = (RunStarted,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._runs: dict[tuple[str, str], str] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare with all runs before."""
        assert isinstance(seen, RunStarted)
        lease = seen.job.step_id, seen.job.fence
        if lease in self._runs:
            yield (
                f"{seen.host} runs {seen.job.step_id} under {parse_fence(seen.job.fence)}, "
                f"under which {self._runs[lease]} has run it"
            )
        self._runs[lease] = seen.host

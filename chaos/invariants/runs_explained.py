"""Runs: each result comes from a run that was seen, and of every other run the history says what became of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import SUCCESS, Lease, content_of, lease_of, parse_fence
from chaos.invariants.promise import Promise
from chaos.observations import Replica, Rest, RunStarted, Seen
from mesh.rows import Row

ENDS = frozenset(
    {
        "failed",
        "lost",
        "taken_over",
        "released",
        "aborted",
        "superseded",
        "requeued",
        "replayed",
        "cancelled",
        "snoozed",
    }
)
"""Actions of the history that tell what became of a run."""
_AGENT = "work"


def _is_of(row: Lease, run: Lease) -> bool:
    # A node that was away during the run writes its end under one more epoch, opened after it heard from a peer.
    reopened = (run.generation, run.node_reversed, run.lease_epoch + 1)
    return row == run or (row.generation, row.node_reversed, row.lease_epoch) == reopened


def result_fence(rows: Mapping[tuple[str, str, str], Row], step: Row) -> str:
    """The fence that the run noted in its result."""
    return str(json.loads(content_of(rows, step, "result") or b"{}").get("fence", ""))


class ResultsComeFromRuns(Promise):
    """The result of a step is what a run of that very step returned, under the lease that its row shows."""

    name = "results-come-from-runs"
    hears = (RunStarted,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._runs: dict[tuple[str, str], None] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Remember the run."""
        assert isinstance(seen, RunStarted)
        self._runs[seen.job.step_id, seen.job.fence] = None
        yield from ()

    def judge(self, rest: Rest) -> Iterator[str]:
        """Find the run of each result."""
        for replica in list(rest.replicas.values())[:1]:  # `replicas-equal` speaks for the others
            for step in replica.rows.values():
                if step.table != "steps" or step.rank != SUCCESS or step.text("agent") != _AGENT:
                    continue
                fence = result_fence(replica.rows, step)
                if (step.key, fence) not in self._runs:
                    yield f"{step.key} succeeded with a result of no run that was seen: fence {fence!r}"
                elif not _is_of(lease_of(step), parse_fence(fence)):
                    yield f"{step.key} shows a result of {parse_fence(fence)} under {lease_of(step)}"


class RunsExplained(Promise):
    """Every run gave its step its result, or the history tells what became of it, unless only a lost disk knew."""

    name = "runs-explained"
    hears = (RunStarted,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._runs: list[RunStarted] = []

    def see(self, seen: Seen) -> Iterator[str]:
        """Remember the run."""
        assert isinstance(seen, RunStarted)
        self._runs.append(seen)
        yield from ()

    def judge(self, rest: Rest) -> Iterator[str]:
        """Look for the story of each."""
        for replica in list(rest.replicas.values())[:1]:  # `replicas-equal` speaks for the others
            told = _told([*replica.rows.values(), *self.mirror.deleted_events.values()])
            for run in self._runs:
                if not self._is_told(replica, told, run) and not self._is_excused(run):
                    yield (
                        f"{run.host} ran {run.job.step_id} at {run.at_ms:.0f} ms under {parse_fence(run.job.fence)}: "
                        "nothing says what became of it"
                    )

    def _is_told(self, replica: Replica, told: Mapping[str, list[Lease]], run: RunStarted) -> bool:
        step = replica.rows.get(("steps", run.job.namespace, run.job.step_id))
        if step is not None and step.rank == SUCCESS and result_fence(replica.rows, step) == run.job.fence:
            return True
        lease = parse_fence(run.job.fence)
        return any(_is_of(end, lease) for end in told.get(run.job.step_id, ()))

    def _is_excused(self, run: RunStarted) -> bool:
        if run.job.task_id in self.mirror.deleted_ms:
            return True
        host = self.mirror.host(run.host)
        return host.lost_ms >= run.at_ms or self.mirror.node_was_doubled(host.node_id)


def _told(rows: Iterable[Row]) -> dict[str, list[Lease]]:
    told: dict[str, list[Lease]] = {}
    for row in rows:
        if row.table == "history" and row.text("action") in ENDS:
            told.setdefault(row.text("step_id"), []).append(parse_fence(row.text("fence")))
    return told

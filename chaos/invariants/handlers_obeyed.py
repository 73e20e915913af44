"""What handlers were promised: a checkpoint that returned is there for the next attempt, and a snooze is no attempt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import content_of, fence_of, parse_fence, status_of
from chaos.invariants.promise import Promise
from chaos.observations import CheckpointAsked, CheckpointKept, Committed, HostEnded, RunEnded, RunStarted, Seen
from mesh.rows import Row


@dataclass(slots=True)
class _Known:
    """What a host knows of a step's checkpoint in one generation."""

    generation: int
    merged: Row | None
    """The version of a peer that decides, or None when the runs of this host do."""
    contents: dict[bytes, None]
    """What its runs saved: the last that returned, and what was asked for since."""


class CheckpointsKept(Promise):
    """A checkpoint is in the host's row when it returns, and the next run of that generation there begins with it.

    None of the host's own writes drops it: only a version of a peer, whose checkpoint then counts, a replay, or the
    loss of the disk. So it goes wherever the row goes. Hosts that may have committed unseen are not judged.
    """

    name = "checkpoints-kept"
    hears = (Committed, CheckpointAsked, CheckpointKept, RunStarted, HostEnded)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._known: dict[str, dict[str, _Known]] = {}
        """By host and step."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Note what is saved, and hold the beginnings of runs against it."""
        match seen:
            case Committed():
                for change in seen.changes:
                    if change.after.table == "steps":
                        self._step(seen.host, change.before, change.after, local=change.local)
            case CheckpointAsked(job=job, content=content):
                if self._row_under(seen.host, job.step_id, job.namespace, job.fence) is not None:
                    known = self._of(seen.host, job.step_id)
                    if known is not None:
                        self._settle(seen.host, known)
                        known.contents[content] = None
            case CheckpointKept(job=job, content=content):
                row = self._row_under(seen.host, job.step_id, job.namespace, job.fence)
                known = self._of(seen.host, job.step_id)
                if row is None or known is None:
                    return  # its lease has moved in the same moment
                known.merged, known.contents = None, {content: None}
                if content_of(self.mirror.host(seen.host).rows, row, "checkpoint") != content:
                    yield f"{seen.host} was told that a checkpoint of {job.step_id} is kept, which is not in its row"
            case RunStarted(job=job):
                known = self._of(seen.host, job.step_id)
                if known is None or known.generation != parse_fence(job.fence).generation:
                    return
                self._settle(seen.host, known)
                if job.saved not in known.contents and not self._is_excused(seen.host, job.task_id):
                    yield (
                        f"{seen.host} runs {job.step_id} under {parse_fence(job.fence)} with the checkpoint "
                        f"{job.saved[:60]!r}, and knows {[content[:60] for content in known.contents]}"
                    )
            case HostEnded(durable_lost=True):
                self._known.pop(seen.host, None)
            case _:
                pass

    def _step(self, host: str, before: Row | None, after: Row, *, local: bool) -> None:
        known = self._known.setdefault(host, {})
        if not local:
            known[after.key] = _Known(after.generation, after, {})
        elif before is None or before.deleted or after.generation > before.generation:
            known[after.key] = _Known(after.generation, None, {b"": None})

    def _of(self, host: str, step_id: str) -> _Known | None:
        return self._known.get(host, {}).get(step_id)

    def _settle(self, host: str, known: _Known) -> None:
        """Read what a peer's version says, once what it refers to is here: no run begins before that."""
        if known.merged is not None:
            known.contents = {content_of(self.mirror.host(host).rows, known.merged, "checkpoint"): None}
            known.merged = None

    def _row_under(self, host: str, step_id: str, namespace: str, fence: str) -> Row | None:
        row = self.mirror.host(host).rows.get(("steps", namespace, step_id))
        return row if row is not None and fence_of(row) == fence else None

    def _is_excused(self, host: str, task_id: str) -> bool:
        return self.mirror.host(host).is_unsure or task_id in self.mirror.deleted_ms


class SnoozesUncounted(Promise):
    """A run that its handler snoozed gives its attempt back."""

    name = "snoozes-uncounted"
    hears = (Committed, RunStarted, RunEnded)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._snoozed: dict[tuple[str, str], int] = {}
        """By host and step, the attempt of its last run, if that was snoozed and nothing was written since."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Look at the first row after each snooze."""
        match seen:
            case RunStarted(job=job):
                self._snoozed.pop((seen.host, job.step_id), None)
            case RunEnded(job=job, outcome="snoozed"):
                self._snoozed[seen.host, job.step_id] = job.attempt
            case Committed():
                for change in seen.changes:
                    step, name = change.after, (seen.host, change.after.key)
                    if step.table != "steps" or name not in self._snoozed or status_of(step) == "RUNNING":
                        continue
                    attempt = self._snoozed.pop(name)
                    if change.local and status_of(step) == "RETRYING" and step.integer("attempt") != attempt - 1:
                        yield (
                            f"{seen.host} snoozed attempt {attempt} of {step.key}, and counts "
                            f"{step.integer('attempt')} in its row"
                        )
            case _:
                pass

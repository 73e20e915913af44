"""The end: what has ended does not begin again by itself, on any node that knows that it has ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import OPEN, parse_fence, told
from chaos.invariants.promise import Promise
from chaos.observations import ClientAnswered, ClientAsked, Committed, HostEnded, RunStarted, Seen

START_MS = 500.0
"""From a claim to the start of its run, at the most."""


class FinishedStays(Promise):
    """A node that knows a step's end commits and shows nothing weaker in that generation, and starts no run of it.

    That holds until a replay begins a new generation, or its disk is lost.
    """

    name = "finished-stays"
    hears = (Committed, RunStarted, HostEnded, ClientAsked, ClientAnswered)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._ends: dict[str, dict[str, tuple[int, int, float]]] = {}
        """By host and step: generation and rank of the end that it knows, and since when."""
        self._shown: dict[str, dict[str, tuple[int, float]]] = {}
        """By host and step: generation of a SUCCESS that a client saw there, and when."""
        self._asked_ms: dict[int, float] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Note ends, and what comes after them."""
        match seen:
            case Committed():
                yield from self._committed(seen)
            case RunStarted(job=job) if job.task_id not in self.mirror.deleted_ms:
                generation, _, known_ms = self._ends.get(seen.host, {}).get(job.step_id, (-1, 0, 0.0))
                if generation >= parse_fence(job.fence).generation and known_ms < seen.at_ms - START_MS:
                    yield f"{seen.host} runs {job.step_id}, and knows since {known_ms:.0f} ms that it has ended"
            case HostEnded(durable_lost=True):
                self._ends.pop(seen.host, None)
                self._shown.pop(seen.host, None)
            case ClientAsked():
                self._asked_ms[seen.call] = seen.at_ms
            case ClientAnswered():
                asked_ms = self._asked_ms.pop(seen.call, seen.at_ms)
                if seen.command == "task" and seen.answer is not None:
                    for step in seen.answer["steps"]:
                        yield from self._look(seen, step, asked_ms)
            case _:
                pass

    def _committed(self, seen: Committed) -> Iterator[str]:
        ends = self._ends.setdefault(seen.host, {})
        for change in seen.changes:
            step = change.after
            if step.table != "steps" or self.mirror.was_deleted(step):
                continue
            generation, rank, _ = ends.get(step.key, (-1, 0, 0.0))
            if generation == step.generation and step.rank < rank and not step.deleted:
                yield f"{seen.host} knew the end of {step.key}, rank {rank}, and committed {told(step)}"
            if step.rank == OPEN:
                ends.pop(step.key, None)
            elif (generation, rank) != (step.generation, step.rank):
                ends[step.key] = step.generation, step.rank, seen.at_ms

    def _look(self, seen: ClientAnswered, step: dict[str, Any], asked_ms: float) -> Iterator[str]:
        shown = self._shown.setdefault(seen.host, {})
        step_id, status, generation = step["stepId"], step["status"], int(step["generation"])
        first, at_ms = shown.get(step_id, (-1, 0.0))
        if status == "SUCCESS":
            if generation > first:
                shown[step_id] = generation, seen.at_ms
        elif generation <= first and at_ms < asked_ms and not self.mirror.step_was_deleted(step_id):
            yield f"{seen.host} showed {step_id} as SUCCESS at {at_ms:.0f} ms, and then as {status}"

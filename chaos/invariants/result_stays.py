"""Results: one that was accepted anywhere stays, or the history says what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import SUCCESS, fence_of, parse_fence
from chaos.invariants.promise import Promise
from chaos.observations import ClientAnswered, Committed, Rest, Seen
from mesh.rows import Row


@dataclass(frozen=True, slots=True)
class _Result:
    host: str
    owner: str
    at_ms: float
    how: str


class ResultStays(Promise):
    """A SUCCESS that a node committed, or showed to a client, is the step's result at rest, or is told as superseded.

    `superseded` and `replayed` rows of the history tell. A disk that is lost takes its own testimony with it.
    """

    name = "result-stays"
    hears = (Committed, ClientAnswered)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._results: dict[tuple[str, str], _Result] = {}
        """By step and fence."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Remember results."""
        if isinstance(seen, Committed):
            for change in seen.changes:
                row = change.after
                if change.local and row.table == "steps" and row.rank == SUCCESS:
                    name = row.key, fence_of(row)
                    self._results.setdefault(name, _Result(seen.host, row.node, seen.at_ms, "committed"))
        elif isinstance(seen, ClientAnswered) and seen.command == "task" and seen.answer is not None:
            for step in seen.answer["steps"]:
                if step["status"] == "SUCCESS":
                    shown = _Result(seen.host, step["owner"], seen.at_ms, "showed")
                    self._results.setdefault((step["stepId"], step["fence"]), shown)
        yield from ()

    def judge(self, rest: Rest) -> Iterator[str]:
        """Look for each of them."""
        for replica in list(rest.replicas.values())[:1]:  # `replicas-equal` speaks for the others
            explained = _explained([*replica.rows.values(), *self.mirror.deleted_events.values()])
            for (step_id, fence), result in self._results.items():
                step = replica.rows.get(("steps", "default", step_id))
                if step is not None and step.rank == SUCCESS and fence_of(step) == fence:
                    continue
                if self.mirror.step_was_deleted(step_id):
                    continue
                if (step_id, fence) not in explained and not self._is_excused(result):
                    ended = "is gone" if step is None else f"ended as {step.text('status')} under {fence_of(step)}"
                    yield (
                        f"{result.host} {result.how} a SUCCESS of {step_id} under {parse_fence(fence)} at "
                        f"{result.at_ms:.0f} ms; it {ended}, without a word"
                    )

    def _is_excused(self, result: _Result) -> bool:
        # The owner tells that its result lost, from a disk that remembers it.
        hosts = [self.mirror.host(result.host), *self.mirror.of_node(result.owner)]
        return any(host.lost_ms >= result.at_ms or host.was_doubled for host in hosts)


def _explained(rows: Iterable[Row]) -> dict[tuple[str, str], None]:
    return {
        (row.text("step_id"), row.text("fence")): None
        for row in rows
        if row.table == "history" and row.text("action") in ("superseded", "replayed")
    }

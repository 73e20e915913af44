"""Agreement: once a healed mesh has come to rest, and it must, all replicas are the same to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.oracle import status_of, told
from chaos.invariants.promise import Promise
from chaos.observations import Rest
from mesh.rows import Row


class ComesToRest(Promise):
    """Within the bound after the heal, all hosts run and see each other, all work has ended, and all replicas agree."""

    name = "comes-to-rest"
    needs_rest = False

    def judge(self, rest: Rest) -> Iterator[str]:
        """Ask whether it did."""
        if rest.settled_ms is None:
            yield f"not at rest {rest.settle_s:g} s after everything was mended: {rest.unsettled}"


class ReplicasEqual(Promise):
    """At rest all replicas have equal rows, vectors and digest sums."""

    name = "replicas-equal"

    def judge(self, rest: Rest) -> Iterator[str]:
        """Compare all with the first."""
        if not rest.replicas:
            return
        (first, reference), *others = rest.replicas.items()
        for node, replica in others:
            for name in dict.fromkeys([*reference.rows, *replica.rows]):
                ours, theirs = reference.rows.get(name), replica.rows.get(name)
                if ours != theirs:
                    yield f"{first} has {_told(ours)}, and {node} has {_told(theirs)}: {name}"
            if reference.vector != replica.vector:
                yield f"the vector of {first} is {reference.vector}, that of {node} {replica.vector}"
            if reference.sums != replica.sums:
                yield f"the digest sums of {first} are {reference.sums}, those of {node} {replica.sums}"


class QueuesHoldOpenSteps(Promise):
    """At rest a node's queue holds nothing but waiting steps of its own."""

    name = "queues-hold-open-steps"

    def judge(self, rest: Rest) -> Iterator[str]:
        """Look up what is queued."""
        for node, replica in rest.replicas.items():
            for step_id, namespace in replica.queued.items():
                step = replica.rows.get(("steps", namespace, step_id))
                if step is None or step.rank or step.text("owner") != node or status_of(step) == "RUNNING":
                    yield f"{node} queues {step_id}, which is {_told(step)}"


def _told(row: Row | None) -> str:
    return "nothing" if row is None else told(row)

"""Each promise that real meshes are judged by is broken once in made-up evidence, and the verdict must name it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from chaos.real.clients import Acknowledged, Asked, Ledger, Refusal, Sight
from chaos.real.evidence import AgentRun, Evidence, Replica
from chaos.real.verdict import START_S, judge
from mesh.fences import Fence
from mesh.ids import Origin
from mesh.rows import Row
from node.work.tables import WORK_TABLES, Status

FIRST = Fence(0, 1, 1, 100, "a")
WINNER = Fence(0, 1, 3, 300, "b")


def row(table: str, key: str, seq: int, node: str = "a", **more: Any) -> Row:
    values = more.pop("values")
    return Row(
        table=table,
        namespace="default",
        key=key,
        hlc=1_000,
        node=node,
        origin=Origin(node, 1),
        seq=seq,
        values=values,
        **more,
    )


def step(status: Status = Status.SUCCESS, fence: Fence = WINNER, **values: Any) -> Row:
    result = json.dumps({"fence": WINNER.encode()}).encode() if status is Status.SUCCESS else None
    told = {"task_id": "t", "name": "only", "agent": "hunted", "status": status, "owner": fence.node, "input": b"{}"}
    return row(
        "steps",
        "s",
        2,
        fence.node,
        rank=status.rank,
        generation=fence.generation,
        cluster_epoch=fence.cluster_epoch,
        lease_epoch=fence.lease_epoch,
        lease_hlc=fence.lease_hlc,
        values={**told, "result": result, **values},
    )


def taken_over() -> Row:
    values = {"task_id": "t", "step_id": "s", "action": "taken_over", "fence": FIRST.encode(), "detail": "{}"}
    return row("history", "e", 3, "b", values=values)


class Case:
    """Two nodes, one task of one step. It ran on a, was taken over by b, and succeeded there."""

    def __init__(self) -> None:
        self.rows = [row("tasks", "t", 1, values={"step_count": 1, "cancelled_below": 0}), step(), taken_over()]
        self.runs = [run(FIRST, 1.0), run(WINNER, 5.0)]
        self.ledger = Ledger(submitted=[Acknowledged("t", "a", 0.5)], sights=[sight("b", 9.0)])
        self.queued: dict[str, str] = {}
        self.quarantine: list[str] = []
        self.more: dict[str, Any] = {}
        self.only_at_b: list[Row] = []

    def replace(self, new: Row) -> None:
        self.rows = [new if old.key == new.key else old for old in self.rows]

    def evidence(self) -> Evidence:
        return Evidence(
            replicas={"a": self._replica(self.rows), "b": self._replica([*self.rows, *self.only_at_b])},
            runs=self.runs,
            ledger=self.ledger,
            **self.more,
        )

    def _replica(self, rows: list[Row]) -> Replica:
        sums = {table.name: (sum(row.table == table.name for row in rows), 0, 0) for table in WORK_TABLES}
        named = {(each.table, each.namespace, each.key): each for each in rows}
        return Replica(rows=named, sums=sums, queued=self.queued, quarantine=self.quarantine)


def run(fence: Fence, at: float) -> AgentRun:
    return AgentRun("s", fence.node, 1, fence.encode(), at)


def sight(node: str, at: float, status: str = "SUCCESS", fence: Fence = WINNER) -> Sight:
    return Sight("s", node, at - 0.1, at, fence.generation, status, fence.encode())


def found(case: Case) -> set[str]:
    return {violation.invariant for violation in judge(case.evidence(), 1_000)}


def test_a_mesh_that_kept_its_promises_is_acquitted():
    assert found(Case()) == set()


def test_a_result_that_was_committed_after_a_pause_under_one_more_epoch_is_good():
    case = Case()
    case.replace(step(fence=WINNER._replace(lease_epoch=4, lease_hlc=900)))
    case.ledger.sights.clear()
    assert found(case) == set()


def test_a_cancelled_step_is_good_when_somebody_asked_for_it():
    case = Case()
    case.replace(step(Status.CANCELLED))
    case.runs.pop()
    case.ledger.sights.clear()
    assert found(case) == {"every-task-ends-as-its-definition-allows"}
    case.ledger.cancels.append(Asked("t", "b", 2.0, None))
    assert found(case) == set()


def test_a_doomed_step_is_good_as_a_dead_letter_only():
    case = Case()
    case.replace(step(input=b'{"doomed": true}'))
    assert found(case) == {"every-task-ends-as-its-definition-allows"}
    case.replace(step(Status.DEAD_LETTER, input=b'{"doomed": true}'))
    case.runs.pop()
    case.ledger.sights.clear()
    assert found(case) == set()


MUTANTS: dict[str, Callable[[Case], Any]] = {
    "quiet-comes": lambda case: case.more.update(unquiet="it never did"),
    "replicas-are-equal": lambda case: case.only_at_b.append(row("payloads", "p", 4, values={"content": b""})),
    "databases-are-sound": lambda case: case.quarantine.append("a row"),
    "queues-hold-open-steps-only": lambda case: case.queued.update(s="default"),
    "nodes-stop-and-leave-nothing": lambda case: case.more.update(leftovers=[17]),
    "logs-tell-of-no-fault": lambda case: case.more.update(log_lines=["Traceback"]),
    "every-task-is-explained": lambda case: case.more.update(unexplained=["t"]),
    "acknowledged-tasks-exist-everywhere": lambda case: case.ledger.submitted.append(Acknowledged("lost", "a", 0.6)),
    "refusals-are-of-the-kinds-that-faults-explain": lambda case: case.ledger.refusals.append(
        Refusal("task", "a", 1.0, "StoreError", "cannot read")
    ),
    "a-node-knows-what-it-acknowledged": lambda case: case.ledger.refusals.append(
        Refusal("task", "a", 0.6, "NotFoundError", "not known here", "t")
    ),
    "every-task-ends-as-its-definition-allows": lambda case: case.replace(step(Status.RUNNING)),
    "no-lease-runs-twice": lambda case: case.runs.append(run(WINNER, 5.1)),
    "every-result-comes-from-a-run": lambda case: case.runs.pop(),
    "every-other-run-is-in-the-history": lambda case: case.rows.pop(),
    "finished-work-stays-finished": lambda case: case.ledger.sights.append(sight("b", 9.5, "RUNNING")),
    "a-cancel-that-was-answered-holds": lambda case: case.ledger.cancels.append(
        Asked("t", "b", 4.0, {"state": "cancelled"})
    ),
    "a-result-that-was-shown-and-replaced-is-superseded": lambda case: case.ledger.sights.append(
        sight("a", 8.0, fence=FIRST)
    ),
}


@pytest.mark.parametrize("promise", MUTANTS)
def test_a_broken_promise_is_found(promise):
    case = Case()
    MUTANTS[promise](case)
    assert promise in found(case)


def test_a_run_that_began_after_its_node_showed_the_success_is_found():
    again = WINNER._replace(lease_epoch=5, lease_hlc=500)
    case = Case()
    case.runs.append(run(again, 9.0 + START_S))
    assert "finished-work-stays-finished" not in found(case)
    case.runs.append(run(again, 9.0 + START_S + 0.01))
    assert "finished-work-stays-finished" in found(case)


def test_a_step_that_waits_for_a_parent_that_will_never_succeed_is_no_stuck_step():
    case = Case()
    doomed = msgspec.structs.replace(step(Status.DEAD_LETTER, input=b'{"doomed": true}'), key="p")
    doomed.values["name"] = "parent"
    case.rows = [
        row("tasks", "t", 1, values={"step_count": 2, "cancelled_below": 0}),
        step(Status.PENDING, depends_on='["parent"]'),
        doomed,
        taken_over(),
    ]
    case.runs.pop()
    case.ledger.sights.clear()
    assert found(case) == set()
    case.rows[0] = row("tasks", "t", 1, rank=1, values={"step_count": 2, "cancelled_below": 1})
    assert found(case) == {"every-task-ends-as-its-definition-allows"}

"""Cancels as processes feel them: soft first, then hard, of work that another node runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.real.processes import wait_until
from node.agents.executor import KILL_GRACE_S


@pytest.fixture(scope="module")
def module_mesh(make_mesh) -> Iterator:
    with make_mesh("a", "b") as mesh:
        yield mesh


def test_soft_then_hard_reaches_a_grandchild_that_ignores_term_on_another_node(mesh):
    journal = mesh.journal()
    task_id = mesh.submit_workflow(
        "a",
        {"id": "runs", "agent": "stubborn", "input": {"journal": str(journal)}, "node": "a"},
        {"id": "waits", "agent": "echo", "dependsOn": ["runs"]},
    )
    wait_until(lambda: "grandchild" in read(journal), 10, "the grandchild runs")
    grandchild = int(read(journal).split()[1])
    group = os.getpgid(grandchild)
    mesh.wait_task("b", task_id, lambda task: statuses(task)["runs"] == "RUNNING")

    soft = mesh.cluster.admin("b", "cancel", taskId=task_id, mode="soft", reason="no hurry")
    assert soft["state"] == "requested"
    # What waits is cancelled at once, beside a run that goes on.
    assert statuses(mesh.task("b", task_id)) == {"runs": "RUNNING", "waits": "CANCELLED"}
    assert exists(grandchild)
    assert "term" not in read(journal)

    hard = mesh.cluster.admin("b", "cancel", taskId=task_id, mode="hard", reason="now")
    assert hard["state"] in {"cancelled", "requested"}  # the grace is nearly as long as the answer waits
    mesh.wait_everywhere(task_id, "CANCELLED", KILL_GRACE_S + 10)
    wait_until(lambda: not exists(grandchild), 2, "the grandchild was killed")
    assert "term" in read(journal)  # it was asked before
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    assert statuses(mesh.task("a", task_id)) == {"runs": "CANCELLED", "waits": "CANCELLED"}


def test_a_soft_cancel_of_what_waits_is_immediate_from_any_node(mesh):
    task_id = mesh.submit_workflow("a", {"id": "waits", "agent": "echo", "node": "nowhere"})
    mesh.wait_task("b", task_id, "PENDING")
    answer = mesh.cluster.admin("b", "cancel", taskId=task_id, mode="soft", reason="changed my mind")
    assert (answer["state"], answer["cancelled"]) == ("cancelled", True)


def statuses(task) -> dict[str, str]:
    return {step["name"]: step["status"] for step in task["steps"]}


def read(journal: Path) -> str:
    return journal.read_text() if journal.exists() else ""


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

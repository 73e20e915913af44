"""Who runs what: cancels at any node, agents that only one node has, peers that die at once, owners that leave."""

from collections.abc import Iterator

import pytest

from chaos.real.processes import wait_until

# The class of one node that has the agent `special`, and two that do not.
HAS_SPECIAL = "b"


@pytest.fixture(scope="module")
def module_mesh(make_mesh, request) -> Iterator:
    from pathlib import Path

    special = Path(request.path).with_name("special_agents.py")
    with make_mesh("a", "b", "c", flags={HAS_SPECIAL: ["--agents", str(special)]}) as mesh:
        yield mesh


def test_a_cancel_at_a_node_that_is_not_the_owner_stops_the_run(mesh, runs, ends):
    journal = mesh.journal()
    task_id = mesh.submit("a", "work", {"seconds": 60, "journal": str(journal)})
    mesh.wait_owned("c", task_id, "a")
    wait_until(lambda: runs(journal), 5, "the agent began")
    answer = mesh.cluster.admin("c", "cancel", taskId=task_id, mode="hard", reason="not needed")
    assert (answer["state"], answer["cancelled"]) == ("cancelled", True)
    mesh.wait_everywhere(task_id, "CANCELLED")
    assert ends(journal) == []
    assert "not needed" in mesh.explain("b", task_id)


def test_a_cancel_after_the_end_comes_too_late_and_changes_nothing(mesh):
    task_id = mesh.submit("a", "echo", "done")
    mesh.wait_everywhere(task_id, "SUCCESS")
    answer = mesh.cluster.admin("b", "cancel", taskId=task_id, mode="hard", reason="late")
    assert (answer["state"], answer["cancelled"]) == ("too_late", False)
    mesh.wait_everywhere(task_id, "SUCCESS")


def test_work_for_an_agent_that_one_node_has_goes_there_and_explain_says_why(mesh, runs):
    journal = mesh.journal()
    task_id = mesh.submit("a", "special", {"journal": str(journal)})
    mesh.wait_everywhere(task_id, "SUCCESS")
    assert mesh.step("a", task_id)["owner"] == HAS_SPECIAL
    assert mesh.result("c", task_id) == "special"
    assert len(runs(journal)) == 1
    assert "handed" in mesh.explain("a", task_id).lower()


def test_a_step_whose_only_capable_node_dies_after_taking_it_waits_and_runs_when_it_is_back(mesh, runs):
    journal = mesh.journal()
    task_id = mesh.submit("a", "special", {"seconds": 3, "journal": str(journal)})
    mesh.wait_owned("a", task_id, HAS_SPECIAL)
    mesh.cluster.kill(HAS_SPECIAL)
    mesh.wait_seen("a", 10, **{HAS_SPECIAL: "DEAD"})
    assert mesh.task("a", task_id)["status"] != "SUCCESS"
    assert "special" in mesh.explain("a", task_id)
    mesh.cluster.start(HAS_SPECIAL)
    mesh.wait_everywhere(task_id, "SUCCESS", 20)
    assert mesh.result("c", task_id) == "special"


def test_a_hand_over_to_a_peer_that_dies_at_once_loses_nothing(mesh, runs):
    """The offer meets a node that is stopped, and then killed, before it could answer."""
    journal = mesh.journal()
    mesh.cluster.pause(HAS_SPECIAL)
    try:
        task_id = mesh.submit("a", "special", {"journal": str(journal)})
    finally:
        mesh.cluster.kill(HAS_SPECIAL)
    assert mesh.task("a", task_id)["status"] == "PENDING"
    mesh.cluster.start(HAS_SPECIAL)
    mesh.wait_everywhere(task_id, "SUCCESS", 20)
    assert len(runs(journal)) == 1


def test_an_owner_that_leaves_hands_its_running_work_back(mesh, runs, ends):
    journal = mesh.journal()
    # Longer than a stopping node waits for its runs to end by themselves.
    task_id = mesh.submit("c", "work", {"seconds": 8, "journal": str(journal)})
    mesh.wait_owned("a", task_id, "c")
    wait_until(lambda: runs(journal), 5, "the agent began")
    assert mesh.cluster.terminate("c", timeout_s=15) == 0
    mesh.wait_everywhere(task_id, "SUCCESS", 20)
    step = mesh.step("a", task_id)
    assert step["owner"] in {"a", "b"}
    assert step["attempt"] == 1
    assert len(ends(journal)) == 1
    mesh.wait_seen("a", 5, c="LEFT")
    assert "released" in mesh.explain("a", task_id)


def test_a_workflow_passes_results_on_across_nodes(mesh):
    task_id = mesh.submit_workflow(
        "a",
        {"id": "left", "agent": "echo", "input": "l", "node": "b"},
        {"id": "right", "agent": "echo", "input": "r", "node": "c"},
        {"id": "join", "agent": "echo", "input": "j", "dependsOn": ["left", "right"], "node": "a"},
    )
    (task, *_) = mesh.wait_everywhere(task_id, "SUCCESS")
    assert {step["name"]: step["owner"] for step in task["steps"]} == {"left": "b", "right": "c", "join": "a"}


def test_idle_nodes_help_a_node_with_more_than_it_can_run(mesh):
    tasks = [mesh.submit("a", "work", {"seconds": 1}) for _ in range(12)]
    for task_id in tasks:
        mesh.wait_task("a", task_id, "SUCCESS", 20)
    owners = {mesh.step("a", task_id)["owner"] for task_id in tasks}
    assert len(owners) > 1

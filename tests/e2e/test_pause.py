"""A node that was stopped in its tracks and goes on later must not win with what it no longer owns."""

import json

from chaos.real.processes import wait_until


def test_a_late_result_does_not_win_and_shows_as_superseded(mesh, runs, ends):
    journal = mesh.journal()
    task_id = mesh.submit("a", "work", {"seconds": 1.5, "journal": str(journal)})
    mesh.wait_owned("b", task_id, "a")
    wait_until(lambda: runs(journal), 5, "the agent began")

    mesh.cluster.pause("a")
    try:
        # The agent itself goes on and ends while its node is stopped: its result waits for the node in a socket.
        mesh.wait_task("b", task_id, "SUCCESS", 15)
        assert len(ends(journal)) == 2
        winner = mesh.step("b", task_id)
        accepted = mesh.result("b", task_id)
        assert winner["owner"] != "a"
    finally:
        mesh.cluster.resume("a")

    mesh.wait_members(10, a="ALIVE", b="ALIVE", c="ALIVE")
    superseded = mesh.cluster.wait_answer(
        "b",
        "lease-conflicts",
        lambda rows: [row for row in rows if row["taskId"] == task_id],
        10,
        "the late result shows as superseded",
        limit=100,
    )
    assert "superseded" in json.dumps(superseded)
    assert "superseded" in mesh.explain("b", task_id)
    mesh.wait_agreed(task_id)
    for node in ("a", "b", "c"):
        assert mesh.step(node, task_id)["owner"] == winner["owner"]
        assert mesh.result(node, task_id) == accepted
    assert len(runs(journal)) == 2


def test_a_pause_shorter_than_the_dead_time_changes_nothing(mesh, runs):
    journal = mesh.journal()
    task_id = mesh.submit("c", "work", {"seconds": 2, "journal": str(journal)})
    wait_until(lambda: runs(journal), 5, "the agent began")
    mesh.cluster.pause("c")
    try:
        wait_until(lambda: mesh.statuses("a")["c"] != "ALIVE", 10, "the pause is noticed")
    finally:
        mesh.cluster.resume("c")
    mesh.wait_seen("a", 10, c="ALIVE")
    mesh.wait_everywhere(task_id, "SUCCESS")
    assert mesh.step("a", task_id)["owner"] == "c"
    assert len(runs(journal)) == 1


def test_a_paused_node_that_was_idle_takes_new_work_again(mesh):
    mesh.cluster.pause("b")
    try:
        mesh.wait_seen("a", 15, b="DEAD")
    finally:
        mesh.cluster.resume("b")
    mesh.wait_members(15, a="ALIVE", b="ALIVE", c="ALIVE")
    task_id = mesh.submit("b", "echo", "back")
    mesh.wait_everywhere(task_id, "SUCCESS")
    assert mesh.result("a", task_id) == "back"

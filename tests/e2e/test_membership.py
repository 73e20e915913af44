"""Nodes find each other, notice a death, take over its work, and take the dead one back."""

import time

from chaos.real.processes import wait_until


def test_all_members_are_known_everywhere_within_three_seconds_of_the_last_start(make_mesh):
    with make_mesh("a", "b", "c", start=False) as mesh:
        mesh.cluster.start("a", "b")
        mesh.cluster.start("c")
        mesh.wait_members(3, a="ALIVE", b="ALIVE", c="ALIVE")


def test_the_work_of_a_killed_node_ends_elsewhere_with_one_result(mesh, runs, ends):
    journal = mesh.journal()
    payload = {"seconds": 4, "journal": str(journal)}
    task_id = mesh.submit("a", "work", payload)
    mesh.wait_owned("a", task_id, "a")
    mesh.wait_owned("b", task_id, "a")
    wait_until(lambda: runs(journal), 5, "the agent began")

    mesh.cluster.kill("a")
    killed = time.monotonic()
    mesh.wait_seen("b", 10, a="DEAD")
    mesh.wait_seen("c", 10, a="DEAD")
    wait_until(lambda: len(runs(journal)) == 2, 2, "the step runs again elsewhere")
    assert time.monotonic() - killed < 12

    mesh.wait_everywhere(task_id, "SUCCESS")
    step = mesh.step("b", task_id)
    assert step["owner"] in {"b", "c"}
    assert len(ends(journal)) == 1
    assert mesh.result("b", task_id) == mesh.result("c", task_id)
    assert mesh.result("b", task_id)["fence"] in ends(journal)[0]
    assert "a" in mesh.explain("b", task_id)

    # The old node, started again, agrees; what it accepts from now on runs once.
    mesh.cluster.start("a")
    mesh.wait_task("a", task_id, "SUCCESS", 5)
    mesh.wait_agreed(task_id, timeout_s=5)
    fresh = mesh.journal()
    again = mesh.submit("a", "work", {"seconds": 0.1, "journal": str(fresh)})
    mesh.wait_everywhere(again, "SUCCESS")
    assert len(runs(fresh)) == 1
    assert len(runs(journal)) == 2


def test_a_lost_lease_is_no_failed_attempt(mesh, runs):
    """The run that died with its node gives its number back."""
    journal = mesh.journal()
    task_id = mesh.submit("b", "work", {"seconds": 3, "journal": str(journal)})
    wait_until(lambda: runs(journal), 5, "the agent began")
    mesh.wait_owned("a", task_id, "b")
    mesh.cluster.kill("b")
    mesh.wait_task("a", task_id, "SUCCESS", 20)
    assert mesh.step("a", task_id)["attempt"] == 1


def test_a_node_that_leaves_is_left_and_not_dead(mesh):
    assert mesh.cluster.terminate("c", timeout_s=15) == 0
    mesh.wait_seen("a", 5, c="LEFT")
    mesh.wait_seen("b", 5, c="LEFT")

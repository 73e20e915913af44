"""Both sides of a cut go on working, and agree when it heals. Each test proves that no byte crossed."""

import re
from contextlib import contextmanager

import pytest

from chaos.real.processes import wait_until


@pytest.fixture
def cut_off(mesh, walls):
    """Cut node a off from b and c, in both directions, until the block ends; both sides have noticed when it begins."""

    @contextmanager
    def cut():
        nodes = mesh.cluster.nodes
        line = walls.cut([nodes["a"].host], [nodes["b"].host, nodes["c"].host])
        try:
            mesh.wait_seen("a", 15, b="DEAD", c="DEAD")
            mesh.wait_seen("b", 15, a="DEAD", c="ALIVE")
            mesh.wait_seen("c", 15, a="DEAD", b="ALIVE")
            yield line
            assert line.crossed().octets == 0
            assert line.blocked().packets > 0
        finally:
            line.heal()
        mesh.wait_members(15, a="ALIVE", b="ALIVE", c="ALIVE")

    return cut


def test_work_of_both_sides_and_one_key_used_on_both_come_together(mesh, cut_off, runs):
    journals = {name: mesh.journal() for name in ("both", "west", "east")}

    def work(node: str, name: str, key: str) -> str:
        return mesh.submit(node, "work", {"journal": str(journals[name]), "seconds": 0.1}, idempotencyKey=key)

    with cut_off():
        west_key, east_key = work("a", "both", "the-key"), work("b", "both", "the-key")
        west, east = work("a", "west", "west"), work("b", "east", "east")
        for node, task_id in (("a", west_key), ("a", west), ("b", east_key), ("b", east)):
            mesh.wait_task(node, task_id, "SUCCESS")
    assert west_key == east_key
    for task_id in (west_key, west, east):
        mesh.wait_everywhere(task_id, "SUCCESS", 15)
    mesh.wait_agreed(west_key, west, east)
    for node in mesh.cluster.running():
        again = mesh.cluster.admin(
            node,
            "submit",
            agent="work",
            input=b'{"journal": "%s", "seconds": 0.1}' % bytes(journals["both"]),
            idempotencyKey="the-key",
        )
        assert (again["taskId"], again["deduplicated"]) == (west_key, True)
        listed = [task["taskId"] for task in mesh.cluster.admin(node, "tasks", limit=1_000, offset=0)]
        assert listed.count(west_key) == listed.count(west) == listed.count(east) == 1
    # Nothing finished ran again after the heal.
    assert len(runs(journals["west"])) == len(runs(journals["east"])) == 1
    assert len(runs(journals["both"])) == 2


def test_a_replay_on_both_sides_is_one_generation(mesh, cut_off, runs):
    journal, file = mesh.journal(), mesh.scratch / "appears-later"
    task_id = mesh.submit("b", "when-there", {"file": str(file), "journal": str(journal)})
    mesh.wait_everywhere(task_id, "DEAD_LETTER")
    file.write_text("now")
    with cut_off():
        assert mesh.cluster.admin("a", "replay", taskId=task_id)["replayed"]
        assert mesh.cluster.admin("b", "replay", taskId=task_id)["replayed"]
        mesh.wait_task("a", task_id, "SUCCESS")
        mesh.wait_task("b", task_id, "SUCCESS")
    mesh.wait_everywhere(task_id, "SUCCESS")
    mesh.wait_agreed(task_id)
    generations = {mesh.step(node, task_id)["generation"] for node in mesh.cluster.running()}
    assert generations == {1}
    assert len(runs(journal)) == 3
    assert "replay" in mesh.explain("c", task_id)


def test_a_cancel_that_cannot_reach_the_owner_is_requested_and_obeyed_after_the_heal(mesh, cut_off, runs, ends):
    journal = mesh.journal()
    with cut_off():
        # Submitted behind the cut, so that the other side knows the task only from the heal on.
        hidden = mesh.submit("a", "work", {"seconds": 60, "journal": str(journal)})
        mesh.wait_owned("a", hidden, "a")
    mesh.wait_owned("b", hidden, "a")
    answer = mesh.cluster.admin("b", "cancel", taskId=hidden, mode="hard", reason="changed my mind")
    assert answer["state"] in {"cancelled", "requested"}
    mesh.wait_everywhere(hidden, "CANCELLED")
    assert len(runs(journal)) == 1
    assert ends(journal) == []


def test_a_cancel_while_the_owner_is_cut_off_names_it(mesh, walls, ends):
    journal = mesh.journal()
    task_id = mesh.submit("a", "work", {"seconds": 60, "journal": str(journal)})
    mesh.wait_owned("b", task_id, "a")
    nodes = mesh.cluster.nodes
    with walls.cut([nodes["a"].host], [nodes["b"].host, nodes["c"].host]) as line:
        answer = mesh.cluster.admin("b", "cancel", taskId=task_id, mode="hard", reason="too long")
        assert answer["state"] == "requested"
        assert not answer["cancelled"]
        assert re.search(r"\ba\b", answer["message"])
        assert mesh.step("a", task_id)["status"] == "RUNNING"
        assert line.crossed().octets == 0
    mesh.wait_everywhere(task_id, "CANCELLED", 20)
    wait_until(lambda: mesh.task("a", task_id)["status"] == "CANCELLED", 5, "the owner obeyed")
    assert ends(journal) == []


def test_one_way_loss_does_not_split_a_mesh_whose_third_node_can_relay(mesh, walls):
    nodes = mesh.cluster.nodes
    with walls.cut([nodes["a"].host], [nodes["b"].host], one_way=True) as line:
        task_id = mesh.submit("a", "echo", "around the corner")
        mesh.wait_task("b", task_id, "SUCCESS", 20)
        wait_until(lambda: line.blocked().packets > 0, 10, "the cut was felt")
        assert line.crossed().octets == 0
    mesh.wait_members(15, a="ALIVE", b="ALIVE", c="ALIVE")

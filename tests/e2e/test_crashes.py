"""`kill -9` at any moment: what was acknowledged is there afterwards, and no process of the dead node is."""

import random
import secrets
import threading
import time
from pathlib import Path

import pytest

from chaos.real.processes import wait_until
from mesh.errors import RelayMeshError

ROUNDS = 4


@pytest.mark.slow
def test_acknowledged_submits_survive_kills_in_a_loop(make_mesh):
    """A sample of what the soak test below does a thousand times."""
    kill_in_a_loop(make_mesh, ROUNDS)


@pytest.mark.soak
def test_acknowledged_submits_survive_a_thousand_kills(make_mesh):
    kill_in_a_loop(make_mesh, 1_000)


def kill_in_a_loop(make_mesh, rounds: int) -> None:
    seed = secrets.randbits(32)
    draws = random.Random(seed)
    with make_mesh("solo") as mesh:
        acknowledged: list[str] = []
        for _ in range(rounds):
            submit_until_killed(mesh, acknowledged, draws.uniform(0.05, 0.8))
            mesh.cluster.start("solo")
            for task_id in acknowledged[-50:]:
                assert mesh.task("solo", task_id)["taskId"] == task_id, f"seed {seed}"
        assert acknowledged
        for task_id in acknowledged:
            mesh.wait_task("solo", task_id, "SUCCESS", 30)
        health = mesh.cluster.admin("solo", "health")
        assert health["ok"], health


def submit_until_killed(mesh, acknowledged: list[str], seconds: float) -> None:
    """Submit as fast as answers come, and kill the node in the midst of it."""
    killer = threading.Timer(seconds, lambda: mesh.cluster.kill("solo"))
    killer.start()
    try:
        while True:
            acknowledged.append(mesh.submit("solo", "echo", secrets.token_hex(8)))
    except RelayMeshError:
        assert not killer.is_alive() or killer.finished.wait(5)
    finally:
        killer.join()


def test_no_agent_and_no_grandchild_outlives_its_node(mesh, runs, tmp_path):
    nap = f"1000.{time.monotonic_ns()}"
    journal = tmp_path / "journal"
    mesh.submit("a", "brood", {"children": 5, "nap": nap, "seconds": 60, "journal": str(journal)})
    wait_until(lambda: runs(journal), 10, "the agent began")
    family = descendants(mesh.cluster.pid("a"))
    assert sum(nap in command for command in family.values()) == 5
    mesh.cluster.kill("a")
    wait_until(lambda: not any(is_same_process(pid, command) for pid, command in family.items()), 5, "all are gone")


def test_a_restarted_node_does_not_run_finished_work_again(mesh, runs):
    journal = mesh.journal()
    tasks = [mesh.submit("b", "work", {"journal": str(journal)}) for _ in range(5)]
    for task_id in tasks:
        mesh.wait_task("b", task_id, "SUCCESS")
    began = len(runs(journal))
    mesh.cluster.restart("b")
    for task_id in tasks:
        mesh.wait_task("b", task_id, "SUCCESS", 5)
    marker = mesh.submit("b", "work", {})
    mesh.wait_task("b", marker, "SUCCESS")
    assert len(runs(journal)) == began == 5


def test_a_mesh_that_is_killed_as_a_whole_goes_on_where_it_was(mesh, runs):
    journal = mesh.journal()
    done = mesh.submit("a", "echo", "kept")
    mesh.wait_everywhere(done, "SUCCESS")
    running = mesh.submit("a", "work", {"seconds": 2, "journal": str(journal)})
    wait_until(lambda: runs(journal), 5, "the agent began")
    for node in ("a", "b", "c"):
        mesh.cluster.kill(node)
    mesh.cluster.start()
    for node in ("a", "b", "c"):
        assert mesh.result(node, done) == "kept"
    mesh.wait_everywhere(running, "SUCCESS", 30)
    mesh.wait_agreed(done, running)


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below a process, by id."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    family: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            family[child] = command_of(child)
            waiting.append(child)
    return family


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def is_same_process(pid: int, command: str) -> bool:
    """Whether this process still lives; ids may be used again, command lines with a random number are not."""
    return bool(command) and command_of(pid) == command

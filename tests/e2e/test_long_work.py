"""What handlers do to their process does nothing to the node: its membership, its leases and its other work go on."""

import time

import pytest

from chaos.real.processes import wait_until


@pytest.fixture(scope="module")
def long_run(module_mesh):
    """A handler that runs ten times longer than a node may be silent; the other tests of this module run beside it."""
    journal = module_mesh.journal()
    seconds = 10 * module_mesh.dead_time_s
    task_id = module_mesh.submit("a", "work", {"seconds": seconds, "journal": str(journal)})
    module_mesh.wait_owned("a", task_id, "a")
    return task_id, journal, time.monotonic() + seconds


@pytest.fixture(autouse=True)
def beside_the_long_run(long_run):
    """Start it first."""


def assert_never_suspected(mesh, seconds: float) -> None:
    """For so long, every node sees every node ALIVE."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for node in mesh.cluster.running():
            assert set(mesh.statuses(node).values()) == {"ALIVE"}
        time.sleep(0.1)


def test_one_call_that_holds_the_interpreter_lock_makes_nobody_suspect(mesh):
    seconds = 2 * mesh.dead_time_s
    task_id = mesh.submit("a", "hold-gil", {"seconds": seconds})
    mesh.wait_owned("a", task_id, "a")
    assert_never_suspected(mesh, seconds)
    mesh.wait_task("a", task_id, "SUCCESS")
    assert mesh.step("a", task_id)["leaseEpoch"] == mesh.step("b", task_id)["leaseEpoch"]


def test_a_segfault_is_a_failed_attempt_that_says_so(mesh):
    task_id = mesh.submit("a", "segfault", {}, timeoutMs=10_000)
    task = mesh.wait_task("a", task_id, "DEAD_LETTER")
    assert "SIGSEGV" in task["lastError"] or "signal 11" in task["lastError"]
    assert set(mesh.statuses("b").values()) == {"ALIVE"}


def test_memory_past_the_limit_is_a_failed_attempt_that_says_so(mesh):
    task_id = mesh.submit("a", "hog", {"mib": 4_096})
    task = mesh.wait_task("a", task_id, "DEAD_LETTER")
    assert "memory" in task["lastError"].lower()


def test_children_in_sessions_of_their_own_are_gone_with_the_run(mesh, tmp_path):
    nap = f"1000.{time.monotonic_ns()}"
    task_id = mesh.submit("a", "brood", {"children": 60, "nap": nap, "journal": str(tmp_path / "journal")})
    mesh.wait_task("a", task_id, "SUCCESS")
    wait_until(lambda: processes_with(nap) == [], 3, "no grandchild is left")
    assert set(mesh.statuses("b").values()) == {"ALIVE"}


def test_the_long_handler_kept_its_lease_and_ran_once(mesh, long_run, runs, ends):
    task_id, journal, ends_at = long_run
    mesh.wait_task("a", task_id, "SUCCESS", max(5.0, ends_at - time.monotonic() + 10))
    assert len(runs(journal)) == len(ends(journal)) == 1
    step = mesh.step("b", task_id)
    assert (step["owner"], step["attempt"]) == ("a", 1)
    assert mesh.cluster.admin("b", "ownership-events", limit=100, taskId=task_id) == []


def processes_with(argument: str) -> list[int]:
    from pathlib import Path

    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and argument.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found

"""A node does not grow with the work it has done."""

import os
from pathlib import Path

import pytest

STEPS = 1_000
RSS_GROWTH_MAX = 24 * 1024 * 1024
"""Caches of the allocator and of SQLite fill up; ten thousand forgotten objects of 3 KiB would not fit."""


def usage(pid: int) -> tuple[int, int, int]:
    """Open handles, threads, resident bytes."""
    handles = len(os.listdir(f"/proc/{pid}/fd"))
    threads = len(os.listdir(f"/proc/{pid}/task"))
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return handles, threads, pages * os.sysconf("SC_PAGE_SIZE")


def run_thousand(mesh, agent: str) -> None:
    task_id = mesh.submit_workflow("a", *({"id": f"s{n}", "agent": agent, "input": "{}"} for n in range(STEPS)))
    mesh.wait_everywhere(task_id, "SUCCESS", 60)


@pytest.mark.slow
def test_handles_threads_and_memory_stay_flat_over_thousands_of_steps(mesh):
    """A sample of what the soak test below does with ten thousand."""
    assert_flat(mesh, thousands=2)


@pytest.mark.soak
def test_handles_threads_and_memory_stay_flat_over_ten_thousand_steps(mesh):
    assert_flat(mesh, thousands=10)


def assert_flat(mesh, *, thousands: int) -> None:
    pids = {node: mesh.cluster.pid(node) for node in mesh.cluster.nodes}
    run_thousand(mesh, "work")
    run_thousand(mesh, "work")
    before = {node: usage(pid) for node, pid in pids.items()}
    for _ in range(thousands):
        run_thousand(mesh, "work")
    for node, pid in pids.items():
        handles, threads, resident = usage(pid)
        assert handles <= before[node][0] + 4, node
        assert threads <= before[node][1], node
        assert resident <= before[node][2] + RSS_GROWTH_MAX, (node, before[node][2], resident)

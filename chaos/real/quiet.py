"""A mesh of real nodes comes to rest: how that is seen from outside, what it says then, and how it is stopped."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator

from chaos.real.processes import Cluster, wait_until
from mesh.errors import RelayMeshError
from node.work.tables import Status

STAYS_QUIET_S = 1.0
_PAGE = 1_000


def await_whole(cluster: Cluster, timeout_s: float) -> str:
    """Return when every node sees every node fit for work; else what was missing, in words."""
    return _await(lambda: _away(cluster), timeout_s, "the mesh is whole")


def await_quiet(cluster: Cluster, timeout_s: float, look_after: Callable[[], None]) -> str:
    """Return when all nodes see each other, all work has ended everywhere and nothing changes; else why not.

    `look_after` is called again and again: work that goes on may still bring a node down.
    """
    deadline = time.monotonic() + timeout_s

    def noise_now() -> str:
        look_after()
        return _noise(cluster)

    try:
        while True:
            noise = _await(noise_now, deadline - time.monotonic(), "the mesh is quiet")
            if noise:
                return noise
            before = _digests(cluster)
            time.sleep(STAYS_QUIET_S)
            if _digests(cluster) == before:
                return ""
    except RelayMeshError as error:
        return str(error)


def unexplained(cluster: Cluster, task_ids: Iterable[str], draws: random.Random) -> Iterator[str]:
    """Tasks of which `explain`, asked at random nodes, tells no story; and what it says instead."""
    for task_id in task_ids:
        node = draws.choice(list(cluster.nodes))
        try:
            story = cluster.admin(node, "explain", taskId=task_id)
        except RelayMeshError as error:
            yield f"{node} on {task_id}: {error}"
            continue
        if not story["summary"] or not all(step["summary"] and step["timeline"] for step in story["steps"]):
            yield f"{node} on {task_id}: {story}"


def stop_all(cluster: Cluster) -> Iterator[tuple[str, int | str]]:
    """Stop every running node in order: its exit code, or what went wrong."""
    for node in cluster.running():
        try:
            yield node, cluster.terminate(node)
        except TimeoutError as error:
            yield node, str(error)
            cluster.kill(node)


def _await(noise: Callable[[], str], timeout_s: float, what: str) -> str:
    """Ask until there is none, and return the last when there is no end of it."""
    last = ""

    def is_still() -> bool:
        nonlocal last
        try:
            last = noise()
        except RelayMeshError as error:
            last = str(error)
        return not last

    try:
        wait_until(is_still, max(0.0, timeout_s), what)
    except TimeoutError as error:
        return f"{error}: {last}"
    return ""


def _noise(cluster: Cluster) -> str:
    """What is not quiet yet; empty when all is."""
    away = _away(cluster)
    if away:
        return away
    for node in cluster.nodes:
        unfinished = [task["taskId"] for task in _all_tasks(cluster, node) if not Status(task["status"]).is_terminal]
        if unfinished:
            return f"{node} has {len(unfinished)} unfinished tasks: {unfinished[:5]}"
    digests = _digests(cluster)
    return "" if len(set(digests.values())) == 1 else f"replicas differ: {digests}"


def _away(cluster: Cluster) -> str:
    for node in cluster.nodes:
        fit = {m["nodeId"] for m in cluster.admin(node, "members") if m["effectiveStatus"] == "ALIVE"}
        away = sorted(cluster.nodes.keys() - fit)
        if away:
            return f"{node} sees {away} away"
    return ""


def _all_tasks(cluster: Cluster, node: str) -> Iterator[dict[str, str]]:
    offset = 0
    while page := cluster.admin(node, "tasks", limit=_PAGE, offset=offset):
        yield from page
        offset += len(page)


def _digests(cluster: Cluster) -> dict[str, str]:
    return {node: cluster.admin(node, "stats")["replication"]["vectorDigest"] for node in cluster.nodes}

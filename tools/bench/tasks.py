"""Tasks from submit to SUCCESS through real nodes: how many a second, how late each, and what each costs.

Two phases. In the burst many clients submit all tasks as fast as the nodes take them; the rate counts from the first
submit to the last result, by the stamps of the steps' own rows. In the paced phase one client submits a task, waits for
its result, and starts the next one a fixed time later: so latency is that of a node which has nothing else to do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from chaos.real.processes import Cluster, wait_until
from node.admin_client import AdminClient, LocalTarget
from tools.bench import machine
from tools.bench.load import LoadResult, drive
from tools.bench.report import Report, latency_us, make_report
from tools.bench.submits import PAYLOAD, submit_requests

AGENTS = ("echo", "python")
WARM_UP = 100
FINISH_S_MAX = 600.0
PACED_PER_S = 50.0
_AGENT_NAME = "bench-python"
_AGENT_FILE = f'''from relaymesh import agent


@agent("{_AGENT_NAME}")
def same(payload: bytes) -> bytes:
    return payload
'''
_NOTES = (
    "burst: tasksPerS from the first submit to the last result; p50Us, p99Us of the time from a task's submit to its "
    "result while all others wait too. paced: one task at a time, 50 a second, as its client sees it.",
    "nodeCpuUs: CPU for each task of all processes of all nodes, agents included. nodeRssBytes: the largest of them.",
)


@dataclass(frozen=True, slots=True)
class Finished:
    """When the steps of a database began and ended, on their nodes' stamp clocks (milliseconds)."""

    count: int
    first_ms: int
    last_ms: int
    latencies_s: Sequence[float]


def bench_tasks(directory: Path, *, count: int, nodes: int, agent: str, clients: int, slots: int, paced: int) -> Report:
    """Run `count` tasks through `nodes` nodes with `slots` slots each, then `paced` more one at a time."""
    agent_file = directory / "bench_agents.py"
    agent_file.write_text(_AGENT_FILE)
    name = _AGENT_NAME if agent == "python" else agent
    names = [f"bench-{chr(ord('a') + index)}" for index in range(nodes)]
    with Cluster(directory / "mesh", names, slots=slots, agents=[agent_file]) as cluster:
        cluster.start()
        wait_for_each_other(cluster, names)
        roots = [cluster.nodes[node].root for node in names]
        _run_burst(roots, WARM_UP, name, clients)  # starts agent hosts, fills caches
        processes = [cluster.pid(node) for node in names]
        before = machine.usage(machine.trees(processes))
        load, finished = _run_burst(roots, count, name, clients)
        used = machine.usage(machine.trees(processes)).since(before)
        rss = max(machine.usage([pid]).rss_bytes for pid in processes)
        results = [_burst_result(load, finished, used, rss)]
        if paced:
            before = machine.usage(machine.trees(processes))
            latencies = _run_paced(roots[0], paced, name)
            used = machine.usage(machine.trees(processes)).since(before)
            results.append(_paced_result(latencies, used))
    parameters = {
        "count": count,
        "nodes": nodes,
        "agent": agent,
        "clients": clients,
        "slots": slots,
        "paced": paced,
        "payloadBytes": len(PAYLOAD),
    }
    return make_report("tasks", directory, parameters, results, notes=_NOTES)


def _burst_result(load: LoadResult, finished: Finished, used: machine.Usage, rss: int) -> dict[str, Any]:
    seconds = max(1, finished.last_ms - finished.first_ms) / 1000
    return {
        "phase": "burst",
        "tasksPerS": round(finished.count / seconds),
        **latency_us(finished.latencies_s),
        "submitsPerS": round(finished.count / load.seconds),
        "nodeCpuUs": round(used.cpu_s / finished.count * 1e6),
        "clientCpuUs": round(load.cpu_s / finished.count * 1e6),
        "nodeRssBytes": rss,
        "allRssBytes": used.rss_bytes,
    }


def _paced_result(latencies_s: Sequence[float], used: machine.Usage) -> dict[str, Any]:
    return {
        "phase": "paced",
        "tasksPerS": PACED_PER_S,
        **latency_us(latencies_s),
        "nodeCpuUs": round(used.cpu_s / len(latencies_s) * 1e6),
    }


def wait_for_each_other(cluster: Cluster, names: Sequence[str]) -> None:
    """Return when every node sees all of them ALIVE."""
    for node in names:
        cluster.wait_answer(
            node,
            "members",
            lambda members: [member["status"] for member in members] == ["ALIVE"] * len(names),
            20.0,
            "all nodes know each other",
        )


def _run_burst(roots: Sequence[Path], count: int, agent: str, clients: int) -> tuple[LoadResult, Finished]:
    """Submit everything, spread over the nodes, and wait until every node's replica says that all is done."""
    databases = [apsw.Connection(str(root / "relaymesh.db"), flags=apsw.SQLITE_OPEN_READONLY) for root in roots]
    try:
        ended_before = [_ended(database) for database in databases]
        last_hlc = int(databases[0].execute("SELECT ifnull(max(hlc), 0) FROM steps").get)
        load = drive(roots, submit_requests(count, agent), clients=clients)
        for database, before in zip(databases, ended_before, strict=True):
            _wait_ended(database, before + count)
        return load, _finished(databases[0], last_hlc)
    finally:
        for database in databases:
            database.close()


def _wait_ended(database: apsw.Connection, count: int) -> None:
    wait_until(lambda: _ended(database) >= count, FINISH_S_MAX, f"{count} tasks are done in every replica")


def _ended(database: apsw.Connection) -> int:
    # Two counts that indexes answer, instead of one that reads every row: asking must not cost the node its disk.
    every = int(database.execute("SELECT count(*) FROM steps").get)
    still_open = int(database.execute("SELECT count(*) FROM steps WHERE rank = 0").get)
    return every - still_open


def _finished(database: apsw.Connection, after_hlc: int) -> Finished:
    rows = list(
        database.execute("SELECT created_hlc >> 16, hlc >> 16, status FROM steps WHERE created_hlc > ?", (after_hlc,))
    )
    failed = sum(status != "SUCCESS" for _, _, status in rows)
    assert not failed, f"{failed} of {len(rows)} tasks of the benchmark did not succeed"
    return Finished(
        count=len(rows),
        first_ms=min(created for created, _, _ in rows),
        last_ms=max(ended for _, ended, _ in rows),
        latencies_s=[(ended - created) / 1000 for created, ended, _ in rows],
    )


def _run_paced(root: Path, count: int, agent: str) -> list[float]:
    latencies = []
    with AdminClient(LocalTarget(root)) as client:
        due = time.perf_counter()
        for _ in range(count):
            time.sleep(max(0.0, due - time.perf_counter()))
            due = max(due, time.perf_counter()) + 1 / PACED_PER_S
            began = time.perf_counter()
            task = client.call("submit", {"agent": agent, "input": PAYLOAD})["taskId"]
            answer = client.call("wait", {"taskId": task, "timeoutMs": 10_000})
            assert answer["status"] == "SUCCESS", answer
            latencies.append(time.perf_counter() - began)
    return latencies

"""Durable submits through a real node, from many clients that each wait for their answer.

The node has one slot, and a long sleep fills it first: so what is measured is taking work in, not doing it.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from chaos.real.processes import Cluster
from tools.bench import machine
from tools.bench.load import LoadResult, drive, encode_request
from tools.bench.report import Report, latency_us, make_report

PAYLOAD = "x" * 64
WARM_UP = 200
_NOTES = (
    "nodeCpuUs and clientCpuUs: CPU for each submit, of the node's processes and of all clients together. On a machine",
    "with few cores the clients take theirs from the node.",
)


def bench_submits(directory: Path, *, count: int, clients: int) -> Report:
    """Submit `count` tasks from `clients` concurrent clients over the control socket of one node."""
    with Cluster(directory, ["bench-a"], slots=1) as cluster:
        cluster.start()
        root = cluster.nodes["bench-a"].root
        cluster.admin("bench-a", "submit", agent="sleep", input="86400", priority="high", timeoutMs=86_400_000)
        drive([root], submit_requests(min(WARM_UP, count), "echo"), clients=clients)
        requests = submit_requests(count, "echo")
        commits = store_counter(cluster, "bench-a", "commits")
        before = machine.usage(machine.tree(cluster.pid("bench-a")))
        load = drive([root], requests, clients=clients)
        used = machine.usage(machine.tree(cluster.pid("bench-a"))).since(before)
        commits = store_counter(cluster, "bench-a", "commits") - commits
    results = [_result(load, used, count, clients, commits)]
    parameters = {"count": count, "clients": clients, "payloadBytes": len(PAYLOAD)}
    return make_report("submits", directory, parameters, results, notes=_NOTES)


def _result(load: LoadResult, used: machine.Usage, count: int, clients: int, commits: int) -> dict[str, Any]:
    return {
        "clients": clients,
        "submitsPerS": round(count / load.seconds),
        **latency_us(load.latencies_s),
        "nodeCpuUs": round(used.cpu_s / count * 1e6),
        "clientCpuUs": round(load.cpu_s / count * 1e6),
        "submitsPerCommit": round(count / max(1, commits), 1),
        "rssBytes": used.rss_bytes,
    }


def submit_requests(count: int, agent: str) -> list[bytes]:
    """Encoded submits, each with a key of its own, as a command line would send them."""
    return [
        encode_request("submit", {"agent": agent, "input": PAYLOAD, "idempotencyKey": secrets.token_hex(16)})
        for _ in range(count)
    ]


def store_counter(cluster: Cluster, node_id: str, name: str) -> int:
    """One of the totals that the node's store keeps."""
    return int(cluster.admin(node_id, "stats")["store"].get(name, 0))

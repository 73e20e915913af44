"""What a mesh costs that has nothing to do: CPU, writes, memory and traffic of each node."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.real.processes import Cluster
from tools.bench import machine
from tools.bench.report import Report, make_report
from tools.bench.tasks import wait_for_each_other

SETTLE_S = 5.0
"""Joins are told, caches are checkpointed, and rumors have spent their budget after this long."""
_NOTES = (
    "writtenBytesPerMin counts what the kernel was asked to write, logs included; commits is what the store wrote.",
)


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    used: machine.Usage
    stats: dict[str, Any]

    def store(self, name: str) -> int:
        return int(self.stats["store"].get(name, 0))

    def gossip(self, name: str) -> int:
        return int(self.stats["gossip"][name])


def bench_idle(directory: Path, *, nodes: int, seconds: float, profile: str) -> Report:
    """Watch `nodes` nodes for `seconds` after they have settled."""
    names = [f"idle-{index + 1}" for index in range(nodes)]
    with Cluster(directory, names, profile=profile) as cluster:
        cluster.start()
        wait_for_each_other(cluster, names)
        time.sleep(SETTLE_S)
        before = {name: _read(cluster, name) for name in names}
        time.sleep(seconds)
        results = [_result(name, before[name], _read(cluster, name)) for name in names]
    parameters = {"nodes": nodes, "seconds": seconds, "profile": profile, "settleS": SETTLE_S}
    return make_report("idle", directory, parameters, results, notes=_NOTES)


def _read(cluster: Cluster, name: str) -> _Reading:
    # The question costs the node about a millisecond, once in the whole window: the first reading is taken after it.
    stats = cluster.admin(name, "stats")
    return _Reading(time.monotonic(), machine.usage(machine.tree(cluster.pid(name))), stats)


def _result(name: str, before: _Reading, after: _Reading) -> dict[str, Any]:
    seconds = after.at - before.at
    used = after.used.since(before.used)
    return {
        "nodeId": name,
        "cpuPct": round(100 * used.cpu_s / seconds, 2),
        "writtenBytesPerMin": round(used.written_bytes * 60 / seconds),
        "commits": after.store("commits") - before.store("commits"),
        "checkpoints": after.store("checkpoints") - before.store("checkpoints"),
        "rssBytes": used.rss_bytes,
        "datagramsSentPerS": round((after.gossip("datagramsSent") - before.gossip("datagramsSent")) / seconds, 2),
        "bytesSentPerS": round((after.gossip("bytesSent") - before.gossip("bytesSent")) / seconds),
    }

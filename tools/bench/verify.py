"""How long it takes two replicas at equal vectors to find that they are equal, and to find and repair one lost row."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from node.replication.verify import verify
from node.storage.reader import Reader
from tools.bench.behind import PEER, Line, build, copy_without, random_steps, served
from tools.bench.replicas import Replica, running_replica
from tools.bench.report import Report, make_report

_NOTES = (
    "From the question to the answer, over real TLS on loopback, both replicas in one process: counts and digest sums",
    "of every origin on both sides, for a lost row the descent by ranges and its commit, too. sumsMs: of one side.",
)


def bench_verify(directory: Path, *, rows: int) -> Report:
    """Compare two replicas of `rows` rows, one of which then lacks a row that its vector covers."""
    (directory / "donor").mkdir()
    results = trio.run(_measure, directory, rows)
    return make_report("verify", directory, {"rows": rows}, results, notes=_NOTES)


async def _measure(directory: Path, rows: int) -> list[dict[str, Any]]:
    donor, twin, damaged = (directory / name for name in ("donor", "twin", "damaged"))
    await build(donor, rows)
    copy_without(donor, twin, lambda _connection: [], unseen=False)
    copy_without(donor, damaged, partial(random_steps, count=1), unseen=False)
    results = []
    async with running_replica(donor) as serving:
        for what, root, repaired in (("equal", twin, 0), ("one row lost", damaged, 1)):
            async with served(directory, serving.store) as line, running_replica(root) as asking:
                results.append({"replicas": what, **await _verify(asking, line, repaired)})
                if repaired:
                    results.append({"replicas": "after the repair", **await _verify(asking, line, 0)})
    return results


async def _verify(asking: Replica, line: Line, repaired: int) -> dict[str, Any]:
    began = time.perf_counter()
    await asking.store.read(Reader.sums)
    sums_s = time.perf_counter() - began
    before = line.net.bytes_total
    began = time.perf_counter()
    found = await verify(asking.store, line.calls, PEER, line.address)
    seconds = time.perf_counter() - began
    assert (found.compared, found.repaired_rows) == (True, repaired), found
    return {
        "ms": round(seconds * 1e3, 1),
        "sumsMs": round(sums_s * 1e3, 1),
        "repairedRows": found.repaired_rows,
        "bytes": line.net.bytes_total - before,
    }

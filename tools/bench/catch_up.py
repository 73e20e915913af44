"""How fast a node that missed much gets it: one pull, from a peer's store into ours, over real TLS on loopback.

Both replicas hold a node's own tables, with its rules for rows of peers and its queue, and share one process.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tools.bench.behind import PEER, build, copy_without, last_rows, puller, served
from tools.bench.replicas import running_replica
from tools.bench.report import Report, make_report

_NOTES = (
    "One pull of finished tasks and their steps, from the request to the commit of the last row. bytes: above TLS, of",
    "both directions. cpuUs: of this process, that is of both replicas, for each row.",
)


def bench_catch_up(directory: Path, *, rows: int, held: int) -> Report:
    """Have a replica that holds `held` rows pull `rows` more."""
    (directory / "donor").mkdir()
    result = trio.run(_measure, directory, rows, held)
    return make_report("catch-up", directory, {"rows": rows, "held": held}, [result], notes=_NOTES)


async def _measure(directory: Path, rows: int, held: int) -> dict[str, Any]:
    donor, behind = directory / "donor", directory / "behind"
    await build(donor, held + rows)
    copy_without(donor, behind, partial(last_rows, count=rows), unseen=True)
    async with (
        running_replica(donor) as serving,
        running_replica(behind) as asking,
        served(directory, serving.store) as line,
    ):
        began, cpu_began = time.perf_counter(), time.process_time()
        received = await puller(asking, line.calls, lambda _name: line.address).pull(PEER)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        return {
            "rows": received,
            "seconds": round(seconds, 2),
            "rowsPerS": round(received / seconds),
            "bytes": line.net.bytes_total,
            "cpuUs": round(cpu_s / received * 1e6),
        }

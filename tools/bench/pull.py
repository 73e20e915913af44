"""What a pull costs on the wire beside the rows that it brings, by how many are missing.

Two replicas on the real disk, over real TLS on loopback. Bytes are counted above TLS, both ways, on a new connection;
a TLS record adds 22 B, and there is one for each frame of at most 16 KiB.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from mesh.ids import Address
from node.replication.calls import Caller, decode
from node.replication.pull import PullEnd, PullPart, PullRequest
from tools.bench.behind import PEER, Line, build, copy_without, last_rows, puller, random_steps, served
from tools.bench.replicas import running_replica
from tools.bench.report import Report, make_report

MISSING = (1, 100, 10_000)
REFERENCE_BYTES = {
    ("tail", 1): 303,
    ("tail", 100): 303,
    ("tail", 10_000): 303,
    ("gaps", 1): 307,
    ("gaps", 100): 706,
    ("gaps", 10_000): 23_900,
}
"""Measured for version vectors of 20 origins over 1,000,000 rows, before there was code: only the vector, once."""
_LACKING = {"tail": last_rows, "gaps": random_steps}
_NOTES = (
    "missing: tail, the last rows of one of 20 origins; gaps, random ones of all. metadataBytes: all that is no row,",
    "a vector in the request and one in the answer among it. ratio: metadataBytes over referenceBytes.",
)


class _Metered:
    """A caller that looks into a pull: how many bytes of its answer are rows."""

    def __init__(self, calls: Caller) -> None:
        self._calls = calls
        self.row_bytes = 0
        self.parts = 0
        self.vector_bytes = 0
        """Of the request's vector and of the answer's."""

    async def call(
        self,
        address: Address,
        verb: str,
        body: bytes,
        *,
        expect: str | None = None,
        timeout_s: float = 10.0,
        on_part: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> bytes:
        assert on_part is not None, verb
        take = on_part

        async def metered(data: bytes) -> None:
            self.row_bytes += len(decode(data, PullPart).rows)
            self.parts += 1
            await take(data)

        answer = await self._calls.call(address, verb, body, expect=expect, timeout_s=timeout_s, on_part=metered)
        end = decode(answer, PullEnd)
        self.row_bytes += len(end.rows)
        self.vector_bytes += len(decode(body, PullRequest).vector) + len(end.vector)
        return answer


def bench_pull(directory: Path, *, rows: int) -> Report:
    """Build a replica of `rows` rows, and have others pull what they lack of it."""
    (directory / "donor").mkdir()
    results = trio.run(_measure, directory, rows)
    return make_report("pull", directory, {"rows": rows}, results, notes=_NOTES)


async def _measure(directory: Path, rows: int) -> list[dict[str, Any]]:
    donor = directory / "donor"
    await build(donor, rows)
    lacks = {}
    for shape, lacking in _LACKING.items():
        for missing in (count for count in MISSING if count <= rows // 4):
            root = directory / f"{shape}-{missing}"
            copy_without(donor, root, partial(lacking, count=missing), unseen=True)
            lacks[shape, missing] = root
    results = []
    async with running_replica(donor) as serving:
        for (shape, missing), root in lacks.items():
            async with served(directory, serving.store) as line:
                measured = await _pull(root, line, missing)
            reference = REFERENCE_BYTES[shape, missing]
            ratio = round(measured["metadataBytes"] / reference, 2)
            results.append({"missing": shape, **measured, "referenceBytes": reference, "ratio": ratio})
    return results


async def _pull(root: Path, line: Line, missing: int) -> dict[str, Any]:
    metered = _Metered(line.calls)
    async with running_replica(root) as behind:
        began = time.perf_counter()
        received = await puller(behind, metered, lambda _name: line.address).pull(PEER)
        seconds = time.perf_counter() - began
    assert received == missing, (received, missing)
    return {
        "rows": received,
        "metadataBytes": line.net.bytes_total - metered.row_bytes,
        "vectorBytes": metered.vector_bytes,
        "parts": metered.parts + 1,
        "totalBytes": line.net.bytes_total,
        "bytesPerRow": round(line.net.bytes_total / received),
        "ms": round(seconds * 1e3, 1),
    }

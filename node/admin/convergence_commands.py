"""`convergence-report`: whether this replica and those of all peers are one, from their own words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from mesh.errors import RelayMeshError
from mesh.ids import Origin
from node.admin.arguments import Arguments
from node.node import Node
from node.replication.convergence import count, distance, most_missing, oldest_ms
from node.storage import quarantine

ORIGINS_SHOWN_MAX = 10
"""Origins that are listed for each peer and side: those with most missing rows."""


class ConvergenceCommands:
    """The commands, on one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {"convergence-report": self._report}

    async def _report(self, args: Arguments) -> dict[str, Any]:
        node = self._node
        peers = [await self._peer(peer) for peer in node.loop.alive_peers()]
        counters = node.store.counters()
        return {
            "nodeId": node.spec.node_id,
            # Nobody to compare with is no proof of agreement, but no disagreement either.
            "converged": all(peer["missingHere"] == peer["missingThere"] == 0 for peer in peers),
            "peers": peers,
            "pulls": node.puller.pulls_total,
            "appliedRows": counters.get("rows_applied", 0),
            "staleSkipped": counters.get("rows_stale", 0),
            "quarantined": dict(await node.store.read(quarantine.counts)),
            "vectorDigest": node.store.vector.digest().hex(),
            "generatedAtMs": int(node.env.clock.wall() * 1000),
        }

    async def _peer(self, peer: str) -> dict[str, Any]:
        node, now = self._node, self._node.env.clock.monotonic()
        verified, verified_at = node.verified.get(peer), node.verified_at.get(peer)
        pulled_at = node.puller.pulled_at.get(peer)
        view: dict[str, Any] = {
            "nodeId": peer,
            "missingHere": None,
            "missingThere": None,
            "lastPullAgeMs": None if pulled_at is None else int((now - pulled_at) * 1000),
            "lastVerifyAgeMs": None if verified_at is None else int((now - verified_at) * 1000),
            "differingRanges": None if verified is None or not verified.compared else verified.differing_ranges,
            "clockOffsetMs": node.puller.offset_ms(peer),
            "error": None,
        }
        address = node.loop.rpc_address(peer)
        if address is None:
            return {**view, "error": "its stream address is not known yet"}
        try:
            found = await distance(node.store, node.data_calls, peer, address)
        except RelayMeshError as error:
            return {**view, "error": str(error)}
        behind_there = most_missing(found.missing_there, origins_max=ORIGINS_SHOWN_MAX)
        oldest = await node.store.read(
            partial(oldest_ms, missing=found.missing_there, origins=[origin for origin, _ in behind_there])
        )
        behind_here = most_missing(found.missing_here, origins_max=ORIGINS_SHOWN_MAX)
        return {
            **view,
            "missingHere": sum(map(count, found.missing_here.values())),
            "missingThere": sum(map(count, found.missing_there.values())),
            # How old a version is that is not here, its vector does not tell.
            "originsBehindHere": [self._origin_view(origin, rows, None) for origin, rows in behind_here],
            "originsBehindThere": [
                self._origin_view(origin, rows, oldest.get(origin)) for origin, rows in behind_there
            ],
        }

    def _origin_view(self, origin: Origin, rows: int, oldest_at_ms: int | None) -> dict[str, Any]:
        now_ms = self._node.store.physical_ms()
        return {
            "nodeId": origin.node,
            "incarnation": f"{origin.incarnation:016x}",
            "rows": rows,
            "oldestAgeMs": None if oldest_at_ms is None else max(0, now_ms - oldest_at_ms),
        }

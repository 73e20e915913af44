"""Commands that replicate by hand: a node's rows into a document, and a document into a node."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from mesh.errors import ConfigError, RecordError
from mesh.identity import Authority
from mesh.version_vector import VersionVector
from node.admin.arguments import Arguments
from node.identity_files import authority_of
from node.node import Node
from node.replication import by_hand
from node.replication.envelope import ROWS_MAX, Opened, open_envelope

WALL_MS_MAX = 1 << 47
"""No stamp is later: they stay below 2**63."""


class ReplicationCommands:
    """The commands, on one node. Documents travel inside the request: no path is ever opened here."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {
            "replication-export": self._export,
            "replication-import": self._import,
            "replication-verify": self._verify,
        }

    def _authority(self) -> Authority:
        """Whom to believe: also a node that was revoked since it wrote an envelope."""
        return authority_of(self._node.trust.authorities)

    async def _export(self, args: Arguments) -> dict[str, Any]:
        limit = args.whole("limit", 10_000, smallest=1, largest=ROWS_MAX // 10)
        try:
            given = args.payload("since")
            since = VersionVector.from_wire(given) if given else VersionVector()
        except RecordError as error:
            raise ConfigError(f"replication-export: since is no version vector: {error}") from None
        since_ms = args.whole("sinceMs", 0, largest=WALL_MS_MAX)
        store, identity = self._node.store, self._node.spec.identity
        exported = await by_hand.export(store, identity, since, rows_max=limit, since_ms=since_ms)
        return {
            **_summary(open_envelope(self._authority(), exported.document)),
            "olderRows": exported.older,
            "more": exported.cut_off,
            "envelope": exported.document,
        }

    async def _import(self, args: Arguments) -> dict[str, Any]:
        opened = open_envelope(self._authority(), args.payload("envelope"))
        imported = await by_hand.import_opened(self._node.store, opened)
        return {
            **_summary(opened),
            "applied": imported.outcomes.get("applied", 0),
            "staleSkipped": imported.outcomes.get("stale", 0) + imported.outcomes.get("same", 0),
            "quarantined": imported.outcomes.get("quarantined", 0),
            "vectorJoined": imported.vector_joined,
            "importLagMs": max(0, self._node.store.physical_ms() - opened.envelope.generated_at_ms),
        }

    async def _verify(self, args: Arguments) -> dict[str, Any]:
        opened = open_envelope(self._authority(), args.payload("envelope"))
        compared = await by_hand.compare(self._node.store, opened)
        return {
            **_summary(opened),
            **dataclasses.asdict(compared),
            "ok": compared.missing == compared.differing == 0,
            "importable": not self._node.store.lacks(opened.since),
        }


def _summary(opened: Opened) -> dict[str, Any]:
    envelope = opened.envelope
    return {
        "schemaVersion": envelope.schema_version,
        "sourceNodeId": envelope.source_node_id,
        "sourceClusterEpoch": envelope.cluster_epoch,
        "generatedAtMs": envelope.generated_at_ms,
        "rows": opened.rows,
        "counts": envelope.counts,
        "complete": envelope.complete,
    }

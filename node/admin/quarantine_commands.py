"""Commands about what this node put aside: quarantined row versions, and keys that two tasks claim."""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from mesh.replica import REASON_CONFLICT, REASON_FUTURE, REASON_POISON, REASON_REJECTED, REASON_UNKNOWN_TABLE
from mesh.rows import Row
from mesh.tables import Value
from node.admin.arguments import Arguments
from node.node import Node
from node.storage import quarantine
from node.storage.reader import Reader

log = logging.getLogger(__name__)

ENTRIES_MAX = 5_000
REASONS = (REASON_CONFLICT, REASON_FUTURE, REASON_POISON, REASON_REJECTED, REASON_UNKNOWN_TABLE)


class QuarantineCommands:
    """The commands, on one node. They concern every namespace: a poisoned row may name any."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {
            "quarantine-list": self._list,
            "quarantine-show": self._show,
            "quarantine-retry": self._retry,
            "quarantine-drop": self._drop,
        }

    async def _list(self, args: Arguments) -> dict[str, Any]:
        reason = args.one_of("reason", ("", *REASONS), "") or None
        limit = args.whole("limit", 100, smallest=1, largest=ENTRIES_MAX)
        found = await self._node.store.read(partial(quarantine.entries, reason=reason, limit=limit))
        counted = await self._node.store.read(quarantine.counts)
        claimed = await self._node.store.read(partial(_claimed_keys, limit=limit))
        return {
            "rows": [self._entry_view(entry) for entry in found],
            "counts": dict(counted),
            "keyConflicts": claimed if reason is None else [],
        }

    async def _show(self, args: Arguments) -> dict[str, Any]:
        name = args.text("id")
        entry, row = await self._node.store.read(lambda reader: quarantine.entry(reader, name))
        return {**self._entry_view(entry), "row": row_view(row)}

    async def _retry(self, args: Arguments) -> dict[str, Any]:
        name = args.text("id")
        outcome, stays = await self._node.store.write(lambda tx: quarantine.retry(tx, name))
        log.info("quarantined row %s was judged again by %s: %s", name, args.peer.name, outcome)
        return {
            "id": name,
            "outcome": outcome,
            "stays": stays is not None,
            "reason": None if stays is None else stays.reason,
            "detail": None if stays is None else stays.detail,
        }

    async def _drop(self, args: Arguments) -> dict[str, Any]:
        name = args.text("id")
        entry = await self._node.store.write(lambda tx: quarantine.drop(tx, name))
        log.warning(
            "quarantined row %s of %s (%s, key %s) was dropped by %s",
            entry.name,
            entry.table,
            entry.reason,
            entry.key,
            args.peer.name,
        )
        return {**self._entry_view(entry), "dropped": True}

    def _entry_view(self, entry: quarantine.Entry) -> dict[str, Any]:
        return {
            "id": entry.name,
            "reason": entry.reason,
            "table": entry.table,
            "namespace": entry.namespace,
            "key": entry.key,
            "origin": entry.origin.node,
            "seq": entry.seq,
            "detail": entry.detail,
            "ageMs": max(0, self._node.store.physical_ms() - entry.at_ms),
            "updatedAtMs": entry.hlc >> 16,
            "parkedAtMs": entry.at_ms,
        }


def row_view(row: Row) -> dict[str, Any]:
    """A whole version for JSON: stamps as text, since they pass 2^53; bytes that are no text in base64."""
    return {
        "generation": row.generation,
        "deleted": row.deleted,
        "rank": row.rank,
        "clusterEpoch": row.cluster_epoch,
        "leaseEpoch": row.lease_epoch,
        "leaseHlc": str(row.lease_hlc),
        "hlc": str(row.hlc),
        "nodeId": row.node,
        "incarnation": f"{row.origin.incarnation:016x}",
        "seq": row.seq,
        "values": _values_view(row.values),
    }


def _values_view(values: Mapping[str, Value]) -> dict[str, Any]:
    return {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in sorted(values.items())
    }


def _claimed_keys(reader: Reader, *, limit: int) -> list[dict[str, Any]]:
    """Idempotency keys with more than one task: both sides of a cut accepted a definition of their own."""
    found = reader.sql(
        "SELECT namespace, idempotency_key, group_concat(key, ' ') FROM "
        "(SELECT namespace, idempotency_key, key FROM tasks WHERE deleted = 0 ORDER BY key) "
        "GROUP BY namespace, idempotency_key HAVING count(*) > 1 ORDER BY namespace, idempotency_key LIMIT ?",
        (limit,),
    )
    return [
        {"namespace": namespace, "idempotencyKey": key, "taskIds": str(tasks).split(" ")}
        for namespace, key, tasks in found
    ]

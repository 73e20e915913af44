"""`diagnosis`: what `relaymesh doctor` needs and no other command tells."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from mesh.rows import Row
from node import host_facts
from node.admin.arguments import Arguments
from node.admin.situation import read_stored, situation_of
from node.config import NodeConfig
from node.node import Node
from node.settings import changed_without_effect
from node.storage.reader import Reader
from node.work.explain import reasons
from node.work.history import Action
from node.work.retention import namespaces
from node.work.status import continues, depends_on, step_status
from node.work.tables import Status
from node.work.transitions import task_steps

WAITING_LOOKED_AT = 50
"""The oldest waiting steps, of which the reasons are told."""
FAILURES_LOOKED_AT = 1_000
LATELY_MS = 3_600_000


class DiagnosisCommands:
    """The command, on one node."""

    def __init__(self, node: Node, config: NodeConfig) -> None:
        self._node = node
        self._root = Path(config.root)

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {"diagnosis": self._diagnosis}

    async def _diagnosis(self, args: Arguments) -> dict[str, Any]:
        """All namespaces."""
        node = self._node
        now_ms = node.store.physical_ms()
        files, files_max = host_facts.open_files()
        permissions = host_facts.permissions_of(self._root)
        settings = node.spec.settings
        return {
            "nodeId": node.spec.node_id,
            "root": str(self._root),
            "rootPermissions": None if permissions is None else f"{permissions:04o}",
            "rootFileSystem": (kind := host_facts.file_system_of(self._root)),
            "rootIsOnNetwork": kind in host_facts.NETWORK_FILE_SYSTEMS,
            "diskBytes": host_facts.disk_bytes(self._root),
            "openFiles": files,
            "openFilesMax": files_max,
            "settings": msgspec.to_builtins(settings),
            "settingsWithoutEffect": changed_without_effect(settings),
            "agentsMissing": await self._agents_missing(),
            "waiting": await self._waiting(now_ms),
            "deadLettersLately": await node.store.read(partial(_dead_letters, since_ms=now_ms - LATELY_MS)),
            "latelyMs": LATELY_MS,
        }

    async def _agents_missing(self) -> dict[str, int]:
        """Agents that steps in this node's queue wait for and no usable member has, with how many wait."""
        found = await self._node.store.read(
            lambda reader: reader.sql(
                "SELECT agent, count(*) FROM queue WHERE runnable = 0 GROUP BY agent ORDER BY agent"
            )
        )
        here = {name for offer in self._node.ownership.usable_offers() for name in offer.abilities}
        return {str(agent): int(count) for agent, count in found if agent not in here}

    async def _waiting(self, now_ms: int) -> list[dict[str, Any]]:
        """The steps of this node's queue that wait longest, and why."""
        told = []
        for step, parents in await self._node.store.read(_longest_waiting):
            stored = await self._node.store.read(partial(read_stored, steps=[step, *parents]))
            by_name = {row.text("name"): row for row in parents}
            first = reasons(step, by_name, situation_of(self._node, stored))[:1]
            told.append(
                {
                    "stepId": step.key,
                    "taskId": step.text("task_id"),
                    "namespace": step.namespace,
                    "agentId": step.text("agent"),
                    "waitedMs": max(0, now_ms - (step.hlc >> 16)),
                    "reason": first[0].code if first else "",
                    "text": first[0].text if first else "",
                }
            )
        return told


def _longest_waiting(reader: Reader) -> list[tuple[Row, list[Row]]]:
    """The steps, each with those that it depends on."""
    found = reader.sql("SELECT namespace, step_id FROM queue ORDER BY enqueued_hlc LIMIT ?", (WAITING_LOOKED_AT,))
    steps = [reader.get("steps", namespace, step_id) for namespace, step_id in found]
    return [(step, _parents(reader, step)) for step in steps if step is not None]


def _parents(reader: Reader, step: Row) -> list[Row]:
    names = depends_on(step)
    if not names:
        return []
    if continues(step):  # whether its parents can still come to something depends on theirs
        return task_steps(reader, step.namespace, step.text("task_id"))
    # Not all siblings: fifty steps of one task of a thousand would read fifty thousand.
    where = f"namespace = ? AND task_id = ? AND deleted = 0 AND name IN ({','.join('?' * len(names))})"
    return reader.select("steps", where, (step.namespace, step.text("task_id"), *names))


def _dead_letters(reader: Reader, since_ms: int) -> list[dict[str, Any]]:
    """What became a dead letter lately, by agent and error, most first. Attempts are looked at, newest first."""
    counted: Counter[tuple[str, str]] = Counter()
    seen: set[str] = set()
    for namespace in namespaces(reader):
        failures = reader.select(
            "history",
            "namespace = ? AND hlc >= ? AND action = ?",
            (namespace, since_ms << 16, Action.FAILED.value),
            order="hlc DESC",
            limit=FAILURES_LOOKED_AT,
        )
        for failure in failures:
            step_id = failure.text("step_id")
            if step_id in seen:
                continue
            seen.add(step_id)
            step = reader.get("steps", namespace, step_id)
            if step is not None and step_status(step) is Status.DEAD_LETTER:
                error = str(json.loads(failure.text("detail") or "{}").get("error", ""))
                counted[step.text("agent"), error[:120]] += 1
    return [{"agentId": agent, "error": error, "count": count} for (agent, error), count in counted.most_common(10)]

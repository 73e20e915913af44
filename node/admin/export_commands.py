"""Commands that give what an operator takes along: a task with all that belongs to it, and a report about leases."""

from __future__ import annotations

import collections
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from mesh.errors import NotFoundError
from mesh.rows import Row
from node.admin.arguments import Arguments
from node.node import Node
from node.storage.reader import Reader
from node.work.history import OWNERSHIP
from node.work.payloads import PayloadMissingError, load_payload
from node.work.status import step_status
from node.work.tables import Status
from node.work.transitions import existing_task, task_steps
from node.work.views import event_view, payload_fields, step_view, task_view

PAGE_STEPS_MAX = 100
PAGE_EVENTS_MAX = 500
"""Of an export in one answer: 100 steps with both payloads, or 500 events, are some MiB at most."""
INLINE_BYTES_MAX = 16 * 1024
"""Payloads up to this size come with their step; larger ones are asked for one by one."""
REPORT_ROWS_MAX = 50_000
TOP = 10
SAMPLE = 50


class ExportCommands:
    """The commands, on one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {
            "task-export": self._task_export,
            "step-payload": self._step_payload,
            "lease-report": self._lease_report,
        }

    async def _task_export(self, args: Arguments) -> dict[str, Any]:
        """One page of all that is known of a task: of its `steps` or of its `events`, from `offset` on."""
        part = args.one_of("part", ("steps", "events"), "steps")
        offset = args.whole("offset", 0, largest=100_000_000)
        page = _steps_page if part == "steps" else _events_page
        return await self._node.store.read(
            lambda reader: page(reader, existing_task(reader, args.namespace, args.text("taskId")), offset)
        )

    async def _step_payload(self, args: Arguments) -> dict[str, Any]:
        """One input or result as its bytes; None when it is not at this node."""
        column = args.one_of("column", ("input", "result"), "result")
        step_id = args.text("stepId")
        return await self._node.store.read(lambda reader: _payload(reader, args.namespace, step_id, column))

    async def _lease_report(self, args: Arguments) -> dict[str, Any]:
        """What happened to leases in the last hours, by kind, step and node, from the history."""
        hours = args.whole("hours", 24, smallest=1, largest=24 * 365)
        limit = args.whole("limit", 5_000, smallest=1, largest=REPORT_ROWS_MAX)
        now_ms = int(self._node.env.clock.wall() * 1000)
        since_hlc = max(0, now_ms - hours * 3_600_000) << 16
        names = [action.value for action in OWNERSHIP]
        rows = await self._node.store.read(
            lambda reader: reader.select(
                "history",
                f"namespace = ? AND hlc >= ? AND deleted = 0 AND action IN ({','.join('?' * len(names))})",
                (args.namespace, since_hlc, *names),
                order="hlc DESC",
                limit=limit + 1,
            )
        )
        more, rows = len(rows) > limit, rows[:limit]
        return {
            "schema_version": "relaymesh.lease-report.v1",
            "namespace": args.namespace,
            "seen_from": self._node.spec.node_id,
            "generated_at": datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds"),
            "window_hours": hours,
            "rows": len(rows),
            "more": more,
            "by_event_type": _most_common(row.text("action") for row in rows),
            "top_steps": [
                {"stepId": step_id, "events": count}
                for step_id, count in collections.Counter(row.text("step_id") for row in rows).most_common(TOP)
            ],
            "top_workers": [
                {"nodeId": node, "events": count}
                for node, count in collections.Counter(row.node for row in rows).most_common(TOP)
            ],
            "sample": [event_view(row) for row in rows[:SAMPLE]],
        }


def _most_common(words: Iterable[str]) -> dict[str, int]:
    return dict(collections.Counter(words).most_common())


def payload_view(reader: Reader, step: Row, column: str) -> dict[str, Any]:
    """A payload with its step when it is small; else its size, and whoever wants it asks for it."""
    try:
        content = load_payload(reader, step, column)
    except PayloadMissingError:
        return {f"{column}Missing": True}
    if len(content) > INLINE_BYTES_MAX:
        return {f"{column}Bytes": len(content)}
    return payload_fields(column, content)


def _steps_page(reader: Reader, task: Row, offset: int) -> dict[str, Any]:
    steps = task_steps(reader, task.namespace, task.key)
    by_name = {step.text("name"): step for step in steps}
    page = steps[offset : offset + PAGE_STEPS_MAX]
    return {
        "task": task_view(reader, task, steps, with_steps=False),
        "items": [
            step_view(reader, step, by_name)
            | payload_view(reader, step, "input")
            | (payload_view(reader, step, "result") if step_status(step) is Status.SUCCESS else {})
            for step in page
        ],
        "next": offset + len(page) if offset + len(page) < len(steps) else None,
    }


def _events_page(reader: Reader, task: Row, offset: int) -> dict[str, Any]:
    rows = reader.select(
        "history",
        "namespace = ? AND task_id = ? AND deleted = 0",
        (task.namespace, task.key),
        order=f"hlc, key LIMIT {PAGE_EVENTS_MAX + 1} OFFSET {offset}",
    )
    page = rows[:PAGE_EVENTS_MAX]
    return {
        "items": [event_view(row) for row in page],
        "next": offset + len(page) if len(rows) > PAGE_EVENTS_MAX else None,
    }


def _payload(reader: Reader, namespace: str, step_id: str, column: str) -> dict[str, Any]:
    step = reader.get("steps", namespace, step_id)
    if step is None or step.deleted:
        raise NotFoundError(f"step {step_id} is not known here in namespace {namespace!r}")
    try:
        return {"content": load_payload(reader, step, column)}
    except PayloadMissingError:
        return {"content": None}

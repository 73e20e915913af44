"""Commands about schedules: store, show, pause and remove them, and tell their slots."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from mesh.errors import ConflictError, LimitError, NotFoundError
from mesh.rows import Row
from mesh.tables import Value
from node.admin.arguments import Arguments
from node.node import Node
from node.storage.reader import Reader
from node.storage.transaction import Transaction
from node.work.cron import CRON_CHARS_MAX, ZONE_CHARS_MAX, next_slots, parse_cron, utc_text
from node.work.schedules import (
    CATCH_UPS,
    DEFINITION_BYTES_MAX,
    SCHEDULES_MAX,
    is_paused,
    parse_definition,
    parse_name,
    slot_key,
    time_stamp,
)
from node.work.status import task_status
from node.work.transitions import task_steps, tasks_of_key

NEXT_MAX = 1_000
RECENT_SLOTS = 10
"""`show` tells what became of the latest so many slots."""
_RECENT_MS = 50 * 366 * 24 * 3600 * 1000


class ScheduleCommands:
    """The commands, on one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {
            "schedule-add": self._add,
            "schedule-list": self._list,
            "schedule-show": self._show,
            "schedule-remove": self._remove,
            "schedule-pause": self._pause,
            "schedule-resume": self._resume,
            "schedule-next": self._next,
        }

    # --- change ---

    async def _add(self, args: Arguments) -> dict[str, Any]:
        node, scheduler = self._node, self._node.scheduler
        name = parse_name(args.text("name", chars_max=64))
        cron = parse_cron(
            args.text("cron", chars_max=CRON_CHARS_MAX), args.text("timeZone", "UTC", chars_max=ZONE_CHARS_MAX)
        )
        text = json.dumps(args.raw("definition"), separators=(",", ":"), sort_keys=True).encode()
        if len(text) > DEFINITION_BYTES_MAX:
            raise LimitError(
                f"schedule {name!r}: its definition has {len(text):,} bytes, the limit is {DEFINITION_BYTES_MAX:,}: "
                "pass a path or an address as input instead"
            )
        definition = parse_definition(text, scheduler.limits)
        values: dict[str, Value] = {
            "cron": cron.expression,
            "time_zone": cron.zone.key,
            "catch_up": args.one_of("catchUp", CATCH_UPS, CATCH_UPS[0]),
            "definition": text,
        }
        may_replace = bool(args.raw("replace"))
        changed = await node.store.write(
            partial(
                _store,
                namespace=args.namespace,
                name=name,
                values=values,
                may_replace=may_replace,
                from_hlc=time_stamp(scheduler.now_ms()),
                actor=args.peer.name,
            )
        )
        known = {each for offer in node.ownership.all_offers().values() for each in offer.abilities}
        strangers = [agent for agent in definition.agents() if agent not in known]
        view = await self._view_of(args.namespace, name)
        return {
            **view,
            "changed": changed,
            "message": ("stored" if changed else "it was stored already, and nothing is changed")
            + (f"; no node of this mesh has an agent {strangers[0]!r} yet" if strangers else ""),
        }

    async def _remove(self, args: Arguments) -> dict[str, Any]:
        name = args.text("name", chars_max=64)
        await self._node.store.write(partial(_change, namespace=args.namespace, name=name, values={}, deleted=True))
        return {"name": name, "removed": True, "message": "removed; tasks that it has submitted stay"}

    async def _pause(self, args: Arguments) -> dict[str, Any]:
        name = args.text("name", chars_max=64)
        values: dict[str, Value] = {"from_hlc": None, "actor": args.peer.name}
        await self._node.store.write(partial(_change, namespace=args.namespace, name=name, values=values))
        return await self._view_of(args.namespace, name)

    async def _resume(self, args: Arguments) -> dict[str, Any]:
        """Slots of the pause are not made up for; one that is not paused is left as it is."""
        name = args.text("name", chars_max=64)
        if is_paused(await self._row(args.namespace, name)):
            now = time_stamp(self._node.scheduler.now_ms())
            values: dict[str, Value] = {"from_hlc": now, "actor": args.peer.name}
            await self._node.store.write(partial(_change, namespace=args.namespace, name=name, values=values))
        return await self._view_of(args.namespace, name)

    # --- tell ---

    async def _list(self, args: Arguments) -> dict[str, Any]:
        rows = await self._node.store.read(
            lambda reader: reader.select("schedules", "namespace = ? AND deleted = 0", (args.namespace,), order="key")
        )
        return {"schedules": [self._view(row) for row in rows], **self._mesh_view()}

    async def _show(self, args: Arguments) -> dict[str, Any]:
        row = await self._row(args.namespace, args.text("name", chars_max=64))
        now_ms = self._node.scheduler.now_ms()
        recent: list[dict[str, Any]] = []
        if not self._node.scheduler.problem_of(row.namespace, row.key):
            cron = parse_cron(row.text("cron"), row.text("time_zone"))
            slots = cron.last_between(now_ms - _RECENT_MS, now_ms, RECENT_SLOTS)
            recent = await self._node.store.read(lambda reader: _tasks_of(reader, row, slots))
        return {
            **self._view(row),
            "definition": _shown_definition(row),
            "order": self._node.scheduler.order(row.namespace, row.key),
            "recent": recent,
            **self._mesh_view(),
        }

    async def _next(self, args: Arguments) -> dict[str, Any]:
        row = await self._row(args.namespace, args.text("name", chars_max=64))
        count = args.whole("count", 5, smallest=1, largest=NEXT_MAX)
        cron = parse_cron(row.text("cron"), row.text("time_zone"))
        paused = {"message": "it is paused: none of these will be submitted"} if is_paused(row) else {}
        return {"name": row.key, **next_slots(cron, self._node.scheduler.now_ms(), count), **paused}

    async def _row(self, namespace: str, name: str) -> Row:
        row = await self._node.store.read(lambda reader: reader.get("schedules", namespace, name))
        return _existing(row, namespace, name)

    async def _view_of(self, namespace: str, name: str) -> dict[str, Any]:
        return {**self._view(await self._row(namespace, name)), **self._mesh_view()}

    def _mesh_view(self) -> dict[str, Any]:
        scheduler = self._node.scheduler
        return {
            "nowUtc": utc_text(scheduler.now_ms()),
            "held": scheduler.is_held,
            "clockProblem": scheduler.clock_problem(),
        }

    def _view(self, row: Row) -> dict[str, Any]:
        scheduler = self._node.scheduler
        problem, look_ms = scheduler.problem_of(row.namespace, row.key), scheduler.look_ms(row.namespace, row.key)
        order = scheduler.order(row.namespace, row.key)
        return {
            "name": row.key,
            "state": "BROKEN" if problem else "PAUSED" if is_paused(row) else "ACTIVE",
            "cron": row.text("cron"),
            "timeZone": row.text("time_zone"),
            "catchUp": row.text("catch_up"),
            "nextUtc": None if look_ms is None else utc_text(look_ms),
            "fromUtc": None if is_paused(row) else utc_text(row.integer("from_hlc") >> 16),
            "submitter": order[0] if order else None,
            "actor": row.text("actor"),
            "problem": problem,
        }


def _shown_definition(row: Row) -> Any:
    text = row.blob("definition") or b""
    try:
        return msgspec.json.decode(text)  # stricter than json: what it takes can be sent in an answer
    except (ValueError, RecursionError):
        return text.decode("utf-8", "replace")  # of a peer that is not ours; `problem` says what is wrong


def _existing(row: Row | None, namespace: str, name: str) -> Row:
    if row is None or row.deleted:
        raise NotFoundError(f"there is no schedule {name!r} in namespace {namespace!r}: see `relaymesh schedule list`")
    return row


def _store(
    tx: Transaction,
    *,
    namespace: str,
    name: str,
    values: dict[str, Value],
    may_replace: bool,
    from_hlc: int,
    actor: str,
) -> bool:
    """Whether the row was written: not when it says the same already."""
    row = tx.get("schedules", namespace, name)
    if row is None or row.deleted:
        ((count,),) = tx.sql("SELECT count(*) FROM schedules WHERE deleted = 0")
        if count >= SCHEDULES_MAX:
            raise LimitError(f"this mesh has {count} schedules, the limit is {SCHEDULES_MAX}: remove some first")
    elif all(row.values.get(column) == value for column, value in values.items()):
        return False
    elif not may_replace:
        raise ConflictError(
            f"there is a schedule {name!r} in namespace {namespace!r} that says something else: add --replace to "
            "change it, or give another name"
        )
    tx.put("schedules", namespace, name, {**values, "from_hlc": from_hlc, "actor": actor}, deleted=False)
    return True


def _change(tx: Transaction, *, namespace: str, name: str, values: dict[str, Value], deleted: bool = False) -> None:
    _existing(tx.get("schedules", namespace, name), namespace, name)
    tx.put("schedules", namespace, name, values, deleted=deleted)


def _tasks_of(reader: Reader, row: Row, slots: list[int]) -> list[dict[str, Any]]:
    found = []
    for slot_ms in reversed(slots):
        for task in tasks_of_key(reader, row.namespace, slot_key(row.key, slot_ms)):
            status = task_status(task, task_steps(reader, row.namespace, task.key))
            found.append({"slotUtc": utc_text(slot_ms), "taskId": task.key, "status": status.value})
    return found

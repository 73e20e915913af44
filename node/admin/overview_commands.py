"""`overview`: what `relaymesh top` shows, in one answer that is cheap enough to be asked for every two seconds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import trio

from mesh.membership import Member, Status
from mesh.rows import Row
from node.admin.arguments import Arguments
from node.node import Node
from node.storage.reader import Reader
from node.storage.store import Commit
from node.work.flow import Flow
from node.work.tables import MESH_NAMESPACE, PRIORITIES

RUNNING_SHOWN_MAX = 100
COUNT_SHARE = 50
"""Counting takes at most one part in so many of the time: with 100,000 steps waiting it is done every second or so."""


class Depths(NamedTuple):
    """What waits and for how long, as of one read."""

    queue: dict[str, tuple[int, int]]
    """This node's queue: how many steps and the oldest one's stamp, by priority."""
    not_here: int
    """Of those, how many cannot run here."""
    open_by_owner: dict[str, int]
    """Steps that have not ended, by owner; blocked and running ones included."""
    holds: list[str]


class OverviewCommands:
    """The command, on one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._flow = Flow()
        self._depths = Depths({}, 0, {}, [])
        self._count_again_at = float("-inf")
        self._turn = trio.Lock()
        self._begun_at = node.env.clock.monotonic()
        node.store.on_commit(self._on_commit)

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {"overview": self._overview}

    def _on_commit(self, commit: Commit) -> None:
        if self._flow.since is not None:
            self._flow.on_commit(commit, self._node.env.clock.monotonic())

    async def _overview(self, args: Arguments) -> dict[str, Any]:
        """All namespaces. Totals count from the first look on, until nobody has looked for 30 s."""
        limit = args.whole("limit", RUNNING_SHOWN_MAX, smallest=0, largest=1_000)
        node, now = self._node, self._node.env.clock.monotonic()
        async with self._turn:
            if self._flow.watch(now):
                self._flow.seed(await node.store.read(_running), now)
            await self._count(now)
        running = sorted(self._flow.running.values(), key=lambda row: (row.lease_hlc, row.key))
        running_by_owner: dict[str, int] = {}
        for row in running:
            running_by_owner[row.text("owner")] = running_by_owner.get(row.text("owner"), 0) + 1
        now_ms = node.store.physical_ms()
        return {
            "nodeId": node.spec.node_id,
            "members": [self._member(member, running_by_owner) for member in node.gossip.members.all()],
            "queue": {name: _depth(self._depths.queue.get(name), now_ms) for name in PRIORITIES},
            "queuedForOthers": self._depths.not_here,
            "slots": node.spec.slots,
            "runningHere": len(node.runtime.running()),
            "totals": asdict(self._flow.totals),
            "countedForMs": int((now - (now if self._flow.since is None else self._flow.since)) * 1000),
            "runningTotal": len(running),
            "running": [_run(row, now_ms) for row in running[:limit]],
            "attention": self._attention(),
            "generatedAtMs": int(node.env.clock.wall() * 1000),
        }

    async def _count(self, now: float) -> None:
        if now < self._count_again_at:
            return
        clock = self._node.env.clock
        begun = clock.monotonic()
        self._depths = await self._node.store.read(_read_depths)
        ended = clock.monotonic()
        self._count_again_at = ended + COUNT_SHARE * (ended - begun)

    def _member(self, member: Member, running: dict[str, int]) -> dict[str, Any]:
        node, clock = self._node, self._node.env.clock
        to_wall = clock.wall() - clock.monotonic()
        effective = node.gossip.effective.status(member.node_id, clock.monotonic())
        is_me = member.node_id == node.spec.node_id
        return {
            "nodeId": member.node_id,
            "status": member.status.value,
            "effectiveStatus": member.status.value if is_me else effective.value,
            "isThisNode": is_me,
            "statusSinceMs": int((to_wall + (self._begun_at if is_me else member.status_since)) * 1000),
            "lastHeartbeatMs": None if member.last_heard is None else int((to_wall + member.last_heard) * 1000),
            "storeFailed": member.store_failed,
            "release": member.speaks.release or node.ownership.release_of(member.node_id),
            "openSteps": self._depths.open_by_owner.get(member.node_id, 0),
            "runningSteps": running.get(member.node_id, 0),
        }

    def _attention(self) -> list[str]:
        """What somebody should look at, as sentences."""
        node = self._node
        members = node.gossip.members.all()
        found = [
            f"{member.node_id} is {member.status.value}" + (" and owns open steps" if owns else "")
            for member in members
            if member.status in (Status.SUSPECT, Status.DEAD)
            for owns in [bool(self._depths.open_by_owner.get(member.node_id))]
        ]
        found += [f"{member.node_id} says that its store fails" for member in members if member.store_failed]
        known = {member.node_id for member in members}
        strangers = sorted(owner for owner in self._depths.open_by_owner if owner not in known)
        found += [f"{owner}, which is not known here, owns open steps" for owner in strangers[:3]]
        if not node.loop.may_reclaim():
            found.append("more than half of the mesh failed at once: nothing is taken over for now")
        if node.runtime.paused:
            found.append(f"{node.spec.node_id} starts nothing new: {node.runtime.paused}")
        if not node.gate.is_open:
            found.append(f"{node.spec.node_id} waits to hear from a peer before it touches old work")
        if self._depths.not_here:
            found.append(f"{self._depths.not_here} steps wait at {node.spec.node_id} that cannot run there: `doctor`")
        return found + self._depths.holds


def _running(reader: Reader) -> list[Row]:
    return reader.select("steps", "rank = 0 AND status = 'RUNNING' AND deleted = 0", ())


def _read_depths(reader: Reader) -> Depths:
    queue = reader.sql("SELECT priority, count(*), min(enqueued_hlc) FROM queue GROUP BY priority")
    ((not_here,),) = reader.sql("SELECT count(*) FROM queue WHERE runnable = 0")
    owners = reader.sql("SELECT owner, count(*) FROM steps WHERE rank = 0 GROUP BY owner")
    holds = reader.select("holds", "namespace = ? AND deleted = 0", (MESH_NAMESPACE,), order="key")
    return Depths(
        {PRIORITIES[int(priority)]: (int(count), int(oldest)) for priority, count, oldest in queue},
        int(not_here),
        {str(owner): int(count) for owner, count in owners},
        [f"paused: {row.key} ({row.text('reason') or 'no reason given'})" for row in holds],
    )


def _depth(found: tuple[int, int] | None, now_ms: int) -> dict[str, Any]:
    if found is None:
        return {"depth": 0, "oldestAgeMs": None}
    return {"depth": found[0], "oldestAgeMs": max(0, now_ms - (found[1] >> 16))}


def _run(row: Row, now_ms: int) -> dict[str, Any]:
    return {
        "stepId": row.key,
        "taskId": row.text("task_id"),
        "namespace": row.namespace,
        "name": row.text("name"),
        "agentId": row.text("agent"),
        "owner": row.text("owner"),
        "attempt": row.integer("attempt"),
        "startedAtMs": row.lease_hlc >> 16,
        "ageMs": max(0, now_ms - (row.lease_hlc >> 16)),
    }

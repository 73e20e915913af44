"""Commands that hold work back: pause, resume, drain, and what is held."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from mesh.errors import ConfigError, NotFoundError
from node.admin.arguments import Arguments
from node.node import Node
from node.storage.reader import Reader
from node.storage.store import Commit
from node.work.holds import REASON_CHARS_MAX, Hold, Scope, hold, read_holds, release

DRAIN_WAIT_MS_MAX = 24 * 3600 * 1000
LOOK_AGAIN_S = 0.1
"""Steps end in bursts: what is left is counted at most so often."""


class HoldCommands:
    """The commands, on one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._steps_changed = trio.Event()
        self._waiting = 0
        """Requests that wait for a node to be empty."""
        node.store.on_commit(self._on_commit)

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {"pause": self._pause, "resume": self._resume, "holds": self._holds, "drain": self._drain}

    def _on_commit(self, commit: Commit) -> None:
        if self._waiting and any(change.after.table == "steps" for change in commit.changes):
            self._steps_changed.set()
            self._steps_changed = trio.Event()  # here alone: another request may still wait for the one before

    def _scope(self, args: Arguments) -> Scope:
        """What was named; this node when nothing was."""
        agent, node_id = args.optional_text("agent", chars_max=64), args.optional_text("node", chars_max=64)
        whole = args.raw("mesh") or False
        if not isinstance(whole, bool):
            raise ConfigError(f"{args.command}: mesh must be true or false")
        if (agent is not None) + (node_id is not None) + whole > 1:
            raise ConfigError(f"{args.command}: give one of agent, node and mesh")
        if whole:
            return Scope("mesh")
        return Scope("agent", agent) if agent is not None else Scope("node", node_id or self._node.spec.node_id)

    def _check_known(self, scope: Scope) -> None:
        """Refuse a name that this mesh never heard: a typing error would hold nothing."""
        if scope.kind == "agent":
            known = {name for offer in self._node.ownership.all_offers().values() for name in offer.abilities}
        else:
            known = {member.node_id for member in self._node.gossip.members.all()}
        if scope.kind != "mesh" and scope.name not in known:
            what = "agent" if scope.kind == "agent" else "node"
            raise NotFoundError(f"no {what} {scope.name!r} is known here; known: {', '.join(sorted(known))}")

    async def _pause(self, args: Arguments) -> dict[str, Any]:
        scope = self._scope(args)
        self._check_known(scope)
        changed = await self._hold(args, scope)
        message = (
            f"{scope} is paused: nothing new of it starts at any node that hears of it, what runs goes on"
            if changed
            else f"{scope} was paused before, for the same reason"
        )
        return {"scope": scope.key, "paused": True, "changed": changed, "message": message}

    async def _hold(self, args: Arguments, scope: Scope) -> bool:
        reason = args.text("reason", "no reason given", chars_max=REASON_CHARS_MAX)
        write = partial(hold, scope=scope, reason=reason, actor=args.peer.name)
        return await self._node.store.write(write) is not None

    async def _resume(self, args: Arguments) -> dict[str, Any]:
        scope = self._scope(args)
        scopes = [scope, Scope("drain", scope.name)] if scope.kind == "node" else [scope]
        ended = await self._node.store.write(lambda tx: release(tx, scopes))
        left = [str(each) for each in await self._node.store.read(read_holds)]
        message = f"{scope} is resumed" if ended else f"{scope} was not paused"
        if left:
            message += f"; still held: {'; '.join(left)}"
        return {"scope": scope.key, "resumed": bool(ended), "message": message}

    async def _holds(self, args: Arguments) -> list[dict[str, Any]]:
        return [_view(each) for each in await self._node.store.read(read_holds)]

    async def _drain(self, args: Arguments) -> dict[str, Any]:
        """Hold the node, and say what is left there, at the latest after `timeoutMs`."""
        node_id = args.optional_text("node", chars_max=64) or self._node.spec.node_id
        timeout_ms = args.whole("timeoutMs", 0, largest=DRAIN_WAIT_MS_MAX)
        scope = Scope("drain", node_id)
        self._check_known(scope)
        await self._hold(args, scope)
        self._waiting += 1
        try:
            changed = self._steps_changed
            left = await self._left(node_id)
            with trio.move_on_after(timeout_ms / 1000):
                while left["running"] or left["waiting"]:
                    await changed.wait()
                    await self._node.env.clock.sleep(LOOK_AGAIN_S)
                    changed = self._steps_changed
                    left = await self._left(node_id)
        finally:
            self._waiting -= 1
        drained = not left["running"] and not left["waiting"]
        told = ", ".join(f"{count} {name}" for name, count in left.items() if count)
        message = f"nothing is left to do at {node_id}" if drained else f"left at {node_id}: {told}"
        return {"nodeId": node_id, "drained": drained, "left": left, "message": message}

    async def _left(self, node_id: str) -> dict[str, int]:
        return await self._node.store.read(lambda reader: _open_steps(reader, node_id))


def _open_steps(reader: Reader, owner: str) -> dict[str, int]:
    """The open steps of a node: those that run, those that could, and those that wait for a parent."""
    ((running, blocked, count),) = reader.sql(
        "SELECT sum(status = 'RUNNING'), sum(status <> 'RUNNING' AND EXISTS (SELECT 1 FROM json_each(step.depends_on) "
        "AS needed WHERE NOT EXISTS (SELECT 1 FROM steps AS parent WHERE parent.namespace = step.namespace "
        "AND parent.task_id = step.task_id AND parent.name = needed.value AND parent.status = 'SUCCESS' "
        "AND parent.deleted = 0))), count(*) FROM steps AS step WHERE owner = ? AND rank = 0 AND deleted = 0",
        (owner,),
    )
    running, blocked = int(running or 0), int(blocked or 0)
    return {"running": running, "waiting": int(count) - running - blocked, "blocked": blocked}


def _view(each: Hold) -> dict[str, Any]:
    return {
        "scope": each.scope.key,
        "kind": each.scope.kind,
        "name": each.scope.name or None,
        "reason": each.reason or None,
        "actor": each.actor,
        "sinceAtMs": each.since_ms,
    }

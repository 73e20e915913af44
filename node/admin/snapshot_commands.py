"""Commands about snapshots: filling this node by a peer's database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mesh.errors import ConflictError, NotFoundError
from node.admin.arguments import Arguments
from node.node import Node


class SnapshotCommands:
    """The commands, on one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {"bootstrap-from": self._bootstrap_from}

    async def _bootstrap_from(self, args: Arguments) -> dict[str, Any]:
        """Begin to fetch a peer's snapshot; `health` shows how far it is."""
        peer = args.text("peer")
        alive = self._node.loop.alive_peers()
        if peer not in alive:
            known = f"ALIVE are {', '.join(alive)}" if alive else "no peer is ALIVE"
            raise NotFoundError(f"{peer} is no peer that can be reached from here: {known}")
        if not self._node.bootstrap.asked_for(peer):
            raise ConflictError("this node is being filled already: `relaymesh health` shows how far it is")
        return {
            "nodeId": self._node.spec.node_id,
            "from": peer,
            "message": "begun: `relaymesh health` shows its progress",
        }

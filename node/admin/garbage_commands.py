"""Admin commands that let go: of old tasks, and of members that will not come back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mesh.errors import NotFoundError
from node.admin.arguments import Arguments
from node.node import Node
from node.work.retention import Retention

KEEP_MS_MAX = 10 * 366 * 24 * 3_600_000
DEFAULT_KEEP_MS = 7 * 24 * 3_600_000


class GarbageCommands:
    """The commands by name."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """What this class answers."""
        return {"purge": self._purge, "mesh-prune": self._mesh_prune}

    async def _purge(self, args: Arguments) -> dict[str, Any]:
        """Delete tasks of this namespace that ended long enough ago."""
        keeps_attempts = args.raw("attemptRetentionMs") is None
        retention = Retention(
            done_ms=args.whole("doneRetentionMs", DEFAULT_KEEP_MS, largest=KEEP_MS_MAX),
            dead_ms=args.whole("deadRetentionMs", DEFAULT_KEEP_MS, largest=KEEP_MS_MAX),
            attempts_ms=None if keeps_attempts else args.whole("attemptRetentionMs", 0, largest=KEEP_MS_MAX),
        )
        purged = await self._node.purger.purge(retention, namespace=args.namespace)
        return {
            "doneTasksPurged": purged.done,
            "deadTasksPurged": purged.dead,
            "attemptsPurged": purged.attempts,
            "more": purged.is_full,
        }

    async def _mesh_prune(self, args: Arguments) -> dict[str, Any]:
        """Forget members that have been gone for long: nobody waits for their return any more."""
        settings = self._node.spec.settings
        only = args.optional_text("nodeId")
        older_than_ms = args.whole("olderThanMs", settings.mesh_prune_older_than_ms, largest=KEEP_MS_MAX)
        limit = args.whole("limit", settings.mesh_prune_limit, smallest=1, largest=100_000)
        pruned = await self._node.roster.prune(older_than_s=older_than_ms / 1000, limit=limit, only=only)
        if only is not None and not pruned:
            raise NotFoundError(
                f"no member {only!r} is DEAD or LEFT here: look at `relaymesh members`, and stop that node before you "
                "prune it"
            )
        return {
            "olderThanMs": older_than_ms,
            "limit": limit,
            "pruned": pruned,
            "total": len(pruned),
        }

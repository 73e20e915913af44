"""Whom this node counts among the members of its mesh, alive or not: those whose return it must reckon with.

Whoever was ever a member counts until an operator, or time, prunes it. For a member that counts, deleted rows are
remembered and its address is called. One that was pruned and comes back counts again, and takes a whole new copy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from mesh.errors import RelayMeshError
from mesh.ids import Address
from mesh.membership import Status
from node.env import Env
from node.gossip_loop import GossipLoop
from node.pause import Pause
from node.settings import Settings
from node.storage.reader import Reader
from node.storage.store import Store
from node.storage.transaction import Transaction

log = logging.getLogger(__name__)


class Roster:
    """The members that count. `load` it before use, and tell it who is there and who was stored."""

    def __init__(self, env: Env, store: Store, loop: GossipLoop, *, me: str) -> None:
        self._env = env
        self._store = store
        self._loop = loop
        self._me = me
        self._stored: dict[str, int] = {}
        """Node ids with a record in the database, and when it was written, in milliseconds since 1970."""
        self._pruned: dict[str, None] = {}
        self.pause = Pause(env.clock)
        """Between two rounds of pruning; cut it when the settings changed."""

    async def load(self) -> None:
        """Read what an earlier process knew."""
        self._stored, self._pruned = await self._store.read(_load)

    def members(self) -> Mapping[str, Address | None]:
        """The other members that count, by node id, with the stream address of those that may answer now."""
        known = dict.fromkeys([*self._stored, *(member.node_id for member in self._loop.members())])
        counted = [node for node in known if node != self._me and node not in self._pruned]
        return {node: self._loop.rpc_address(node) if self._loop.is_there(node) else None for node in counted}

    async def count_again(self, alive: Iterable[str]) -> None:
        """These members are there: those of them that were pruned count again."""
        back = [node for node in alive if node in self._pruned]
        if not back:
            return
        await self._store.write(partial(_count_again, nodes=back))
        for node in back:
            self._pruned.pop(node, None)
            log.warning("member %s was pruned and is back: it counts again", node)

    def on_stored(self, nodes: Iterable[str]) -> None:
        """The records of these members are in the database: they count whatever the gossip still knows of them."""
        self._stored |= dict.fromkeys(nodes, self._store.physical_ms())

    async def prune(self, *, older_than_s: float, limit: int, only: str | None = None) -> list[str]:
        """Reckon no more with members that have been DEAD or LEFT for so long, as this process has seen it.

        Returns whom, at most `limit`, longest gone first. `only` names one, whatever its age.
        """
        now_ms = self._store.physical_ms()
        gone = {
            node: now_ms - stored_ms
            for node, stored_ms in self._stored.items()
            if node not in self._pruned and self._loop.status(node) is None
        }
        for member in self._loop.members():
            if member.status in (Status.DEAD, Status.LEFT) and member.node_id not in self._pruned:
                gone[member.node_id] = int((self._env.clock.monotonic() - member.status_since) * 1000)
        if only is not None:
            chosen = [only] if only in gone else []
        else:
            old = [(age_ms, node) for node, age_ms in gone.items() if age_ms >= older_than_s * 1000]
            chosen = [node for _, node in sorted(old, key=lambda each: (-each[0], each[1]))[:limit]]
        if chosen:
            await self._store.write(partial(_prune, nodes=chosen))
            self._pruned |= dict.fromkeys(chosen)
            for node in chosen:
                self._stored.pop(node, None)
                self._loop.forget(node)
                log.warning("member %s is pruned: deleted rows are not remembered for it any more", node)
        return chosen

    async def prune_now_and_then(self, current: Callable[[], Settings]) -> None:
        """Prune by the operator's settings of the moment, until cancelled."""
        while True:
            settings = current()
            if not await self.pause.sleep(settings.mesh_prune_interval_ms / 1000 or None):
                continue
            try:
                await self.prune(older_than_s=settings.mesh_prune_older_than_ms / 1000, limit=settings.mesh_prune_limit)
            except RelayMeshError as error:
                log.warning("cannot prune members now: %s", error)


def _load(reader: Reader) -> tuple[dict[str, int], dict[str, None]]:
    stored = {str(node): int(at) for node, at in reader.sql("SELECT node_id, changed_at_ms FROM members ORDER BY 1")}
    pruned = [str(node) for (node,) in reader.sql("SELECT node_id FROM pruned ORDER BY 1")]
    return stored, dict.fromkeys(pruned)


def _count_again(tx: Transaction, *, nodes: list[str]) -> None:
    for node in nodes:
        tx.execute("DELETE FROM pruned WHERE node_id = ?", (node,))


def _prune(tx: Transaction, *, nodes: list[str]) -> None:
    for node in nodes:
        tx.execute("DELETE FROM members WHERE node_id = ?", (node,))
        tx.execute("DELETE FROM replicas WHERE node_id = ?", (node,))
        tx.execute("INSERT OR REPLACE INTO pruned VALUES (?, ?)", (node, tx.now_ms))

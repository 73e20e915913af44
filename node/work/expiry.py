"""Ends steps of ours that waited for longer than they were asked to: once they are of no use they are never started.

Only what never began expires; a retry of what began in time goes on. Nobody polls: the loop sleeps until the next
expiry that the queue knows. Whoever was away hears from a peer first: the step may have moved, and begun.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from mesh.errors import RelayMeshError
from node.env import Env
from node.storage.reader import Reader
from node.storage.store import Commit, Store
from node.storage.transaction import Transaction
from node.work import transitions
from node.work.work_queue import expired_entries, next_expiry_ms

log = logging.getLogger(__name__)

BATCH_MAX = 256
"""Steps that end in one commit."""
RETRY_S = 2.0


class Expirer:
    """The loop of one node."""

    def __init__(
        self,
        env: Env,
        store: Store,
        *,
        me: str,
        wait_gate: Callable[[], Awaitable[None]],
        may_write: Callable[[], bool],
        supported: Callable[[], Sequence[str]],
        may_expire: Callable[[], bool],
    ) -> None:
        """`supported`: the waiting steps with a roster whose majority supports this node; of those no other ends here.

        `may_expire`: whether an entry of the queue ever had an expiry since the process began.
        """
        self._env = env
        self._store = store
        self._me = me
        self._wait_gate = wait_gate
        self._may_write = may_write
        self._supported = supported
        self._may_expire = may_expire
        self._news = trio.Event()
        self.expired_total = 0
        store.on_commit(self._on_commit)

    def _on_commit(self, commit: Commit) -> None:
        if not self._may_expire():
            return
        for change in commit.changes:
            row = change.after
            # A parent that succeeded may have brought its children into the queue, which may expire as well.
            if row.table == "steps" and (row.integer("expires_ms") or row.integer("dependents")):
                self._news.set()
                return

    def look(self) -> None:
        """Something else than a commit may have made a step expire."""
        self._news.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._news = trio.Event()
            now_ms = self._store.physical_ms()
            try:
                await self._wait_gate()
                if self._may_write() and await self._store.read(partial(self._finds, now_ms=now_ms)):
                    self.expired_total += await self._store.write(self._end)
                    continue
                # What is expired and still there waits for its roster, of which news come.
                next_ms = await self._store.read(partial(next_expiry_ms, after_ms=now_ms))
            except RelayMeshError as error:
                log.warning("cannot end expired steps now: %s", error)
                await self._env.clock.sleep(RETRY_S)
                continue
            pause_s = float("inf") if next_ms is None else max(0.001, (next_ms - self._store.physical_ms()) / 1000)
            with trio.move_on_after(pause_s if self._may_write() else RETRY_S):
                await self._news.wait()

    def _finds(self, reader: Reader, *, now_ms: int) -> bool:
        return bool(expired_entries(reader, now_ms=now_ms, limit=1, supported=self._supported()))

    def _end(self, tx: Transaction) -> int:
        if not self._may_write():
            return 0
        found = expired_entries(tx, now_ms=tx.now_ms, limit=BATCH_MAX, supported=self._supported())
        return sum(transitions.expire(tx, entry, me=self._me) is not None for entry in found)

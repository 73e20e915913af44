"""How long tasks are kept after their end, and who deletes them then.

Deleting a task writes one tombstone, of the task; its steps, history and payloads go with it once every member has seen
that (`mesh.stability`). Only ended tasks are deleted. A replay elsewhere, before it was heard of, wins over a deletion:
it opens a higher generation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from mesh.errors import RelayMeshError
from mesh.placement import first_of
from mesh.rows import Row
from node.env import Env
from node.storage.reader import Reader
from node.storage.store import Store
from node.storage.transaction import Transaction
from node.work.status import is_partial, task_status
from node.work.tables import Status
from node.work.transitions import task_steps

log = logging.getLogger(__name__)

PAGE_TASKS_MAX = 200
PURGE_TASKS_MAX = 1_000
"""Deleted in one go; whoever wants more gone asks again."""
AGAIN_S = 1.0
"""Pause before going on when more is due than goes in one go: a busy mesh ends more tasks than that in an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long to keep tasks after their end, in milliseconds; None for ever."""

    done_ms: int | None
    """Those that succeeded or were cancelled."""
    dead_ms: int | None
    """Dead letters."""

    def of(self, status: Status) -> int | None:
        """How long a task that ended so is kept; None for ever, and for one that has not ended."""
        if not status.is_terminal:
            return None
        return self.dead_ms if status is Status.DEAD_LETTER else self.done_ms

    @property
    def shortest_ms(self) -> int | None:
        """No task that was made more recently than this can be due."""
        kept = [ms for ms in (self.done_ms, self.dead_ms) if ms is not None]
        return min(kept, default=None)


@dataclass(slots=True)
class Purged:
    """How many tasks were deleted."""

    done: int = 0
    dead: int = 0

    @property
    def is_full(self) -> bool:
        """Whether no more may go in this go, so that others may be due."""
        return self.done + self.dead >= PURGE_TASKS_MAX


def purge(tx: Transaction, tasks: Iterable[tuple[str, str]], retention: Retention, purged: Purged) -> None:
    """Delete those of these tasks, named by namespace and key, that are still due."""
    for namespace, key in tasks:
        current = tx.get("tasks", namespace, key)
        if current is None or current.deleted:
            continue
        status = due(tx, current, retention, tx.now_ms)
        if status is not None:
            tx.put("tasks", current.namespace, current.key, {}, deleted=True)
            if status is Status.DEAD_LETTER:
                purged.dead += 1
            else:
                purged.done += 1


def due_page(
    reader: Reader,
    retention: Retention,
    *,
    now_ms: int,
    namespace: str,
    after: tuple[int, str],
    is_mine: Callable[[str], bool],
) -> tuple[list[tuple[str, str]], tuple[int, str] | None]:
    """The names of tasks whose time is over among the next PAGE_TASKS_MAX of a namespace, oldest first.

    With them the place behind which to go on; None when there is nothing more that is old enough.
    """
    if retention.shortest_ms is None:
        return [], None
    page = reader.select(
        "tasks",
        "namespace = ? AND deleted = 0 AND created_hlc <= ? AND (created_hlc, key) > (?, ?)",
        (namespace, max(0, now_ms - retention.shortest_ms) << 16, *after),
        order="created_hlc, key",
        limit=PAGE_TASKS_MAX,
    )
    found = [task for task in page if is_mine(task.key) and due(reader, task, retention, now_ms) is not None]
    is_last = len(page) < PAGE_TASKS_MAX
    names = [(task.namespace, task.key) for task in found]
    return names, None if is_last else (page[-1].integer("created_hlc"), page[-1].key)


def namespaces(reader: Reader) -> list[str]:
    """All that have tasks."""
    return [str(name) for (name,) in reader.sql("SELECT DISTINCT namespace FROM tasks ORDER BY 1")]


def due(reader: Reader, task: Row, retention: Retention, now_ms: int) -> Status | None:
    """The status of a task whose time is over; None when it is to be kept."""
    steps = task_steps(reader, task.namespace, task.key)
    # Steps that have not come after so long are lost, and a cancel says that nobody waits for them.
    status = Status.CANCELLED if task.rank and is_partial(task, steps) else task_status(task, steps)
    kept_ms = retention.of(status)
    # Stamps may run ahead of this host's clock, and then the task is kept a little longer.
    ended_ms = max((step.hlc >> 16 for step in steps), default=0)
    return status if kept_ms is not None and ended_ms + kept_ms <= now_ms else None


def _stands_first(me: str, alive: list[str], task_id: str) -> bool:
    return first_of(task_id, alive) == me


class Purger:
    """Deletes what is due, each member its share. A task is deleted once, by whoever stands first for it."""

    def __init__(
        self,
        env: Env,
        store: Store,
        *,
        me: str,
        alive: Callable[[], list[str]],
        may_write: Callable[[], bool],
        retention: Retention,
        every_s: float,
    ) -> None:
        """`alive` names the living members, this one included. Nothing is deleted while `may_write` says no."""
        self._env = env
        self._store = store
        self._me = me
        self._alive = alive
        self._may_write = may_write
        self._retention = retention
        self._every_s = every_s

    async def run(self) -> None:
        """Delete now and then, until cancelled."""
        if self._retention.shortest_ms is None:
            return
        is_behind = False
        while True:
            await self._env.clock.sleep(AGAIN_S if is_behind else self._every_s * (0.5 + self._env.rng.random()))
            is_behind = False
            try:
                if self._may_write():
                    # The members of now: what a reading thread asked of gossip would change under its hands.
                    purged = await self.purge(self._retention, is_mine=partial(_stands_first, self._me, self._alive()))
                    is_behind = purged.is_full
            except RelayMeshError as error:
                log.warning("cannot delete old tasks now: %s", error)

    async def purge(
        self, retention: Retention, *, namespace: str | None = None, is_mine: Callable[[str], bool] = lambda _: True
    ) -> Purged:
        """Delete what is due by this rule, at most PURGE_TASKS_MAX tasks; returns how many went."""
        now_ms = self._store.physical_ms()
        purged = Purged()
        for space in [namespace] if namespace is not None else await self._store.read(namespaces):
            after: tuple[int, str] | None = (-1, "")
            # A page at a time: pulls and queries have their turn in between, and no long read pins the log.
            while after is not None and (room := PURGE_TASKS_MAX - purged.done - purged.dead) > 0:
                look = partial(due_page, now_ms=now_ms, namespace=space, after=after, is_mine=is_mine)
                page, after = await self._store.read(partial(look, retention=retention))
                if page:
                    part = Purged()
                    await self._store.write(partial(purge, tasks=page[:room], retention=retention, purged=part))
                    purged.done += part.done
                    purged.dead += part.dead
        return purged

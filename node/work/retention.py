"""How long tasks are kept after their end, and who deletes them then.

Deleting a task writes one tombstone, of the task; its steps, history and payloads go with it once every member has seen
that (`mesh.stability`). Only ended tasks are deleted. A replay elsewhere, before it was heard of, wins over a deletion:
it opens a higher generation.

The history of a task that is kept may go earlier: its rows never change, so whoever deletes one agrees with everybody,
and nothing but `explain`, `logs` and the lists of events reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mesh.errors import RelayMeshError
from mesh.placement import first_of
from mesh.rows import Row
from node.env import Env
from node.pause import Pause
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


Name = tuple[str, str]
"""Of a row: its namespace and key."""
Place = tuple[int, str]
"""Where to go on: behind this stamp and key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long to keep tasks after their end, in milliseconds; None for ever."""

    done_ms: int | None
    """Those that succeeded or were cancelled."""
    dead_ms: int | None
    """Dead letters."""
    attempts_ms: int | None = None
    """What the history tells of attempts and leases, and the logs; None: for as long as its task."""

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
    """How many tasks were deleted, and how many rows of the history of others."""

    done: int = 0
    dead: int = 0
    attempts: int = 0

    @property
    def room(self) -> int:
        """How many more may go in this go."""
        return PURGE_TASKS_MAX - self.done - self.dead - self.attempts

    @property
    def is_full(self) -> bool:
        """Whether no more may go in this go, so that others may be due."""
        return self.room <= 0

    def add(self, part: Purged) -> None:
        """Count what a part of it deleted."""
        self.done += part.done
        self.dead += part.dead
        self.attempts += part.attempts


def purge(tx: Transaction, names: list[Name], purged: Purged, *, retention: Retention) -> None:
    """Delete those of these tasks that are still due."""
    for namespace, key in names:
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
    after: Place,
    is_mine: Callable[[str], bool],
) -> tuple[list[Name], Place | None]:
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


def old_history_page(
    reader: Reader, *, until_ms: int, namespace: str, after: Place, is_mine: Callable[[str], bool]
) -> tuple[list[Name], Place | None]:
    """The same for rows of the history that are old enough. Those of a task are the business of whoever purges it."""
    page = reader.sql(
        "SELECT key, hlc, task_id FROM history "
        "WHERE namespace = ? AND deleted = 0 AND hlc <= ? AND (hlc, key) > (?, ?) ORDER BY hlc, key LIMIT ?",
        (namespace, max(0, until_ms) << 16, *after, PAGE_TASKS_MAX),
    )
    names = [(namespace, key) for key, _, task_id in page if is_mine(str(task_id))]
    return names, (page[-1][1], page[-1][0]) if len(page) == PAGE_TASKS_MAX else None


def drop_history(tx: Transaction, names: list[Name], purged: Purged) -> None:
    """Delete these rows of the history, but not those of a deleted task: they go with it, without a further row."""
    for namespace, key in names:
        current = tx.get("history", namespace, key)
        if current is None or current.deleted:
            continue
        task = tx.get("tasks", namespace, current.text("task_id"))
        if task is not None and not task.deleted:
            tx.put("history", namespace, key, {}, deleted=True)
            purged.attempts += 1


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
        self._pause = Pause(env.clock)

    def retune(self, retention: Retention, every_s: float) -> None:
        """Delete by this rule from now on."""
        self._retention = retention
        self._every_s = every_s
        self._pause.cut()

    async def run(self) -> None:
        """Delete now and then, until cancelled."""
        is_behind = False
        while True:
            if not await self._pause.sleep(AGAIN_S if is_behind else self._next_in_s()):
                continue
            is_behind = False
            try:
                if self._may_write():
                    # The members of now: what a reading thread asked of gossip would change under its hands.
                    purged = await self.purge(self._retention, is_mine=partial(_stands_first, self._me, self._alive()))
                    is_behind = purged.is_full
            except RelayMeshError as error:
                log.warning("cannot delete old tasks now: %s", error)

    def _next_in_s(self) -> float | None:
        if self._retention.shortest_ms is None and self._retention.attempts_ms is None:
            return None
        return self._every_s * (0.5 + self._env.rng.random())

    async def purge(
        self, retention: Retention, *, namespace: str | None = None, is_mine: Callable[[str], bool] = lambda _: True
    ) -> Purged:
        """Delete what is due by this rule, at most PURGE_TASKS_MAX rows; returns how many went."""
        now_ms = self._store.physical_ms()
        purged = Purged()
        for space in [namespace] if namespace is not None else await self._store.read(namespaces):
            look = partial(due_page, retention=retention, now_ms=now_ms, namespace=space, is_mine=is_mine)
            await self._delete_all(look, partial(purge, retention=retention), purged)
            if retention.attempts_ms is not None:
                old = partial(old_history_page, until_ms=now_ms - retention.attempts_ms, namespace=space)
                await self._delete_all(partial(old, is_mine=is_mine), drop_history, purged)
        return purged

    async def _delete_all(
        self,
        look: Callable[..., tuple[list[Name], Place | None]],
        delete: Callable[[Transaction, list[Name], Purged], None],
        purged: Purged,
    ) -> None:
        after: Place | None = (-1, "")
        # A page at a time: pulls and queries have their turn in between, and no long read pins the log.
        while after is not None and not purged.is_full:
            page, after = await self._store.read(partial(look, after=after))
            if page:
                purged.add(await self._delete(delete, page[: purged.room]))

    async def _delete(self, delete: Callable[[Transaction, list[Name], Purged], None], names: list[Name]) -> Purged:
        part = Purged()
        await self._store.write(lambda tx: delete(tx, names, part))
        return part

"""A budget for the database: which ended tasks go before their time when it holds more than an operator allows.

What counts are the pages in use; pages on SQLite's free list are used again before the file grows. A deletion frees its
pages only when every member has seen it, so what is deleted and not yet forgotten counts as gone already: a member that
is away must not make this node delete everything that ever ended. Whoever is over its budget deletes for the whole
mesh, as by age, so the smallest budget of a mesh rules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from mesh.errors import RelayMeshError
from node.env import Env
from node.pause import Pause
from node.storage.reader import Reader
from node.storage.store import Store
from node.work.retention import Purged, Retention, due, namespaces, purge
from node.work.tables import TASKS, WORK_TABLES, Status

log = logging.getLogger(__name__)

ORDER = (Status.SUCCESS, Status.CANCELLED, Status.DEAD_LETTER)
"""Which tasks go first. Dead letters wait for people."""
PORTION_TASKS_MAX = 1_000
"""Deleted before the size is looked at again."""
WRITE_TASKS_MAX = 200
LOOK_TASKS_MAX = 1_000
"""Looked at in one read transaction: pulls and queries have their turn in between."""
PORTION_PAUSE_S = 1.0
ROW_BYTES = 250
"""Of a row besides its texts and blobs: metadata, indexes, what pages waste. Measured: 580 B of pages come free with a
task of one step, for which this and its contents make 750. Too much, and the next look deletes the rest; too little,
and more goes than must."""
REFUSE_ABOVE = 1.25
"""Times the budget: so far submits are taken while deletions wait to be seen by all, and no further."""

_AT_ONCE = Retention(done_ms=0, dead_ms=0)


@dataclass(frozen=True, slots=True)
class Ended:
    """A task that may be deleted."""

    status: Status
    created_hlc: int
    namespace: str
    key: str
    size: int
    """Bytes of pages that it takes, about."""


def _place(task: Ended) -> tuple[int, int, str, str]:
    return ORDER.index(task.status), task.created_hlc, task.namespace, task.key


def choose(ended: Sequence[Ended], excess: int, *, tasks_max: int = PORTION_TASKS_MAX) -> list[Ended]:
    """Which of these to delete so that `excess` bytes come free, in order: successes, then cancelled tasks, then dead
    letters, each by when they were submitted; no more than needed, at most `tasks_max`, and none that has not ended.

    What was chosen from a part, together with the rest, leads to the same choice as all together.
    """
    chosen: list[Ended] = []
    terminal = [task for task in ended if task.status in ORDER]
    for task in sorted(terminal, key=_place):
        if excess <= 0 or len(chosen) >= tasks_max:
            break
        chosen.append(task)
        excess -= task.size
    return chosen


def database_bytes(reader: Reader) -> int:
    """Of the pages in use, those included that are still in the log."""
    ((pages, free, size),) = reader.sql(
        "SELECT page_count, freelist_count, page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    )
    return int(pages - free) * int(size)


def _size_sql(table: str, columns: Sequence[str], where: str) -> str:
    contents = " + ".join(f'ifnull(octet_length("{name}"), 0)' for name in columns)
    return f'SELECT count(*), total({contents}) FROM "{table}" WHERE {where}'


_SIZES = (
    _size_sql("tasks", TASKS.column_names(), "namespace = ? AND key = ?"),
    *(
        _size_sql(table.name, table.column_names(), f'namespace = ? AND "{table.parent.column}" = ?')
        for table in WORK_TABLES
        if table.parent is not None
    ),
)


def task_bytes(reader: Reader, namespace: str, key: str) -> int:
    """What a task and all that belongs to it take, about."""
    found = [reader.sql(statement, (namespace, key))[0] for statement in _SIZES]
    return sum(int(rows) * ROW_BYTES + int(contents) for rows, contents in found)


_AWAITED = """
SELECT namespace, key, oid, seq FROM tasks WHERE deleted = 1 AND (oid, seq) > (?, ?) ORDER BY oid, seq LIMIT ?
"""


def awaited_page(reader: Reader, after: tuple[int, int]) -> tuple[int, tuple[int, int] | None]:
    """The bytes of some tasks that are deleted and not yet forgotten, and the place behind which to go on, if any."""
    page = reader.sql(_AWAITED, (*after, LOOK_TASKS_MAX))
    size = sum(task_bytes(reader, namespace, key) for namespace, key, _, _ in page)
    return size, (page[-1][2], page[-1][3]) if len(page) == LOOK_TASKS_MAX else None


_PAGE = """
SELECT key, created_hlc, EXISTS (
    SELECT 1 FROM steps WHERE steps.namespace = tasks.namespace AND task_id = tasks.key
        AND rank = 0 AND (status != 'PENDING' OR depends_on IS NULL))
FROM tasks WHERE namespace = ? AND deleted = 0 AND (created_hlc, key) > (?, ?) ORDER BY created_hlc, key LIMIT ?
"""
"""With each task whether it cannot have ended: a full disk may be full of open tasks, and must be passed over fast."""


def ended_page(
    reader: Reader, namespace: str, after: tuple[int, str], now_ms: int
) -> tuple[list[Ended], tuple[int, str] | None]:
    """Those that ended among the next tasks of a namespace, in order of submission, and where to go on, if at all."""
    page = reader.sql(_PAGE, (namespace, *after, LOOK_TASKS_MAX))
    found = []
    for key, created_hlc, is_open in page:
        task = None if is_open else reader.get("tasks", namespace, key)
        status = None if task is None else due(reader, task, _AT_ONCE, now_ms)
        if status is not None:
            found.append(Ended(status, created_hlc, namespace, key, task_bytes(reader, namespace, key)))
    return found, (page[-1][1], page[-1][0]) if len(page) == LOOK_TASKS_MAX else None


class DiskBudget:
    """Keeps the database within its budget, by the deletion of ended tasks alone."""

    def __init__(
        self, env: Env, store: Store, *, bytes_max: int, may_write: Callable[[], bool], every_s: float
    ) -> None:
        """`bytes_max` 0 is no budget. Nothing is deleted while `may_write` says no."""
        self._env = env
        self._store = store
        self.bytes_max = bytes_max
        self._may_write = may_write
        self._every_s = every_s
        self._pause = Pause(env.clock)
        self.is_exhausted = False
        """Whether the database was over its budget at the last look, and nothing was left to delete."""
        self._is_over = False
        self._deleted_before = 0
        self.deleted_total = 0
        """Tasks deleted for the budget."""

    async def run(self) -> None:
        """Look now and then, and delete what must go, until cancelled."""
        is_behind = False
        while True:
            if not await self._pause.sleep(PORTION_PAUSE_S if is_behind else self._next_in_s()):
                continue
            is_behind = False
            try:
                if self._may_write():
                    is_behind = await self.keep()
            except RelayMeshError as error:
                log.warning("cannot keep the database within its budget now: %s", error)

    def _next_in_s(self) -> float | None:
        return self._every_s * (0.5 + self._env.rng.random()) if self.bytes_max else None

    def retune(self, bytes_max: int, every_s: float) -> None:
        """Keep the database within this budget from now on. What was refused for the former one is judged anew."""
        if bytes_max != self.bytes_max:
            self.is_exhausted = self._is_over = False
        self.bytes_max = bytes_max
        self._every_s = every_s
        self._pause.cut()

    async def keep(self) -> bool:
        """Look, and delete one portion if that is needed. True when there is more to delete at once."""
        bytes_max = self.bytes_max
        if not bytes_max:
            return False  # it was turned off while there was more to delete
        used = await self._store.read(database_bytes)
        self._tell_over(used)
        excess = used - bytes_max
        if excess > 0:
            excess -= await self._awaited_bytes(excess)
        chosen = await self._look_for(excess) if excess > 0 else []
        purged = Purged()
        for start in range(0, len(chosen), WRITE_TASKS_MAX):
            names = [(task.namespace, task.key) for task in chosen[start : start + WRITE_TASKS_MAX]]
            await self._store.write(partial(purge, names=names, purged=purged, retention=_AT_ONCE))
        self.deleted_total += purged.done + purged.dead
        is_behind = len(chosen) == PORTION_TASKS_MAX
        self._tell_exhausted(excess > sum(task.size for task in chosen) and not is_behind)
        return is_behind

    def refusal(self, used: int) -> str | None:
        """Why no new task may be submitted here while the database holds so much; None when it may."""
        if not self.bytes_max or used <= self.bytes_max:
            return None
        if self.is_exhausted:
            return f"{self._sizes(used)}, and nothing that ended is left to delete"
        if used > self.bytes_max * REFUSE_ABOVE:
            return f"{self._sizes(used)}, and deletions do not keep up or wait for members that are away"
        return None

    def _sizes(self, used: int) -> str:
        return f"the database holds {used} B, over diskBudgetBytes ({self.bytes_max})"

    async def _awaited_bytes(self, enough: int) -> int:
        """What comes free when all have seen the deletions of before; no further than `enough`."""
        size, after = 0, (-1, 0)
        while True:
            found, place = await self._store.read(partial(awaited_page, after=after))
            size += found
            if size >= enough or place is None:
                return size
            after = place

    async def _look_for(self, excess: int) -> list[Ended]:
        now_ms = self._store.physical_ms()
        chosen: list[Ended] = []
        for namespace in await self._store.read(namespaces):
            after: tuple[int, str] | None = (-1, "")
            while after is not None and not _is_settled(chosen, excess, after[0]):
                look = partial(ended_page, namespace=namespace, after=after, now_ms=now_ms)
                page, after = await self._store.read(look)
                chosen = choose([*chosen, *page], excess)
        return chosen

    def _tell_over(self, used: int) -> None:
        is_over = used > self.bytes_max
        if is_over and not self._is_over:
            log.warning("%s: ended tasks are deleted before their time, oldest first", self._sizes(used))
            self._deleted_before = self.deleted_total
        elif self._is_over and not is_over:
            deleted = self.deleted_total - self._deleted_before
            log.info("the database is within diskBudgetBytes again: %d tasks were deleted here for it", deleted)
        self._is_over = is_over

    def _tell_exhausted(self, is_exhausted: bool) -> None:
        if is_exhausted and not self.is_exhausted:
            log.warning(
                "the database stays over diskBudgetBytes (%d): nothing that ended is left to delete. New tasks are "
                "refused here until some end, or the budget is raised",
                self.bytes_max,
            )
        self.is_exhausted = is_exhausted


def _is_settled(chosen: Sequence[Ended], excess: int, created_hlc: int) -> bool:
    """Whether no task made after `created_hlc` can come before these."""
    if not chosen or (len(chosen) < PORTION_TASKS_MAX and sum(task.size for task in chosen) < excess):
        return False
    return chosen[-1].status is ORDER[0] and chosen[-1].created_hlc <= created_hlc

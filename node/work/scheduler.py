"""Submits the slots of schedules when they are due, one member for the mesh, each on its side of a cut.

It sleeps until the next slot, a change of a schedule or a hold, or a change among the members. Of each schedule it
keeps up to which slot tasks were heard of, durably (in `meta`): the tasks themselves may be deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from mesh.errors import RelayMeshError
from mesh.rows import Row
from node.env import Env
from node.storage.reader import Reader
from node.storage.store import Commit, Store
from node.storage.transaction import Transaction
from node.work import transitions
from node.work.cron import utc_text
from node.work.definition import Limits, task_ids
from node.work.schedules import (
    EARLIEST_MS,
    Schedule,
    agreed_offset_ms,
    clock_problem,
    decided_after,
    decided_at_first,
    due_slots,
    fire_order,
    fire_wait_s,
    next_look_ms,
    parse_slot_key,
    read_schedule,
    slot_key,
)
from node.work.tables import MESH_NAMESPACE

log = logging.getLogger(__name__)

RETRY_S = 2.0
"""How long to wait while something is due and this node may not submit, or its store refused."""
LOOK_MAX_S = 300.0
"""The longest sleep: while a host is suspended, its date goes on and its timers do not."""
CLOCK_LOOK_S = 60.0
"""How often a host whose date is wrong is looked at again."""
OFFSET_MOVED_MS = 500
"""A change of the peers' time by so much is a reason to look again at what is due."""


class MembersView(Protocol):
    """What it needs to know of the mesh; the gossip loop provides it."""

    def usable(self) -> list[str]:
        """Members that can work: alive, with a working store. This node included."""
        ...


@dataclass(frozen=True, slots=True)
class _Entry:
    """A schedule as this node follows it."""

    row: Row
    decided_ms: int
    schedule: Schedule | None = None
    """None when it cannot be followed here."""
    problem: str = ""
    look_ms: int | None = None
    """The slot that is due, or the next one."""
    fire_at: float | None = None
    """On the monotonic clock, when it is our turn to submit the slot that is due."""


class Scheduler:
    """Follows all schedules on one node."""

    def __init__(
        self,
        env: Env,
        store: Store,
        view: MembersView,
        *,
        me: str,
        tick_s: float,
        limits: Limits,
        may_write: Callable[[], bool],
        roster: Callable[[], list[str]],
        offsets_ms: Callable[[], list[int]],
    ) -> None:
        """Nothing is submitted while `may_write` says no. `offsets_ms`: how far ahead of ours each peer's time was.

        `roster` names all that belong to the mesh, for steps that wait on a partition.
        """
        self._env = env
        self._store = store
        self._view = view
        self._me = me
        self._tick_s = tick_s
        self.limits = limits
        self._may_write = may_write
        self._roster = roster
        self._offsets_ms = offsets_ms
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._held = False
        self._offset_ms = 0
        self._wake = trio.Event()
        self._complained = False
        store.watch("schedules", self._on_schedule)
        store.watch("tasks", self._on_task)
        store.on_commit(self._on_commit)

    # --- inside transactions: what is decided is kept with what decides it ---

    def _on_schedule(self, tx: Transaction, before: Row | None, after: Row) -> None:
        name = _meta_name(after.namespace, after.key)
        if after.deleted:
            tx.execute("DELETE FROM meta WHERE name = ?", (name,))
        elif tx.meta_get(name) is None:
            decided_ms = decided_at_first(after, is_new=after.origin == tx.origin, now_ms=tx.now_ms)
            tx.meta_set(name, str(decided_ms).encode())

    def _on_task(self, tx: Transaction, before: Row | None, after: Row) -> None:
        found = parse_slot_key(after.text("idempotency_key")) if before is None else None
        if found is None:
            return
        stored = tx.meta_get(_meta_name(after.namespace, found[0]))
        if stored is not None:
            decided_ms = decided_after(int(stored), found[1], now_ms=tx.now_ms)
            tx.meta_set(_meta_name(after.namespace, found[0]), str(decided_ms).encode())

    # --- what may give it something to do ---

    def on_member_changed(self) -> None:
        """A member came, went or changed: the turn may be ours."""
        if self._entries:
            self._wake.set()

    def on_pull_finished(self) -> None:
        """The gate may have opened, and a peer has told its time."""
        if self._entries and (self._is_due() or abs(self._now_offset_ms() - self._offset_ms) >= OFFSET_MOVED_MS):
            self._wake.set()

    def _is_due(self) -> bool:
        now_ms = self.now_ms()
        return any(entry.look_ms is not None and entry.look_ms <= now_ms for entry in self._entries.values())

    def _on_commit(self, commit: Commit) -> None:
        for change in commit.changes:
            row = change.after
            if row.table == "schedules":
                self._note(row, decided_at_first(row, is_new=change.local, now_ms=self.now_ms()))
                self._wake.set()
            elif row.table == "tasks" and change.before is None:
                self._note_task(row)
            elif row.table == "holds" and (row.namespace, row.key) == (MESH_NAMESPACE, "mesh"):
                self._held = not row.deleted
                self._wake.set()

    def take_limits(self, limits: Limits) -> None:
        """Judge definitions by these from now on, also those of schedules that are followed or could not be."""
        if limits != self.limits:
            self.limits = limits
            for entry in list(self._entries.values()):
                self._note(entry.row, entry.decided_ms)
            self._wake.set()

    def _note_task(self, row: Row) -> None:
        found = parse_slot_key(row.text("idempotency_key"))
        entry = None if found is None else self._entries.get((row.namespace, found[0]))
        if found is not None and entry is not None and found[1] > entry.decided_ms:
            self._decide(entry, found[1])
            self._wake.set()

    def _decide(self, entry: _Entry, slot_ms: int) -> None:
        now_ms = self.now_ms()
        self._look_again(replace(entry, decided_ms=decided_after(entry.decided_ms, slot_ms, now_ms=now_ms)), now_ms)

    def _note(self, row: Row, decided_ms: int) -> None:
        """Follow a schedule by its current row. `decided_ms` is for one that was not followed before."""
        name = row.namespace, row.key
        known = self._entries.pop(name, None)
        if row.deleted:
            return
        entry = _Entry(row, decided_ms if known is None else known.decided_ms)
        try:
            entry = replace(entry, schedule=read_schedule(row, self.limits))
        except RelayMeshError as error:
            log.warning("schedule %s of %s cannot be followed here: %s", row.key, row.namespace, error)
            entry = replace(entry, problem=str(error))
        self._look_again(entry, self.now_ms())

    def _look_again(self, entry: _Entry, now_ms: int) -> None:
        look_ms = None
        if entry.schedule is not None:
            look_ms = next_look_ms(entry.schedule, decided_ms=entry.decided_ms, now_ms=now_ms)
        self._entries[entry.row.namespace, entry.row.key] = replace(entry, look_ms=look_ms, fire_at=None)

    # --- time ---

    def now_ms(self) -> int:
        """The mesh's time as this node knows it, in milliseconds since 1970: what slots are compared with."""
        return self._store.physical_ms() + self._now_offset_ms()

    def _now_offset_ms(self) -> int:
        return agreed_offset_ms(self._offsets_ms())

    def clock_problem(self) -> str:
        """What is wrong with this host's time; empty when nothing is known to be."""
        return clock_problem(
            now_ms=self.now_ms(),
            wall_ms=int(self._env.clock.wall() * 1000),
            peers=len(self._offsets_ms()),
            last_stamp_ms=self._store.hlc.last >> 16,
        )

    def _check_clock(self) -> None:
        problem = self.clock_problem()
        if bool(problem) != self._complained:
            self._complained = bool(problem)
            log.warning("schedules: %s", problem or "nothing is wrong with the date of this host any more")

    # --- what it shows ---

    def decided_ms(self, namespace: str, name: str) -> int | None:
        """Up to which slot tasks of this schedule were heard of; None for a schedule that is not followed."""
        entry = self._entries.get((namespace, name))
        return None if entry is None else entry.decided_ms

    def problem_of(self, namespace: str, name: str) -> str:
        """Why the schedule cannot be followed here; empty when it is."""
        entry = self._entries.get((namespace, name))
        return "" if entry is None else entry.problem

    def look_ms(self, namespace: str, name: str) -> int | None:
        """Its slot that is due, or the next one; None when there is none."""
        entry = self._entries.get((namespace, name))
        return None if entry is None else entry.look_ms

    def order(self, namespace: str, name: str) -> list[str]:
        """Who submits its slots: the first of these, then whoever is next."""
        return fire_order(namespace, name, self._view.usable())

    @property
    def is_held(self) -> bool:
        """Whether an operator holds the mesh, so that nothing is submitted."""
        return self._held

    # --- the loop ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Submit what is due, until cancelled."""
        await self._load()
        task_status.started()
        while True:
            self._wake = trio.Event()
            pause_s = await self._round()
            with trio.move_on_after(pause_s):
                await self._wake.wait()

    async def load_anew(self) -> None:
        """Learn of all schedules after rows came or went of which no commit told."""
        self._entries.clear()
        await self._load()

    async def _load(self) -> None:
        rows, decided, self._held = await self._store.read(_all_schedules)
        now_ms = self.now_ms()
        for row, stored in zip(rows, decided, strict=True):
            known = self._entries.get((row.namespace, row.key))
            if known is not None and known.row.hlc >= row.hlc:
                continue  # a commit told of it while this was read
            first = decided_at_first(row, is_new=False, now_ms=now_ms)
            self._note(row, first if stored is None else decided_after(stored, stored, now_ms=now_ms))
        self._wake.set()

    async def _round(self) -> float:
        """Submit what it is our turn to; returns in how many seconds to look again (infinity: when woken)."""
        if not self._entries:
            return float("inf")
        self._check_clock()
        self._offset_ms = self._now_offset_ms()
        now_ms = self.now_ms()
        if now_ms < EARLIEST_MS:
            return CLOCK_LOOK_S
        pause_s = CLOCK_LOOK_S if self._complained else LOOK_MAX_S
        for name in list(self._entries):
            entry = self._entries.get(name)
            if entry is None or entry.schedule is None or entry.look_ms is None:
                continue
            if entry.look_ms > now_ms:
                pause_s = min(pause_s, (entry.look_ms - now_ms) / 1000)
            else:
                pause_s = min(pause_s, await self._follow(entry, entry.schedule, now_ms))
        return pause_s

    async def _follow(self, entry: _Entry, schedule: Schedule, now_ms: int) -> float:
        """Submit the slot that is due, if it is our turn; returns in how many seconds to look again."""
        now = self._env.clock.monotonic()
        due = due_slots(schedule, decided_ms=entry.decided_ms, now_ms=now_ms)
        if not due:  # it was missed meanwhile, and is not made up for
            self._look_again(entry, now_ms)
            return 0.0
        order = self.order(schedule.namespace, schedule.name)
        if self._me not in order:
            return float("inf")
        if self._held or not self._may_write():
            return RETRY_S
        # An earlier plan stands while the same members stand before us; when they are fewer, we are the sooner in turn.
        turn_at = now + fire_wait_s(order.index(self._me), tick_s=self._tick_s)
        fire_at = turn_at if entry.fire_at is None else min(turn_at, entry.fire_at)
        if fire_at > now:
            self._entries[schedule.namespace, schedule.name] = replace(entry, fire_at=fire_at)
            return fire_at - now
        return await self._submit(schedule, due[0])

    async def _submit(self, schedule: Schedule, slot_ms: int) -> float:
        roster, trace_id = self._roster(), self._env.entropy(16).hex()
        try:
            is_current = await self._store.write(
                lambda tx: _submit_slot(tx, schedule, slot_ms, me=self._me, roster=roster, trace_id=trace_id)
            )
        except RelayMeshError as error:
            log.warning("cannot submit the slot %s of schedule %s: %s", utc_text(slot_ms), schedule.name, error)
            return RETRY_S
        if not is_current:
            return RETRY_S
        current = self._entries.get((schedule.namespace, schedule.name))
        if current is not None and current.decided_ms < slot_ms:
            self._decide(current, slot_ms)  # its task was here already, and no commit told of it
        return 0.0


def _submit_slot(
    tx: Transaction, schedule: Schedule, slot_ms: int, *, me: str, roster: list[str], trace_id: str
) -> bool:
    """Store the task of a slot, unless there is or was one; False when the schedule has changed."""
    row = tx.get("schedules", schedule.namespace, schedule.name)
    if row is None or row.deleted or (row.origin, row.seq) != (schedule.row.origin, schedule.row.seq):
        return False
    key = slot_key(schedule.name, slot_ms)
    if not is_submitted(tx, schedule.namespace, key):
        transitions.submit(
            tx,
            me=me,
            namespace=schedule.namespace,
            key=key,
            definition=schedule.definition,
            trace_id=trace_id,
            members=roster,
        )
    return True


def is_submitted(reader: Reader, namespace: str, key: str) -> bool:
    """Whether any task of this key is here, also a deleted one, and also one of another definition."""
    bounds = task_ids(namespace, key)
    return bool(
        reader.sql("SELECT 1 FROM tasks WHERE namespace = ? AND key BETWEEN ? AND ? LIMIT 1", (namespace, *bounds))
    )


def _meta_name(namespace: str, name: str) -> str:
    return f"schedule {namespace} {name}"


def _all_schedules(reader: Reader) -> tuple[list[Row], list[int | None], bool]:
    rows = reader.select("schedules", "deleted = 0", order="namespace, key")
    stored = [reader.meta_get(_meta_name(row.namespace, row.key)) for row in rows]
    hold = reader.get("holds", MESH_NAMESPACE, "mesh")
    return rows, [None if each is None else int(each) for each in stored], hold is not None and not hold.deleted

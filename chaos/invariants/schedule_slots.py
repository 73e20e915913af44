"""Schedules: each slot becomes one task, by one member of those that hear each other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import SUCCESS
from chaos.invariants.promise import Promise
from chaos.observations import ClientAnswered, Committed, Replica, Rest, Seen
from mesh.rows import Row

_MINUTE_MS = 60_000
_SURE_MS = 2_000
"""The date that an answer tells is whole seconds, and was read a moment before."""
_AT_ONCE_MS = 1_000.0
"""Whoever stands in for another waits for two seconds more than that one."""


def _slot_of(key: str) -> tuple[str, int] | None:
    """The schedule and the time (ms since 1970) in the key of a slot's task; None for other keys."""
    words = key.split(" ")
    if words[0] != "schedule" or len(words) < 3:
        return None
    return words[1], round(datetime.fromisoformat(words[2]).timestamp() * 1000)


class SlotsBecomeTasks(Promise):
    """Every minute from when a schedule was stored until the healing became exactly one task, which has a result.

    The schedules of a workload have a slot each minute, and all are made up for.
    """

    name = "slots-become-tasks"
    hears = (ClientAnswered,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._stored: dict[str, tuple[int, float]] = {}
        """By name, the date at which it was answered that it is stored, and when that was."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Note when schedules were stored."""
        assert isinstance(seen, ClientAnswered)
        if seen.command == "schedule-add" and seen.answer is not None:
            date = datetime.fromisoformat(seen.answer["nowUtc"]).astimezone(UTC)
            self._stored.setdefault(seen.answer["name"], (round(date.timestamp() * 1000), seen.at_ms))
        yield from ()

    def judge(self, rest: Rest) -> Iterator[str]:
        """Look at every slot in one replica."""
        for replica in list(rest.replicas.values())[:1]:  # `replicas-equal` speaks for the others
            found: dict[tuple[str, int], list[Row]] = {}
            for row in replica.rows.values():
                slot = _slot_of(row.text("idempotency_key")) if row.table == "tasks" else None
                if slot is not None and not row.deleted:
                    found.setdefault(slot, []).append(row)
            for (name, slot_ms), tasks in found.items():
                if len(tasks) > 1:
                    yield f"slot {_shown(slot_ms)} of {name} became {len(tasks)} tasks"
                if name in self._stored and slot_ms <= self._stored[name][0] - _SURE_MS:
                    yield f"slot {_shown(slot_ms)} of {name} is a task, and was before it was stored"
            for name, (date_ms, at_ms) in self._stored.items():
                until_ms = date_ms + round(rest.healed_ms - at_ms) - _SURE_MS
                first_ms = (date_ms + _SURE_MS) // _MINUTE_MS * _MINUTE_MS + _MINUTE_MS
                for slot_ms in range(first_ms, until_ms, _MINUTE_MS):
                    if not any(_has_result(replica, task) for task in found.get((name, slot_ms), [])):
                        yield f"slot {_shown(slot_ms)} of {name} has no task with a result"


class SlotsHaveOneSubmitter(Promise):
    """No two members that hold each other ALIVE submit the same slot at once."""

    name = "slots-have-one-submitter"
    hears = (Committed,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._submitted: dict[str, dict[str, float]] = {}
        """By key, who submitted it when."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare who submits with whoever did."""
        assert isinstance(seen, Committed)
        for change in seen.changes:
            key = change.after.text("idempotency_key") if change.after.table == "tasks" else ""
            if not change.local or change.before is not None or _slot_of(key) is None:
                continue
            slot = " ".join(key.split(" ")[:3])
            others = self._submitted.setdefault(slot, {})
            for other, at_ms in others.items():
                if seen.at_ms - at_ms < _AT_ONCE_MS and self._hear_each_other(seen.host, other):
                    yield f"{seen.host} and {other}, which see each other, both submitted {slot}"
            others[seen.host] = seen.at_ms

    def _hear_each_other(self, one: str, other: str) -> bool:
        views = self.mirror.host(one).view.get(other), self.mirror.host(other).view.get(one)
        return all(view is not None and view.status == "ALIVE" for view in views)


def _has_result(replica: Replica, task: Row) -> bool:
    steps = [
        row
        for row in replica.rows.values()
        if row.table == "steps" and row.text("task_id") == task.key and not row.deleted
    ]
    return bool(steps) and all(step.rank == SUCCESS for step in steps)


def _shown(slot_ms: int) -> str:
    return datetime.fromtimestamp(slot_ms / 1000, UTC).isoformat(timespec="seconds")

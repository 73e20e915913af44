"""The rules of schedules: what a row says, which slots are due, who submits them and after which wait. Pure.

A slot is submitted under the key `schedule NAME SLOT`, with the schedule's definition. A task's id is a hash of
namespace, key and definition, so two sides of a cut make the same task of a slot, and one is left after the heal. A
slot of which any task is known is decided, and so are all slots before it: nodes submit in order. A schedule that is
changed begins anew with the moment of the change: what was due before belongs to what it said before. Only where two
sides of a cut submit one slot by different versions of a schedule, that key has two tasks, as any key may
(`relaymesh quarantine list` names it).
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mesh.errors import ConfigError
from mesh.hlc import COUNTER_BITS, DRIFT_MAX_MS, stamp_ms
from mesh.placement import rendezvous
from mesh.rows import Row
from mesh.takeover import wait_s
from node.work.cron import Cron, parse_cron, parse_utc_text, utc_text
from node.work.definition import Definition, Limits, parse_workflow

CATCH_UPS = ("latest", "skip", "all")
CATCH_UP_ALL_MAX = 100
"""Of slots that nobody was up for, `all` makes up for so many, the latest ones."""
ON_TIME_MS = 60_000
"""A slot that is no older than this was not missed: nodes take a moment to notice a death, or to open their gate."""
CLOCKS_AGREE_S = 2.0
"""What the clocks of two nodes may differ by after their peers' times were looked at: a delay of the wait alone."""
DEFINITION_BYTES_MAX = 256 * 1024
SCHEDULES_MAX = 1_000
"""In the whole mesh: every node keeps each in memory, with its next slot."""
EARLIEST_MS = 1_577_836_800_000
"""2020: a host that shows an earlier date has none."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule that this node can follow."""

    row: Row
    cron: Cron
    catch_up: str
    definition: Definition
    from_ms: int | None
    """Slots after this are due; None while it is paused."""

    @property
    def namespace(self) -> str:
        """The tenant's."""
        return self.row.namespace

    @property
    def name(self) -> str:
        """What it is called there."""
        return self.row.key


def parse_name(text: str) -> str:
    """Return `text` as the name of a schedule, or raise ConfigError saying which characters are allowed."""
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"schedule name {text[:64]!r} is not usable: give 1 to 64 characters of A-Z a-z 0-9 . _ -, "
            "beginning with a letter or digit"
        )
    return text


def parse_definition(text: bytes, limits: Limits) -> Definition:
    """What a schedule submits, from JSON as submit-workflow takes it. ConfigError or LimitError, with what is wrong."""
    try:
        return parse_workflow(json.loads(text), limits)
    except UnicodeEncodeError:  # JSON can say half of a surrogate pair, and UTF-8 cannot
        raise ConfigError("the definition holds half of a surrogate pair, which is no text") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the definition is not JSON: {error}") from None


def read_schedule(row: Row, limits: Limits) -> Schedule:
    """The schedule of a row. ConfigError or LimitError when this node cannot follow it, with what is wrong."""
    return Schedule(
        row=row,
        cron=parse_cron(row.text("cron"), row.text("time_zone")),
        catch_up=row.text("catch_up"),
        definition=parse_definition(row.blob("definition") or b"", limits),
        from_ms=None if is_paused(row) else stamp_ms(row.integer("from_hlc")),
    )


def is_paused(row: Row) -> bool:
    """A paused schedule has no time from which on slots are due."""
    return row.values.get("from_hlc") is None


def time_stamp(at_ms: int) -> int:
    """A time as `from_hlc` keeps it. Not a stamp of a write: those may run ahead of time for years."""
    return at_ms << COUNTER_BITS


# --- slots and their tasks ---


def slot_key(name: str, slot_ms: int) -> str:
    """The idempotency key under which a slot is submitted, on every node alike."""
    return f"schedule {name} {utc_text(slot_ms)}"


def parse_slot_key(key: str) -> tuple[str, int] | None:
    """The name and slot in such a key; None for any other key."""
    if not key.startswith("schedule "):  # nearly all keys, at once
        return None
    parts = key.split(" ")
    slot_ms = parse_utc_text(parts[2]) if len(parts) == 3 and _NAME.fullmatch(parts[1]) else None
    return None if slot_ms is None else (parts[1], slot_ms)


def due_slots(schedule: Schedule, *, decided_ms: int, now_ms: int) -> list[int]:
    """The slots to be submitted now, oldest first: none up to `decided_ms`, none after `now_ms`.

    `latest` makes up for the last one that was missed, `all` for CATCH_UP_ALL_MAX, `skip` for none: to it, only what is
    no older than ON_TIME_MS is due.
    """
    if schedule.from_ms is None:
        return []
    after_ms = max(schedule.from_ms, decided_ms)
    if schedule.catch_up == "skip":
        after_ms = max(after_ms, now_ms - ON_TIME_MS)
    if after_ms >= now_ms:
        return []
    return schedule.cron.last_between(after_ms, now_ms, 1 if schedule.catch_up == "latest" else CATCH_UP_ALL_MAX)


def next_look_ms(schedule: Schedule, *, decided_ms: int, now_ms: int) -> int | None:
    """When there is something to do: the slot that is due, or the next to come. None for never, or while paused."""
    if schedule.from_ms is None:
        return None
    due = due_slots(schedule, decided_ms=decided_ms, now_ms=now_ms)
    return due[0] if due else schedule.cron.next_after(max(now_ms, schedule.from_ms, decided_ms))


def decided_at_first(row: Row, *, is_new: bool, now_ms: int) -> int:
    """Up to when the slots of a schedule count as decided at a node that never had a task of it.

    `is_new`: it was stored here this moment. Slots long before a node heard of a schedule were others' to submit, and
    their tasks may be deleted by now; this holds for one that lost its disk, too.
    """
    from_ms = stamp_ms(row.integer("from_hlc"))
    return from_ms if is_new else max(from_ms, now_ms - DRIFT_MAX_MS)


def decided_after(before_ms: int, slot_ms: int, *, now_ms: int) -> int:
    """The same after a task of a slot was heard of. One from the future decides nothing: some clock was wrong."""
    known = [at_ms for at_ms in (before_ms, slot_ms) if at_ms <= now_ms + DRIFT_MAX_MS]
    return max(known, default=now_ms)


# --- who, and when ---


def fire_order(namespace: str, name: str, members: Iterable[str]) -> list[str]:
    """The members in the order in which they submit the slots of a schedule: the first, then whoever is next."""
    return rendezvous(f"schedule {namespace} {name}", members)


def fire_wait_s(place: int, *, tick_s: float) -> float:
    """How long the member at this place waits for another's task of a slot before it submits that itself."""
    return CLOCKS_AGREE_S + wait_s(place, tick_s=tick_s) if place else 0.0


# --- time ---


def agreed_offset_ms(offsets_ms: Sequence[int]) -> int:
    """How far the mesh's time is ahead of ours, given how far each peer's was: all nodes come to the same time.

    It is the median of all, ours among them; the earlier one of two in the middle, so that nobody submits what is still
    to come for most of its peers.
    """
    return statistics.median_low([0, *offsets_ms])


def clock_problem(*, now_ms: int, wall_ms: int, peers: int, last_stamp_ms: int) -> str:
    """What is wrong with this host's date, for its operator; empty when nothing is known to be.

    `now_ms` is the mesh's time as this node knows it from so many `peers`, `wall_ms` the host's own date.
    """
    ahead_ms = wall_ms - now_ms
    if now_ms < EARLIEST_MS:
        return f"this host has no date (its clock shows {utc_text(now_ms)}), so it submits nothing: set it"
    if abs(ahead_ms) > DRIFT_MAX_MS and peers:
        side = "ahead of" if ahead_ms > 0 else "behind"
        return (
            f"this host's date is {abs(ahead_ms) // 1000} s {side} the time of the mesh, which slots follow: set "
            "the date of whoever is wrong"
        )
    if abs(ahead_ms) > DRIFT_MAX_MS:
        return (
            f"this host's date has moved by {ahead_ms // 1000} s since its node started, and no peer confirms that: "
            "restart the node to follow it"
        )
    if last_stamp_ms > now_ms + DRIFT_MAX_MS:
        return (
            f"this host's date is {(last_stamp_ms - now_ms) // 1000} s behind what its node has stored: it is wrong "
            "now, or was wrong then"
        )
    return ""

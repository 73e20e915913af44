"""Cron expressions in a time zone, and the slots that they name: points in time, in milliseconds since 1970.

Expressions are read as Debian's cron reads them, which `cronsim` follows: where the date goes forward, a job of a fixed
hour that would have been skipped runs right after the gap; where it goes back, such a job runs once. Jobs whose minute
or hour begins with `*` follow real time: they run in both passes of a repeated hour, and in no skipped one.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from mesh.errors import ConfigError

CRON_CHARS_MAX = 256
ZONE_CHARS_MAX = 64
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = {
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31, L for the last, LW for the last weekday",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 (0 and 7: Sunday) or SUN-SAT, 5L for the last Friday, MON#1 for the first Monday",
}
_FIRST_LOOK_MS = 3_600_000
_ZONES_OF_HOSTS = frozenset({"localtime", "posixrules"})
"""Files among the zones that are what a host's operator chose: two nodes would submit two slots for one."""
AHEAD_MAX_MS = 100 * 366 * 24 * 3600 * 1000
"""Slots are listed so far: each leap day of an expression costs a look at every year before it."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A checked expression in a zone that this host knows."""

    expression: str
    zone: ZoneInfo

    def slots_after(self, after_ms: int) -> Iterator[int]:
        """All slots later than this, in order. It may end: an expression need not match again within 50 years."""
        last_ms = after_ms
        for local in CronSim(self.expression, datetime.fromtimestamp(after_ms / 1000, self.zone)):
            slot_ms = int(local.astimezone(UTC).timestamp()) * 1000
            # What falls into a gap is moved to its end, where another slot may be already; the first pass of a
            # repeated hour may be over.
            if slot_ms > last_ms:
                last_ms = slot_ms
                yield slot_ms

    def next_after(self, after_ms: int) -> int | None:
        """The first slot later than this; None when there is none within 50 years."""
        return next(self.slots_after(after_ms), None)

    def last_between(self, after_ms: int, until_ms: int, count: int) -> list[int]:
        """The latest `count` slots that are later than the first time and not later than the second, oldest first.

        It looks back from the end ever further, so that a year of minutes costs no more than is asked for.
        """
        look_ms = _FIRST_LOOK_MS
        while True:
            from_ms = max(after_ms, until_ms - look_ms)
            until = itertools.takewhile(lambda slot_ms: slot_ms <= until_ms, self.slots_after(from_ms))
            found = deque(until, maxlen=count)
            if len(found) == count or from_ms == after_ms:
                return list(found)
            look_ms *= 2


def parse_cron(expression: str, zone: str) -> Cron:
    """Read an expression of 5 fields, or a name such as @hourly. ConfigError that names the field, or the zone."""
    return Cron(_checked(expression), parse_zone(zone))


@functools.lru_cache(maxsize=256)
def _checked(given: str) -> str:
    shown = given[:CRON_CHARS_MAX]
    expression = _ALIASES.get(given.strip().lower(), given)
    parts = expression.split()
    if given.strip().startswith("@") and expression is given:
        raise ConfigError(f"cron {shown!r}: unknown name; known: {', '.join(_ALIASES)}")
    if len(parts) != len(_FIELDS) or len(given) > CRON_CHARS_MAX:
        raise ConfigError(
            f"cron {shown!r} has {len(parts)} fields: give 5 (minute, hour, day-of-month, month, day-of-week), like "
            f"'30 4 * * MON-FRI', in at most {CRON_CHARS_MAX} characters"
        )
    try:
        # Any date will do: it reads the expression alone.
        following = next(CronSim(expression, datetime(2024, 1, 1)), None)  # noqa: DTZ001
    except CronSimError as error:
        field = str(error).removeprefix("Bad ")
        text = dict(zip(_FIELDS, parts, strict=True)).get(field, expression)
        raise ConfigError(
            f"cron {shown!r}: the field {field} cannot be {text!r}; allowed: {_FIELDS.get(field, 'see crontab(5)')}; "
            "also *, lists like 1,2, ranges like 1-5, steps like */10"
        ) from None
    if following is None:
        raise ConfigError(f"cron {shown!r}: never happens: look at day-of-month, month and day-of-week")
    return " ".join(parts)


def parse_zone(name: str) -> ZoneInfo:
    """The time zone of an IANA name such as Europe/Berlin; ConfigError when this host knows none of that name."""
    try:
        if not 0 < len(name) <= ZONE_CHARS_MAX or name in _ZONES_OF_HOSTS:
            raise ValueError("empty, too long, or another zone on each host")
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; no plain name; a folder of zones
        raise ConfigError(
            f"time zone {name[:ZONE_CHARS_MAX]!r} is not known here: give an IANA name, like UTC, Europe/Berlin or "
            "America/New_York"
        ) from None


def utc_text(at_ms: int) -> str:
    """A point in time as ISO 8601 in UTC, to the second: how slots are written."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def local_text(at_ms: int, zone: ZoneInfo) -> str:
    """The same in a zone, with its offset then."""
    return datetime.fromtimestamp(at_ms / 1000, zone).isoformat(timespec="seconds")


def next_slots(cron: Cron, after_ms: int, count: int) -> dict[str, Any]:
    """The next slots of an expression within AHEAD_MAX_MS after a time, at most `count`, in its zone and in UTC."""
    slots: list[dict[str, str]] = []
    for slot_ms in itertools.takewhile(lambda at_ms: at_ms <= after_ms + AHEAD_MAX_MS, cron.slots_after(after_ms)):
        slots.append({"local": local_text(slot_ms, cron.zone), "utc": utc_text(slot_ms)})
        if len(slots) == count:
            break
    return {"cron": cron.expression, "timeZone": cron.zone.key, "slots": slots}


def parse_utc_text(text: str) -> int | None:
    """The milliseconds since 1970 that `utc_text` wrote; None for anything else."""
    try:
        at_ms = int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()) * 1000
    except (ValueError, OverflowError):
        return None
    return at_ms if utc_text(at_ms) == text else None

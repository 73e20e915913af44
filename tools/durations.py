"""Durations as people write them, `500ms`, `30s`, `2h`, and ages as people read them, `3m ago`. One place for both."""

from __future__ import annotations

import re
from datetime import datetime

from mesh.errors import ConfigError

DURATION_MS_MAX = 366 * 24 * 3600 * 1000

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_EPOCH_MS = re.compile(r"[0-9]{12,15}")  # from 1973 on
_DURATION = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,3}))?(ms|s|m|h|d)")


def parse_duration_ms(text: str, *, option: str) -> int:
    """Whole milliseconds of `500ms`, `1.5s`, `30s`, `5m`, `2h` or `1d`.

    Raises ConfigError naming `option` when the form is another, the time is zero, or longer than 366 days.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{option}: {text[:40]!r} is not a duration: write 500ms, 30s, 5m, 2h or 1d")
    whole, fraction, unit = match.groups()
    thousandths = int(whole) * 1000 + int((fraction or "0").ljust(3, "0"))
    duration_ms = thousandths * _UNITS_MS[unit] // 1000
    if not 0 < duration_ms <= DURATION_MS_MAX:
        raise ConfigError(f"{option}: {text[:40]!r} must be at least 1ms and at most 366d")
    return duration_ms


def parse_date_ms(text: str, *, option: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 date and time, or of such a number itself, of 12 to 15 digits.

    A date without an offset is meant by the clock of this host's zone. ConfigError naming `option` for anything else:
    a shorter number is a date like 20261125, or seconds since 1970, which as milliseconds would be long past.
    """
    stripped = text.strip()
    if _EPOCH_MS.fullmatch(stripped):
        return int(stripped)
    try:
        at_ms = int(datetime.fromisoformat(stripped).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        at_ms = -1
    if at_ms < 0:
        raise ConfigError(
            f"{option}: {text[:40]!r} is not a date: write 2026-11-25T18:00, 2026-11-25T18:00+01:00, or milliseconds "
            "since 1970"
        )
    return at_ms


def format_duration(duration_ms: float) -> str:
    """A span in one or two units: `850ms`, `12s`, `3m 5s`, `2h 10m`, `4d 3h`."""
    if duration_ms < 1_000:
        return f"{duration_ms:.0f}ms"
    seconds = int(duration_ms // 1_000)
    for size, name, next_size, next_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // next_size
            return f"{seconds // size}{name} {rest}{next_name}" if rest else f"{seconds // size}{name}"
    return f"{seconds}s"


def format_age(at_ms: float, *, now_ms: float) -> str:
    """When something happened or will, seen from now: `12s ago`, `now`, `in 4s`."""
    span_ms = now_ms - at_ms
    if abs(span_ms) < 1_000:
        return "now"
    return f"{format_duration(span_ms)} ago" if span_ms > 0 else f"in {format_duration(-span_ms)}"

"""Shows answers: JSON for programs, tables on a terminal, aligned plain lines elsewhere.

Answers are shown as they come, so that everything a newer node says is shown too. Text from agents and peers never
reaches a terminal raw: control characters are escaped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tools.durations import format_age, format_duration

CELL_CHARS_MAX = 100  # a longer value in a table is cut; --json and single-task views show it whole
LAST_COLUMN_CHARS_MIN = 10  # what a narrow terminal leaves of a table's last column, or the rows stand apart

# Names of points in time; the contract has one that does not say "At". Every other name in `Ms` is a span.
_TIME_ENDINGS = ("AtMs", "HeartbeatMs")

# Parameters of the terminal's own language for colours, ECMA-48 SGR: to import rich takes a third of a short command.
_BOLD, _DIM, _RED, _GREEN, _YELLOW, _CYAN = "1", "2", "31", "32", "33", "36"
_STYLES = {
    "ALIVE": _GREEN,
    "SUCCESS": _GREEN,
    "RUNNING": _CYAN,
    "SUSPECT": _YELLOW,
    "RETRYING": _YELLOW,
    "DEAD": _RED,
    "DEAD_LETTER": _RED,
    "LEFT": _DIM,
    "CANCELLED": _DIM,
}


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_answer(value: Any, *, columns: Sequence[str] = ()) -> None:
    """Print an answer for people. `columns` chooses and orders the columns of those tables in it that have any."""
    _print_value(value, columns, now_ms=time.time() * 1000)


def _print_value(value: Any, columns: Sequence[str], now_ms: float) -> None:
    if isinstance(value, Mapping):
        _print_mapping(value, columns, now_ms)
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        _print_table(value, columns, now_ms)
    elif isinstance(value, list):
        for item in value:
            print(escape(format_cell("", item, now_ms=now_ms)))
        if not value:
            print("(none)")
    else:
        print(escape(format_cell("", value, now_ms=now_ms)))


def _print_mapping(value: Mapping[str, Any], columns: Sequence[str], now_ms: float) -> None:
    flat = {key: item for key, item in value.items() if not _is_nested(item)}
    width = max((len(_label(key)) for key in flat), default=0)
    for key, item in flat.items():
        print(f"{escape(_label(key)):<{width}}  {escape(format_cell(key, item, now_ms=now_ms))}".rstrip())
    for key, item in value.items():
        if _is_nested(item):
            print(f"\n{escape(_label(key))}:")
            _print_value(item, columns, now_ms)


def _is_nested(item: Any) -> bool:
    """Whether a value needs lines of its own: objects, lists of objects, and lists of sentences."""
    if isinstance(item, list):
        return any(isinstance(part, Mapping) or (isinstance(part, str) and " " in part) for part in item)
    return isinstance(item, Mapping) and bool(item)


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], now_ms: float) -> None:
    present = list(dict.fromkeys(key for row in rows for key in row))
    chosen = [column for column in columns if column in present] or present
    # A column that says nothing in any row only takes room.
    chosen = [key for key in chosen if any(row.get(key) not in (None, "", [], {}) for row in rows)] or chosen[:1]
    titles = [_title(key) for key in chosen]
    cells = [[_shorten(escape(format_cell(key, row.get(key), now_ms=now_ms))) for key in chosen] for row in rows]
    if sys.stdout.isatty():
        _print_on_terminal(titles, cells)
        return
    widths = [max(len(line[index]) for line in [titles, *cells]) for index in range(len(titles))]
    for line in [titles, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_on_terminal(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[index]) for line in [titles, *cells]) for index in range(len(titles))]
    # An id must be whole to be copied, so only the last column may be cut. Where that does not make a table that fits,
    # each row becomes lines of its own.
    room = shutil.get_terminal_size().columns - sum(width + 2 for width in widths[:-1])
    if room < min(LAST_COLUMN_CHARS_MIN, widths[-1]):
        _print_rows_apart(titles, cells)
        return
    widths[-1] = min(widths[-1], room)
    for style, line in [(_BOLD, titles), *(("", line) for line in cells)]:
        *before, last = (_fit(cell, width) for cell, width in zip(line, widths, strict=True))
        fitted = [*before, last.rstrip()]
        print("  ".join(_paint(text, style or _STYLES.get(cell, "")) for text, cell in zip(fitted, line, strict=True)))


def _print_rows_apart(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    width = max(len(title) for title in titles)
    for number, line in enumerate(cells):
        if number:
            print()
        for title, cell in zip(titles, line, strict=True):
            print(f"{title:<{width}}  {_paint(cell, _STYLES.get(cell, ''))}")


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def _paint(text: str, style: str) -> str:
    """The text in a style, where the terminal knows colours and nobody forbade them (no-color.org)."""
    if not style or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return text
    return f"\x1b[{style}m{text}\x1b[0m"


def format_cell(key: str, value: Any, *, now_ms: float) -> str:
    """One value in words. Points in time are shown as ages, other values in `Ms` as durations."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _format_number(key, value, now_ms)
    if isinstance(value, list):
        return ", ".join(format_cell("", item, now_ms=now_ms) for item in value) or "-"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={format_cell(name, item, now_ms=now_ms)}" for name, item in value.items()) or "-"
    return str(value)


def format_progress(progress: Mapping[str, Any] | None) -> str:
    """How far a running step said it is: `42 % page 5`; nothing where it has said nothing."""
    return f"{progress['fraction']:.0%} {progress['text']}".replace("%", " %", 1).rstrip() if progress else ""


def _format_number(key: str, value: float, now_ms: float) -> str:
    if key.endswith(_TIME_ENDINGS):
        return format_age(value, now_ms=now_ms) if value else "-"
    if key.endswith("Ms"):
        return format_duration(value)
    return str(value) if isinstance(value, int) else f"{value:.3f}".rstrip("0").rstrip(".")


def _label(key: str) -> str:
    """`createdAtMs` is headed `created`, `queueLagMs` `queueLag`: the value carries its unit."""
    return key.removesuffix("AtMs").removesuffix("Ms") or key


def _title(key: str) -> str:
    """A column's heading: `effectiveStatus` becomes `EFFECTIVE_STATUS`, one word for programs that split lines."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", _label(key)).upper()


def _shorten(text: str) -> str:
    return text if len(text) <= CELL_CHARS_MAX else text[: CELL_CHARS_MAX - 1] + "…"


def escape(text: str) -> str:
    """The text on one line, with everything that a terminal would obey made visible."""
    return "".join(part if part.isprintable() else part.encode("unicode_escape").decode() for part in text)

"""A workflow as text: its levels, and in each the steps with status, node, attempt and time. Pure.

A step's level is the longest way to it from a step that depends on nothing. What has too many steps for the room is
told by level, with the steps that run or failed below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from tools.durations import format_duration
from tools.output import escape, format_progress

_MARKS = {"SUCCESS": "x", "RUNNING": ">", "RETRYING": "~", "DEAD_LETTER": "!", "CANCELLED": "-", "PENDING": " "}
_STYLES = {"SUCCESS": "green", "RUNNING": "cyan", "RETRYING": "yellow", "DEAD_LETTER": "red", "CANCELLED": "dim"}
_TOLD_APART = ("DEAD_LETTER", "RETRYING", "RUNNING")
_BAR_CHARS = 20
NAME_CHARS_MAX = 32
PARENTS_SHOWN_MAX = 3

Step = Mapping[str, Any]


def levels_of(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps by level, each in the order given. A parent that is not here counts as done long ago."""
    by_name = {step["name"]: step for step in steps}
    level: dict[str, int] = {}
    # A definition names its steps in any order, and may be as deep as it is long: no recursion.
    waiting = list(by_name)
    while waiting:
        later = []
        for name in waiting:
            parents = [parent for parent in by_name[name]["dependsOn"] if parent in by_name]
            if all(parent in level for parent in parents):
                level[name] = 1 + max((level[parent] for parent in parents), default=-1)
            else:
                later.append(name)
        if len(later) == len(waiting):  # a circle, which no node accepts; whatever it is, it must not hold us up
            level |= dict.fromkeys(later, 0)
            break
        waiting = later
    levels: list[list[Step]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for step in steps:
        levels[level[step["name"]]].append(step)
    return levels


def draw_workflow(
    task: Mapping[str, Any], steps: Sequence[Step], *, now_ms: float, width: int, height: int
) -> list[Text]:
    """At most `height` lines (at least 4) of at most `width` characters."""
    levels = levels_of(steps)
    lines = [_heading(task, steps, now_ms)]
    if len(steps) + len(levels) + 1 <= height or len(steps) + 1 <= height:
        lines += _in_full(levels, now_ms, with_headings=len(steps) + len(levels) + 1 <= height)
    else:
        lines += _by_level(levels, now_ms, height - 1)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines[:height]


def _heading(task: Mapping[str, Any], steps: Sequence[Step], now_ms: float) -> Text:
    ended = task["status"] in ("SUCCESS", "DEAD_LETTER", "CANCELLED")
    span_ms = (task["updatedAtMs"] if ended else now_ms) - task["createdAtMs"]
    done = sum(step["status"] == "SUCCESS" for step in steps)
    line = Text(f"{escape(task['taskId'])} ", style="bold").append(
        task["status"], style=_STYLES.get(task["status"], "")
    )
    return line.append(f"  {done} of {len(steps)} steps done, {format_duration(max(0, span_ms))}")


def _in_full(levels: Sequence[Sequence[Step]], now_ms: float, *, with_headings: bool) -> list[Text]:
    steps = [step for level in levels for step in level]
    name_width = min(NAME_CHARS_MAX, max((len(escape(step["name"])) for step in steps), default=0))
    node_width = min(NAME_CHARS_MAX, max((len(escape(step["owner"])) for step in steps), default=0))
    lines = []
    for number, level in enumerate(levels, 1):
        if with_headings:
            lines.append(Text(f"level {number}", style="bold"))
        lines += [_step_line(step, now_ms, name_width, node_width) for step in level]
    return lines


def _step_line(step: Step, now_ms: float, name_width: int, node_width: int) -> Text:
    status = step["status"]
    line = Text(f"  [{_MARKS.get(status, '?')}] ")
    line.append(f"{_fit(step['name'], name_width)}  ", style=_STYLES.get(status, ""))
    line.append(f"{status:<11}  {_fit(step['owner'], node_width)}  ")
    ran = step["attempt"] and step["claimedAtMs"] and status not in ("PENDING", "CANCELLED")
    if ran:
        end_ms = now_ms if status == "RUNNING" else step["updatedAtMs"]
        line.append(f"try {step['attempt']}  {format_duration(max(0, end_ms - step['claimedAtMs'])):>7}")
    if status == "RUNNING" and step.get("progress"):
        line.append(f"  {escape(format_progress(step['progress']))}")
    parents = [escape(parent) for parent in step["dependsOn"]]
    if parents:
        more = len(parents) - PARENTS_SHOWN_MAX
        named = ", ".join(parents[:PARENTS_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
        line.append(f"  {'waits for' if step.get('blocked') else 'after'} {named}", style="dim")
    if step.get("lastError") and status in ("RETRYING", "DEAD_LETTER"):
        line.append(f"  {escape(str(step['lastError']))}", style="red")
    return line


def _by_level(levels: Sequence[Sequence[Step]], now_ms: float, room: int) -> list[Text]:
    shown = levels[: room - 1] if len(levels) > room else levels
    lines = [_level_line(number, level) for number, level in enumerate(shown, 1)]
    if len(shown) < len(levels):
        steps = [step for level in levels[len(shown) :] for step in level]
        lines.append(_level_line(f"{len(shown) + 1}-{len(levels)}", steps))
    apart = [step for status in _TOLD_APART for level in levels for step in level if step["status"] == status]
    told = apart[: max(0, room - len(lines) - 1)]
    lines += _in_full([told], now_ms, with_headings=False)
    if len(told) < len(apart) and len(lines) < room:
        lines.append(Text(f"  … and {len(apart) - len(told)} more that run or failed", style="dim"))
    return lines


def _level_line(number: int | str, steps: Sequence[Step]) -> Text:
    counts = Counter(step["status"] for step in steps)
    done = counts["SUCCESS"] * _BAR_CHARS // len(steps)
    line = Text(f"level {number!s:<5} {len(steps):>5} steps  [")
    line.append("=" * done, style="green").append("." * (_BAR_CHARS - done) + "]  ")
    for status in _MARKS:
        if counts[status]:
            line.append(f"{counts[status]} {status}  ", style=_STYLES.get(status, ""))
    return line


def _fit(text: str, width: int) -> str:
    shown = escape(text)
    return f"{shown if len(shown) <= width else shown[: width - 1] + '…':<{width}}"

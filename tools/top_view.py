"""The picture of `relaymesh top`: lines for a screen of any size, drawn from a node's overview. Pure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from tools.durations import format_age, format_duration
from tools.output import escape

RATE_WINDOW_S = 6.0
"""Rates are averages over about so long: shorter ones jump, longer ones tell of the past."""
ATTENTION_LINES_MAX = 4

_STYLES = {"ALIVE": "green", "SUSPECT": "yellow", "DEAD": "red", "LEFT": "dim"}
_TROUBLE_FIRST = {"DEAD": 0, "SUSPECT": 1, "ALIVE": 2, "LEFT": 3}
_COUNTED = ("submitted", "started", "finished", "failed")


class Rates:
    """Steps a second, from the totals of overviews that follow each other."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Mapping[str, int]]] = deque(maxlen=64)

    def add(self, at_s: float, overview: Mapping[str, Any]) -> None:
        """Take in an overview that was asked for at this time, by any clock that never goes back."""
        totals = overview["totals"]
        if self._seen and any(totals[name] < self._seen[-1][1][name] for name in _COUNTED):
            self._seen.clear()  # another node answers, or it was started again
        self._seen.append((at_s, totals))
        while len(self._seen) > 2 and at_s - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()

    def per_second(self) -> dict[str, float] | None:
        """By what is counted, and `overMs`, the time that it was counted for. None before the second overview."""
        if len(self._seen) < 2:
            return None
        (begin_s, first), (end_s, last) = self._seen[0], self._seen[-1]
        span_s = max(0.001, end_s - begin_s)
        return {**{name: (last[name] - first[name]) / span_s for name in _COUNTED}, "overMs": span_s * 1000}


def draw(
    overview: Mapping[str, Any], rates: Mapping[str, float] | None, *, width: int, height: int, note: str = ""
) -> list[Text]:
    """At most `height` lines of at most `width` characters. `note` is what keeps this from being fresh."""
    now_ms = overview["generatedAtMs"]
    lines = [_heading(overview, note), _rates_line(rates), _queue_line(overview)]
    attention = overview["attention"]
    lines += [Text(f"! {escape(sentence)}", style="yellow") for sentence in attention[:ATTENTION_LINES_MAX]]
    if len(attention) > ATTENTION_LINES_MAX:
        lines.append(Text(f"! and {len(attention) - ATTENTION_LINES_MAX} more: see `relaymesh doctor`", style="yellow"))
    members = _member_lines(overview["members"], now_ms)
    running = _running_lines(overview, now_ms)
    # Both tables get what they need, as far as there is room; a large mesh leaves half of it to what runs.
    room = max(4, height - len(lines) - 2)
    members_room = min(len(members), max(room // 2, room - len(running)))
    lines += [Text(""), *_cut(members, members_room, "members")]
    lines += [Text(""), *_cut(running, max(2, room - members_room), "running steps")]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines[:height]


def _heading(overview: Mapping[str, Any], note: str) -> Text:
    counts: dict[str, int] = {}
    for member in overview["members"]:
        counts[member["status"]] = counts.get(member["status"], 0) + 1
    told = ", ".join(
        f"{counts[status]} {status}" for status in ("ALIVE", "SUSPECT", "DEAD", "LEFT") if status in counts
    )
    clock = time.strftime("%H:%M:%S", time.localtime(overview["generatedAtMs"] / 1000))
    line = Text(f"relaymesh top  {clock}  as {escape(overview['nodeId'])} sees it: {told}", style="bold")
    return line.append(f"  {escape(note)}", style="red") if note else line


def _rates_line(rates: Mapping[str, float] | None) -> Text:
    if rates is None:
        return Text("steps a second: counting", style="dim")
    line = Text("steps a second: ")
    for name in _COUNTED:
        style = "red" if name == "failed" and rates[name] else ""
        line.append(f" {name} {rates[name]:.1f} ", style=style)
    return line.append(f" (last {format_duration(rates['overMs'])})", style="dim")


def _queue_line(overview: Mapping[str, Any]) -> Text:
    busy = overview["runningHere"]
    line = Text(f"queue of {escape(overview['nodeId'])}: ")
    for name, queue in overview["queue"].items():
        oldest = "" if queue["oldestAgeMs"] is None else f" (oldest {format_duration(queue['oldestAgeMs'])})"
        line.append(f" {escape(name)} {queue['depth']}{oldest} ")
    return line.append(f" {busy} of {overview['slots']} slots busy", style="" if busy < overview["slots"] else "cyan")


def _member_lines(members: Sequence[Mapping[str, Any]], now_ms: int) -> list[Text]:
    ordered = sorted(members, key=lambda member: (_TROUBLE_FIRST.get(member["status"], 0), member["nodeId"]))
    name_width = _width([member["nodeId"] for member in ordered], 6, 32)
    lines = [
        Text(
            f"{'NODE':<{name_width}}  {'STATUS':<8} {'SINCE':<8} {'HEARD':<9} {'RUNNING':>7} {'OPEN':>8}  RELEASE",
            style="bold",
        )
    ]
    for member in ordered:
        heard = member["lastHeartbeatMs"]
        told = "itself" if member["isThisNode"] else format_age(heard, now_ms=now_ms) if heard else "never"
        since = format_duration(max(0, now_ms - member["statusSinceMs"]))
        line = Text(f"{escape(member['nodeId']):<{name_width}}  ")
        line.append(f"{member['status']:<8} ", style=_STYLES.get(member["status"], ""))
        line.append(
            f"{since:<8} {told:<9} {member['runningSteps']:>7} {member['openSteps']:>8}  {member['release'] or '-'}"
        )
        if member["effectiveStatus"] != member["status"]:
            line.append("  gets no new work yet", style="yellow")
        lines.append(line)
    return lines


def _running_lines(overview: Mapping[str, Any], now_ms: int) -> list[Text]:
    running = overview["running"]
    if not running:
        return [Text("nothing runs", style="dim")]
    nodes, agents = _width([run["owner"] for run in running], 4, 20), _width([run["agentId"] for run in running], 5, 20)
    heading = f"{'RUNNING':>8}  {'NODE':<{nodes}}  {'AGENT':<{agents}}  TRY  {'TASK':<36}  STEP"
    lines = [Text(heading, style="bold")]
    for run in running:
        line = Text(
            f"{format_duration(run['ageMs']):>8}  {_fit(run['owner'], nodes)}  {_fit(run['agentId'], agents)}  "
        )
        name = "" if run["name"] == run["agentId"] else run["name"]
        lines.append(line.append(f"{run['attempt']:>3}  {escape(run['taskId']):<36}  {escape(name)}"))
    lines += [Text("")] * (overview["runningTotal"] - len(running))  # they are counted by whoever cuts
    return lines


def _cut(lines: list[Text], room: int, what: str) -> list[Text]:
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], Text(f"… and {len(lines) - room + 1} more {what}", style="dim")]


def _width(texts: Sequence[str], least: int, most: int) -> int:
    return min(most, max([least, *(len(escape(text)) for text in texts)]))


def _fit(text: str, width: int) -> str:
    shown = escape(text)
    return f"{shown if len(shown) <= width else shown[: width - 1] + '…':<{width}}"

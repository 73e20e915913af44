"""Makes the chart of a run: which hosts and marks are drawn, in which rows and tracks.

A chart is bounded however long the run was: hosts in which nothing went wrong go first, then harmless marks are thinned
evenly, so that a quiet stretch in a chart is never its own doing. `Chart.omitted` says what went.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from chaos.report.chart import Bar, Chart, Row
from chaos.report.opinions import Opinions
from chaos.runs import LANES, RunResult, TimelineEvent

HOSTS_MAX = 60
MARKS_MAX = 40_000
TRACKS_MAX = 4
"""Bars that overlap lie beside each other, up to this many; more than that share the last track."""
SEGMENTS_MAX = 500
"""A membership row is cut about this often at most, unless the state itself changes more often."""
OWN_TROUBLE_WEIGHT = 1_000_000
"""Of a grave mark of a host itself, such as its end, against one doubt about others: those come by the thousand."""

_LANES = tuple(lane for lane in LANES if lane not in ("faults", "membership"))
"""Drawn mark by mark for each host."""


def lay_out(result: RunResult) -> Chart:
    """The chart of a run."""
    begin_ms, end_ms = _span(result)
    events = sorted(result.timeline, key=lambda event: event.at_ms)
    hosts, hosts_omitted = _hosts(events)
    views_end_ms = end_ms if result.views_until_ms is None else result.views_until_ms
    opinions = Opinions(views_end_ms, shortest_ms=(end_ms - begin_ms) / SEGMENTS_MAX, kept=hosts)
    if Opinions.begins_whole(events):
        opinions.begin_whole(begin_ms, result.scenario.node_names())
    for event in events:
        if event.lane == "membership" and event.at_ms <= views_end_ms:
            opinions.hear(event)
    opinions.end()
    marks, marks_omitted = _thinned([event for event in events if _is_mark(event, hosts)])
    rows = [_row("faults", "", (event for event in marks if event.lane == "faults"))]
    by_host: dict[str, list[TimelineEvent]] = {host: [] for host in hosts}
    for event in marks:
        if event.lane != "faults":
            by_host[event.host].append(event)
    for host, own in by_host.items():
        rows += _host_rows(host, own, opinions)
    return Chart(
        begin_ms=begin_ms,
        end_ms=end_ms,
        healed_ms=result.healed_ms or None,
        settled_ms=result.settled_ms,
        rows=tuple(row for row in rows if row.bars),
        violations=tuple(sorted(result.violations, key=lambda violation: violation.at_ms)),
        omitted="; ".join(part for part in (hosts_omitted, _views_omitted(result), marks_omitted) if part),
    )


def _span(result: RunResult) -> tuple[float, float]:
    moments = [0.0, result.healed_ms, result.settled_ms or 0.0]
    moments += [violation.at_ms for violation in result.violations]
    for event in result.timeline:
        moments += (event.at_ms, event.at_ms if event.until_ms is None else event.until_ms)
    return min(moments), max(1.0, *moments)


def _natural(name: str) -> list[tuple[int, str]]:
    """For sorting n2 before n10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _is_grave(event: TimelineEvent) -> bool:
    return event.tone in ("bad", "warn")


def _hosts(events: Iterable[TimelineEvent]) -> tuple[dict[str, int], str]:
    """The hosts to draw, in natural order, with the weight of their grave marks, and words for the others."""
    trouble: dict[str, int] = {}
    for event in events:
        if event.lane != "faults":
            weight = 1 if event.lane == "membership" and Opinions.understands(event) else OWN_TROUBLE_WEIGHT
            trouble[event.host] = trouble.get(event.host, 0) + weight * _is_grave(event)
    every = sorted(trouble, key=_natural)
    worst = sorted(every, key=lambda host: -trouble[host])[:HOSTS_MAX]
    omitted = len(every) - len(worst)
    words = f"{omitted} of {len(every)} hosts, those with the least trouble" if omitted else ""
    return {host: trouble[host] for host in sorted(worst, key=_natural)}, words


def _views_omitted(result: RunResult) -> str:
    if result.views_until_ms is None:
        return ""
    return f"membership after {result.views_until_ms / 1000:.1f} s, which changed too often to be kept"


def _is_mark(event: TimelineEvent, hosts: dict[str, int]) -> bool:
    """Whether it is drawn by itself: the strips of `Opinions` show changes of mind."""
    if event.lane == "faults":
        return True
    return event.host in hosts and not (event.lane == "membership" and Opinions.understands(event))


def _thinned(events: Sequence[TimelineEvent]) -> tuple[Sequence[TimelineEvent], str]:
    """At most MARKS_MAX of them; of harmless ones a quarter of that stays in any case."""
    if len(events) <= MARKS_MAX:
        return events, ""
    harmless = sum(_is_harmless(event) for event in events)
    harmless_kept = min(harmless, max(MARKS_MAX // 4, MARKS_MAX - (len(events) - harmless)))
    shares = {
        True: harmless_kept / max(1, harmless),
        False: min(1.0, (MARKS_MAX - harmless_kept) / max(1, len(events) - harmless)),
    }
    kept: list[TimelineEvent] = []
    due = {True: 0.0, False: 0.0}
    for event in events:
        kind = _is_harmless(event)
        due[kind] += shares[kind]
        if due[kind] >= 1.0:
            due[kind] -= 1.0
            kept.append(event)
    return kept, f"{len(events) - len(kept):,} of {len(events):,} marks, thinned evenly, harmless ones first"


def _is_harmless(event: TimelineEvent) -> bool:
    return event.lane != "faults" and not _is_grave(event)


def _host_rows(host: str, events: Sequence[TimelineEvent], opinions: Opinions) -> Iterator[Row]:
    turns = [_bar(event) for event in events if event.lane == "membership"]
    sees = sorted([*opinions.sees(host), *turns], key=lambda bar: bar.from_ms)
    yield Row(lane="membership", host=host, title="sees", bars=tuple(sees))
    yield Row(lane="membership", host=host, title="seen as", bars=tuple(opinions.seen(host)))
    for lane in _LANES:
        yield _row(lane, host, (event for event in events if event.lane == lane))


def _row(lane: str, host: str, events: Iterable[TimelineEvent]) -> Row:
    bars: list[Bar] = []
    ends: list[float] = []
    for event in events:
        free = next((track for track, end_ms in enumerate(ends) if end_ms <= event.at_ms), len(ends))
        track = min(free, TRACKS_MAX - 1)
        if track == len(ends):
            ends.append(event.at_ms)
        bar = _bar(event, track)
        ends[track] = max(ends[track], bar.end_ms)
        bars.append(bar)
    return Row(lane=lane, host=host, title=lane, bars=tuple(bars), tracks=max(1, len(ends)))


def _bar(event: TimelineEvent, track: int = 0) -> Bar:
    look = "fault" if event.lane == "faults" else event.tone
    return Bar(
        from_ms=event.at_ms,
        until_ms=event.until_ms,
        label=event.label,
        detail=event.detail,
        look=look,
        track=track,
    )

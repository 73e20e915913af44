"""Membership as bars: what each host thinks of the others, and what the others think of it.

A run's membership marks are single changes of mind ("n2 SUSPECT", seen by n0). A reader wants the state between them:
two strips per host, each showing the gravest opinion of the moment, with the tally and what changed it as its detail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from chaos.report.chart import Bar
from chaos.runs import TimelineEvent

_CHANGE = re.compile(r"(\S+) (ALIVE|SUSPECT|DEAD|LEFT)")
_GRAVEST_FIRST = ("DEAD", "SUSPECT", "LEFT", "ALIVE")
_NAMES_MAX = 8
_CAUSES_MAX = 6


class Opinions:
    """Hears the membership marks of a run in order of time; after `end` it has the strips of the hosts in `kept`.

    `shortest_ms`: a strip whose state stays the same is cut no finer, however often its tally changes.
    """

    def __init__(self, end_ms: float, *, shortest_ms: float, kept: Collection[str]) -> None:
        self._end_ms = end_ms
        self._sees = {host: _Strip(shortest_ms) for host in kept}
        self._seen = {host: _Strip(shortest_ms) for host in kept}

    @staticmethod
    def understands(event: TimelineEvent) -> bool:
        """Whether this mark is a change of mind, which the strips show."""
        return _CHANGE.fullmatch(event.label) is not None

    @staticmethod
    def begins_whole(events: Iterable[TimelineEvent]) -> bool:
        """Whether the members of this run knew each other before its first mark: that one changes an opinion."""
        first = next((event for event in events if event.lane == "membership" and Opinions.understands(event)), None)
        return first is not None and " -> " in first.detail and ": new -> " not in first.detail

    def hear(self, event: TimelineEvent) -> None:
        """Take in one membership mark."""
        change = _CHANGE.fullmatch(event.label)
        if change is not None:
            self._changed(event, *change.groups())
        elif event.label.startswith("ends"):
            self._ended(event)
        elif event.label.startswith("starts") and (strip := self._sees.get(event.host)) is not None:
            strip.change(event.at_ms, strip.start, event.detail)

    def begin_whole(self, at_ms: float, names: Collection[str]) -> None:
        """From here on everybody named sees everybody ALIVE, without a mark that says so."""
        for host, strip in self._sees.items():
            strip.begin(at_ms, (name for name in names if name != host))
        for host, strip in self._seen.items():
            strip.begin(at_ms, (name for name in names if name != host))

    def _changed(self, event: TimelineEvent, member: str, state: str) -> None:
        if member == event.host:
            return
        if (sees := self._sees.get(event.host)) is not None:
            sees.change(event.at_ms, lambda: sees.put(member, state), event.detail or event.label)
        if (seen := self._seen.get(member)) is not None:
            seen.change(
                event.at_ms, lambda: seen.put(event.host, state), f"{event.host} on {event.detail or event.label}"
            )

    def _ended(self, event: TimelineEvent) -> None:
        if (sees := self._sees.get(event.host)) is not None:
            sees.change(event.at_ms, sees.stop, f"{event.label} {event.detail}".strip())
        for strip in self._seen.values():
            if strip.holds(event.host):
                strip.forget(event.at_ms, event.host)

    def end(self) -> None:
        """No more will be heard."""
        for strip in (*self._sees.values(), *self._seen.values()):
            strip.close(self._end_ms)

    def sees(self, host: str) -> list[Bar]:
        """What it thinks of others, by time; `down` while its process did not run."""
        return self._sees[host].bars

    def seen(self, host: str) -> list[Bar]:
        """What others think of it, by time."""
        return self._seen[host].bars


class _Strip:
    """One strip in the making."""

    def __init__(self, shortest_ms: float) -> None:
        self.bars: list[Bar] = []
        self._shortest_ms = shortest_ms
        self._states: dict[str, str] = {}
        self._holders: dict[str, dict[str, None]] = {state: {} for state in _GRAVEST_FIRST}
        self._down = False
        self._began_ms = 0.0
        self._causes: list[str] = []
        self._causes_dropped = 0

    def begin(self, at_ms: float, names: Iterable[str]) -> None:
        self._began_ms = at_ms
        for name in names:
            self.put(name, "ALIVE")

    def holds(self, who: str) -> bool:
        return who in self._states

    def put(self, who: str, state: str) -> None:
        self._down = False  # a process that changes its mind runs, whether or not its start was told
        before = self._states.get(who, "ALIVE")
        self._holders[before].pop(who, None)
        self._holders[state][who] = None
        self._states[who] = state

    def forget(self, at_ms: float, who: str) -> None:
        """`who` ended, and its opinion with it."""
        self.change(at_ms, lambda: self._drop(who), f"{who} ends")

    def _drop(self, who: str) -> None:
        del self._holders[self._states.pop(who)][who]

    def start(self) -> None:
        self._down = False
        self._states.clear()
        for holders in self._holders.values():
            holders.clear()

    def stop(self) -> None:
        self.start()
        self._down = True

    def change(self, at_ms: float, apply: Callable[[], None], cause: str) -> None:
        """Apply a change, and cut the strip here when it shows."""
        look, tally = self._look(), self._tally()
        apply()
        long_enough = at_ms - self._began_ms >= self._shortest_ms
        if self._look() != look or (self._tally() != tally and long_enough):
            self._cut(at_ms, look, tally)
        if len(self._causes) < _CAUSES_MAX:
            self._causes.append(f"{at_ms / 1000:.3f} s  {cause}")
        else:
            self._causes_dropped += 1

    def close(self, at_ms: float) -> None:
        self._cut(at_ms, self._look(), self._tally())

    def _cut(self, at_ms: float, look: str, tally: str) -> None:
        if look and at_ms > self._began_ms:
            more = [f"… and {self._causes_dropped} more changes"] if self._causes_dropped else []
            detail = "\n".join([tally, *self._causes, *more])
            label = tally.split(":", 1)[0]
            self.bars.append(Bar(from_ms=self._began_ms, until_ms=at_ms, label=label, detail=detail, look=look))
        self._began_ms = at_ms
        self._causes.clear()
        self._causes_dropped = 0

    def _look(self) -> str:
        if self._down:
            return "down"
        return next((state.lower() for state, holders in self._holders.items() if holders), "")

    def _tally(self) -> str:
        """Such as "1 DEAD, 3 ALIVE: n2 DEAD"."""
        if self._down:
            return "process down"
        numbers = ", ".join(f"{len(holders)} {state}" for state, holders in self._holders.items() if holders)
        grave = ((name, state) for state in _GRAVEST_FIRST[:-1] for name in self._holders[state])
        names = ", ".join(f"{name} {state}" for name, state in islice(grave, _NAMES_MAX))
        more = len(self._states) - len(self._holders["ALIVE"]) - _NAMES_MAX
        return (f"{numbers}: {names}" if names else numbers) + (f" and {more} more" if more > 0 else "")

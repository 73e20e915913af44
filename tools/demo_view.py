"""How `relaymesh demo` shows itself: live tables on a terminal, one plain line per change anywhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_EVENTS_SHOWN = 8
_STYLES = {"ALIVE": "green", "SUSPECT": "yellow", "DEAD": "red", "LEFT": "dim", "unreachable": "red"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the demo knows at one moment."""

    elapsed_s: float
    watched: str
    """The node that was asked."""
    members: Mapping[str, str]
    """Status by node id, as the watched node sees it."""
    steps: Sequence[Mapping[str, object]] = field(default=())

    def statuses(self) -> Counter[str]:
        """How many steps have each status."""
        return Counter(str(step["status"]) for step in self.steps)

    def owned(self, status: str) -> Counter[str]:
        """How many steps of one status each node owns."""
        return Counter(str(step["owner"]) for step in self.steps if step["status"] == status)


class View(Protocol):
    """Shows what happens while it happens."""

    def show(self, snapshot: Snapshot) -> None:
        """Take the newest state."""
        ...

    def say(self, elapsed_s: float, text: str) -> None:
        """Report one event."""
        ...

    def close(self) -> None:
        """End the live part; what was said stays readable."""
        ...


def make_view(stream: TextIO) -> View:
    """The live view when the stream is a terminal that can redraw, else plain lines."""
    console = Console(file=stream, highlight=False)
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView(stream)


class PlainView:
    """One line per event, and one whenever the picture changed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = ""

    def show(self, snapshot: Snapshot) -> None:
        """Print the state unless it is what the last line said."""
        statuses = snapshot.statuses()
        members = " ".join(f"{node_id}={status}" for node_id, status in snapshot.members.items())
        running = " ".join(f"{node_id}:{count}" for node_id, count in sorted(snapshot.owned("RUNNING").items()))
        done = f"done {statuses['SUCCESS']}/{len(snapshot.steps)}" if snapshot.steps else "nothing submitted"
        line = f"{done}  running [{running}]  members {members}"
        if line != self._last:
            self._last = line
            self._print(snapshot.elapsed_s, line)

    def say(self, elapsed_s: float, text: str) -> None:
        """Print one event."""
        self._print(elapsed_s, text)

    def close(self) -> None:
        """Nothing to end."""

    def _print(self, elapsed_s: float, text: str) -> None:
        print(f"{elapsed_s:6.1f} s  {text}", file=self._stream, flush=True)


class LiveView:
    """A table of nodes, a bar of steps and the latest events, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._snapshot = Snapshot(elapsed_s=0.0, watched="", members={})
        self._events: list[str] = []
        self._live = Live(console=console, refresh_per_second=8, transient=True, get_renderable=self._render)
        self._live.start()

    def show(self, snapshot: Snapshot) -> None:
        """Take the newest state; the picture follows by itself."""
        self._snapshot = snapshot

    def say(self, elapsed_s: float, text: str) -> None:
        """Add one event to the list below the tables."""
        self._events.append(f"{elapsed_s:6.1f} s  {text}")

    def close(self) -> None:
        """Leave the last picture and all events on the terminal."""
        self._live.stop()
        self._console.print(self._nodes())
        for event in self._events:
            self._console.print(Text(event))

    def _render(self) -> RenderableType:
        statuses = self._snapshot.statuses()
        total = max(1, len(self._snapshot.steps))
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=total, completed=statuses["SUCCESS"], width=40),
            f"{statuses['SUCCESS']}/{len(self._snapshot.steps)} steps done, {statuses['RUNNING']} running, "
            f"{self._snapshot.elapsed_s:.0f} s",
        )
        events = Text("\n".join(self._events[-_EVENTS_SHOWN:]))
        return Group(self._nodes(), bar, events)

    def _nodes(self) -> Table:
        running, done = self._snapshot.owned("RUNNING"), self._snapshot.owned("SUCCESS")
        table = Table("node", f"status (as {self._snapshot.watched} sees it)", "running", "done")
        for node_id, status in self._snapshot.members.items():
            table.add_row(
                node_id, Text(status, style=_STYLES.get(status, "")), str(running[node_id]), str(done[node_id])
            )
        return table

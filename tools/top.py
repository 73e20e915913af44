"""`relaymesh top`: a mesh as one of its nodes sees it, renewed every two seconds on a terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from mesh.errors import UnavailableError
from tools.output import print_json
from tools.session import EXIT_OK, Session
from tools.top_view import Rates, draw

REFRESH_S = 2.0
ONCE_S = 1.0
"""How long one look counts, to have rates to show."""
_LOOK_S = 0.1
"""How soon a key or a new size of the window is noticed."""


def run_once(session: Session) -> int:
    """Look twice, a second apart, and print what there is."""
    rates = Rates()
    rates.add(time.monotonic(), session.ask("overview"))
    time.sleep(ONCE_S)
    overview = session.ask("overview")
    rates.add(time.monotonic(), overview)
    if session.json:
        print_json({**overview, "rates": rates.per_second()})
        return EXIT_OK
    console = Console(highlight=False, soft_wrap=True)
    for line in draw(overview, rates.per_second(), width=console.width, height=10_000):
        console.print(line)
    return EXIT_OK


def run_live(session: Session) -> int:
    """Show it until q or Ctrl-C. A node that stops answering is asked again; only the first look may fail."""
    console = Console(highlight=False)
    if console.is_dumb_terminal:  # it can draw nothing in one place, and rich would show nothing at all
        return run_once(session)
    rates, note = Rates(), ""
    overview = session.ask("overview")
    rates.add(time.monotonic(), overview)
    try:
        with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False) as live:
            while True:
                _show(live, overview, rates, note)
                if _wait(live, overview, rates, note, pressed):
                    return EXIT_OK
                try:
                    overview, note = session.ask("overview"), ""
                    rates.add(time.monotonic(), overview)
                except UnavailableError as error:
                    note = f"no answer: {error}"
    except KeyboardInterrupt:
        return EXIT_OK


def _show(live: Live, overview: dict[str, Any], rates: Rates, note: str) -> None:
    size = live.console.size
    lines = draw(overview, rates.per_second(), width=size.width, height=size.height, note=note)
    live.update(Group(*lines), refresh=True)


def _wait(live: Live, overview: dict[str, Any], rates: Rates, note: str, pressed: int | None) -> bool:
    """Wait for the next refresh, and draw anew when the window changes. True when q was pressed."""
    until, size = time.monotonic() + REFRESH_S, live.console.size
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([] if pressed is None else [pressed], [], [], min(left, _LOOK_S))
        if ready and os.read(ready[0], 64).lower()[:1] in (b"q", b"\x03", b""):
            return True
        if live.console.size != size:
            size = live.console.size
            _show(live, overview, rates, note)
    return False


@contextmanager
def _keys() -> Iterator[int | None]:
    """Single keys of the terminal while the block lasts; None when standard input is none."""
    if not sys.stdin.isatty():
        yield None
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)  # Ctrl-C stays a signal
    try:
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)

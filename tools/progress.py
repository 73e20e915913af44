"""How far a long command is: a line on standard error that renews itself on a terminal, and is rare elsewhere.

Standard output stays for the answer alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

RENEW_S = 0.1
PLAIN_EVERY_S = 10.0
"""Where lines stay, as in the log of a CI job."""


class Progress:
    """Use it in a `with` block: afterwards the line is gone from the terminal."""

    def __init__(self, stream: TextIO, *, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = now
        self._live = stream.isatty()
        # The first plain line waits as long as the others: a short command says nothing.
        self._shown_at = -RENEW_S if self._live else now()
        self._is_drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._wipe()

    def show(self, text: str) -> None:
        """The newest state. Shown if the last one is old enough."""
        now = self._now()
        if now - self._shown_at < (RENEW_S if self._live else PLAIN_EVERY_S):
            return
        self._shown_at = now
        if not self._live:
            print(text, file=self._stream, flush=True)
            return
        room = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{text[:room]}", end="", file=self._stream, flush=True)
        self._is_drawn = True

    def say(self, text: str) -> None:
        """A line that stays."""
        self._wipe()
        print(text, file=self._stream, flush=True)

    def _wipe(self) -> None:
        if self._is_drawn:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
            self._is_drawn = False

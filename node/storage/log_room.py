"""Keeps the write-ahead log's file longer than what is in it, so that a commit need not make the file grow.

A sync after a write inside a file waits for that data; a sync after a write that made the file longer waits for the
file system's own journal as well, twice as long (measured: 300 against 140 µs). So the file grows by many pages at a
time. SQLite reads a log up to the first frame that is not valid, and a frame of zeros names page 0, which never is: the
room is invisible to it, also after a crash.
"""

from __future__ import annotations

import os
from pathlib import Path

STEP_BYTES = 1 << 20
"""How much room is made at once: the cost of one long sync for about 250 pages."""
MARGIN_BYTES = 256 << 10
"""Room is made while this much is left: more than nearly every batch writes."""

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


class LogRoom:
    """The room in the log of one database. Use it right before a COMMIT, on the writing thread.

    A database behind a named VFS gets none: where its files are is not ours to know.
    """

    def __init__(self, database: Path, vfs: str, *, page_bytes: int) -> None:
        self._path = None if vfs else database.with_name(f"{database.name}-wal")
        self._frame_bytes = page_bytes + _FRAME_HEADER_BYTES
        self._end = 0
        """As long as the file is known to be. SQLite never shortens it while the database is open."""

    def ensure(self, pages: int) -> None:
        """Make room if little is left behind `pages` pages of log. OSError when the disk has none; then try later."""
        used = _HEADER_BYTES + pages * self._frame_bytes
        if self._path is None or used + MARGIN_BYTES <= self._end:
            return
        # Should it fail, not every batch is to try: the next attempt comes when as much again has been written.
        self._end = used + STEP_BYTES
        with self._path.open("r+b") as file:
            missing = self._end - file.seek(0, os.SEEK_END)
            if missing > 0:
                # Zeros are written, not only promised: a file system must journal the first write to promised blocks.
                file.write(bytes(missing))

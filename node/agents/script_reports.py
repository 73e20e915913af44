"""What a script says besides its stdout: progress lines on its stderr, and a result in a file of its own."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

PROGRESS_MARK = b"::progress "
"""A line of stderr that begins so tells how far the script is: `::progress 0.3 decoded`. It is no part of the log."""

PROGRESS_LINE_BYTES_MAX = 1024

PROGRESS_LINES_MAX = 100
"""Of one piece of the stream, the latest: who writes them without end must not keep the node busy with reading them."""


class ProgressSieve:
    """Takes progress lines out of a stream of bytes that comes in pieces."""

    def __init__(self, note: Callable[[float, str], None]) -> None:
        self._note = note
        self._carried = b""  # the beginning of what may become a progress line
        self._is_fresh = True
        """Whether the next byte begins a line."""

    def sift(self, chunk: bytes) -> bytes:
        """What is left of `chunk`, and of what was carried over from those before."""
        data, self._carried = self._carried + chunk, b""
        end = data.rfind(b"\n") + 1
        lines, rest = data[:end], data[end:]
        if PROGRESS_MARK in lines:
            lines = self._without_progress(lines)
        is_fresh = self._is_fresh or end > 0
        may_become = PROGRESS_MARK.startswith(rest[: len(PROGRESS_MARK)]) and len(rest) <= PROGRESS_LINE_BYTES_MAX
        if rest and is_fresh and may_become:
            self._carried, rest, self._is_fresh = rest, b"", True
        else:
            self._is_fresh = is_fresh and not rest
        return lines + rest

    def left(self) -> str:
        """What was carried and never became a whole line, at the end of the stream."""
        return "" if self._carried.startswith(PROGRESS_MARK) else self._carried.decode(errors="replace")

    def _without_progress(self, lines: bytes) -> bytes:
        kept = []
        unread = lines.count(b"\n" + PROGRESS_MARK) + lines.startswith(PROGRESS_MARK) - PROGRESS_LINES_MAX
        for number, line in enumerate(lines.splitlines(keepends=True)):
            is_marked = (number or self._is_fresh) and line.startswith(PROGRESS_MARK)
            unread -= is_marked
            if not (is_marked and (unread >= 0 or self._is_progress(line))):
                kept.append(line)
        return b"".join(kept)

    def _is_progress(self, line: bytes) -> bool:
        """Note it; False when it is none after all, and people may want to see what it is."""
        fraction, _, text = line[len(PROGRESS_MARK) :].decode(errors="replace").strip().partition(" ")
        try:
            self._note(float(fraction), text.strip())
        except ValueError:
            return False
        return True


def read_result_file(path: Path, bytes_max: int) -> bytes | str | None:
    """The content that a script left at `path`, why it cannot be used, or None when it left nothing. Blocks."""
    try:
        # A script may have put anything there: nothing is followed, and nothing is waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"its RELAYMESH_RESULT_FILE cannot be read: {error.strerror}"
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return "its RELAYMESH_RESULT_FILE is no regular file"
    with open(descriptor, "rb") as file:
        if status.st_size > bytes_max:
            return f"wrote {status.st_size} bytes to RELAYMESH_RESULT_FILE, above the limit of a result, {bytes_max}"
        return file.read(bytes_max)

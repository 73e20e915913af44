"""Reading what a process prints, as it prints it, within a fixed amount of memory and of the node's time."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

READ_BYTES = 64 * 1024  # a pipe's usual capacity

FLOOD_PAUSE_S = 0.002
"""After a full read of a log: whoever prints without end is slowed to 32 MB/s, instead of slowing the node."""


class PipeReader:
    """The reading end of a pipe; gives each chunk to `accept`."""

    def __init__(self, descriptor: int, accept: Callable[[bytes], None], *, pause_s: float = 0.0) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor: int | None = descriptor
        self._accept = accept
        self._pause_s = pause_s

    async def follow(self) -> None:
        """Read until the end of the pipe or `close`."""
        while self._descriptor is not None:
            try:
                await trio.lowlevel.wait_readable(self._descriptor)
            except trio.ClosedResourceError:
                return
            length = self.read_now()
            if length is None:
                return
            if length == READ_BYTES and self._pause_s:
                await trio.sleep(self._pause_s)

    def read_now(self) -> int | None:
        """Read once what is there now: its length, 0 when there is nothing yet, None at the end."""
        if self._descriptor is None:
            return None
        try:
            chunk = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return 0
        if not chunk:
            return None
        self._accept(chunk)
        return len(chunk)

    def read_rest(self, bytes_max: int) -> None:
        """Read what is left in the pipe of a process that has ended, but no more than about `bytes_max`."""
        while bytes_max > 0 and (length := self.read_now()):
            bytes_max -= length

    def close(self) -> None:
        """Release the descriptor. Closing twice is allowed."""
        if self._descriptor is not None:
            trio.lowlevel.notify_closing(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


class LogTail:
    """The last `bytes_max` bytes of what went through a pipe, and through `sift` if there is one."""

    def __init__(self, descriptor: int, bytes_max: int, sift: Callable[[bytes], bytes] | None = None) -> None:
        self.pipe = PipeReader(descriptor, self._keep, pause_s=FLOOD_PAUSE_S)
        self._bytes_max = bytes_max
        self._sift = sift
        self._tail = b""

    def clear(self) -> None:
        """Forget what was kept and throw away what is waiting: a new attempt begins."""
        self.pipe.read_rest(READ_BYTES)
        self._tail = b""

    def text(self) -> str:
        """The tail, with what is in the pipe now. Bytes that are no UTF-8 are replaced."""
        self.pipe.read_rest(READ_BYTES)
        # Cutting bytes may have left the rest of a character at the front.
        return self._tail.decode(errors="replace").lstrip("\ufffd") if self._tail else ""

    def _keep(self, chunk: bytes) -> None:
        if self._sift is not None:
            chunk = self._sift(chunk)
        self._tail = (self._tail + chunk)[-self._bytes_max :]

"""The fingerprint of a run: a hash over every step of every task, every packet and every commit.

Equal hashes mean the same run. Packets alone are not enough: runs that differ in the order of tasks can still send the
same packets for a long time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import trio

from chaos.simulation.event_heap import EventHeap
from chaos.simulation.scheduling import HOST

_FLUSH_BYTES = 1 << 16


class Fingerprint(trio.abc.Instrument):
    """Give it to `trio.run(instruments=…)`, and `note` what happens outside of tasks."""

    def __init__(self, heap: EventHeap, *, tell: Callable[[str], None] | None = None) -> None:
        """`tell` hears every line: that is how two runs that differ are compared, and too much for any other use."""
        self._heap = heap
        self._tell = tell
        self._hash = hashlib.blake2b(digest_size=16)
        self._waiting = bytearray()
        self._numbers: dict[trio.lowlevel.Task, int] = {}
        self._spawned = 0
        self.steps = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Part of Trio's interface for instruments. Many tasks have one name; their numbers tell them apart."""
        self._spawned += 1
        self._numbers[task] = self._spawned

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Part of Trio's interface for instruments."""
        self._numbers.pop(task, None)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Part of Trio's interface for instruments."""
        self.steps += 1
        self.note(f"{task.context.get(HOST, '')} {task.name} {self._numbers.get(task)}", b"")

    def note(self, what: str, content: bytes) -> None:
        """Something happened now."""
        self._waiting += b"%r %b " % (self._heap.now, what.encode())
        self._waiting += content
        if len(self._waiting) > _FLUSH_BYTES:
            self._flush()
        if self._tell is not None:
            self._tell(f"{self._heap.now!r} {what} {hashlib.blake2b(content, digest_size=6).hexdigest()}")

    def _flush(self) -> None:
        self._hash.update(self._waiting)
        self._waiting.clear()

    def hexdigest(self) -> str:
        """The hash so far, 32 hexadecimal digits."""
        self._flush()
        return self._hash.hexdigest()

"""Worker processes that do calls: what the batches of chaos run on.

Promises: a call that hangs is ended at its limit and reported with its stacks; a process that dies is reported with
what it last said, for its own call only. Ctrl-C reaches the caller alone, and no process outlives the `with` block.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

GRACE_S = 10.0
"""A worker ends itself at a call's limit, and says where it stood. One that cannot do that is killed so much later."""
SAID_CHARS_MAX = 16_000
"""Of what a dead worker said, the last so many are reported: the stacks of every thread fit."""
_LAST_WORDS_S = 1.0
_ROOT = Path(__file__).parents[1]


Answer = tuple[Any, str]
"""What a worker sends: the value, or the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function that can be imported, and arguments that can be pickled."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    limit_s: float
    """Wall time."""
    hash_seed: int | None = None
    """Done by a process of its own, made for it under this PYTHONHASHSEED. None: by whichever is free."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a call ended: with a value, or with an error in words and stacks."""

    call: Call
    value: Any
    error: str = ""
    hung: bool = False
    """Whether it was ended for taking longer than its limit."""


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection[Call, Answer]
    said: BinaryIO
    own: bool
    """Made for one call, and gone after it."""
    call: Call | None = None
    until: float = field(default=0.0)
    """When its call must have ended, on the monotonic clock."""


class WorkerPool:
    """At most `jobs` processes at a time. Calls begin in the order in which they were submitted."""

    def __init__(self, jobs: int) -> None:
        assert jobs >= 1, jobs
        self._jobs = jobs
        self._waiting: deque[Call] = deque()
        self._workers: list[_Worker] = []
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        for worker in list(self._workers):
            self._end(worker)

    @property
    def free(self) -> int:
        """How many more calls would begin at once."""
        return self._jobs - self.under_way

    @property
    def under_way(self) -> int:
        """Calls that were submitted and whose end was not yet told."""
        return len(self._waiting) + sum(worker.call is not None for worker in self._workers)

    def submit(self, call: Call) -> None:
        """Have a call done."""
        self._waiting.append(call)
        self._begin_waiting()

    def next_done(self, timeout_s: float) -> Done | None:
        """The next call to end, or None when none did in this time."""
        assert self.under_way, "something must be under way"
        self._begin_waiting()
        busy = {worker.pipe: worker for worker in self._workers if worker.call is not None}
        ready = wait(list(busy), timeout=timeout_s)
        if ready:
            return self._collect(busy[ready[0]])  # type: ignore[index]  # we gave nothing but pipes
        now = time.monotonic()
        stuck = next((worker for worker in busy.values() if now > worker.until + GRACE_S), None)
        return None if stuck is None else self._bury(stuck)

    def _begin_waiting(self) -> None:
        while self._waiting and sum(worker.call is not None for worker in self._workers) < self._jobs:
            call = self._waiting.popleft()
            worker = self._worker_for(call)
            worker.call, worker.until = call, time.monotonic() + call.limit_s
            worker.pipe.send(call)

    def _worker_for(self, call: Call) -> _Worker:
        idle = [worker for worker in self._workers if worker.call is None]
        if call.hash_seed is None and idle:
            return idle[0]
        if len(self._workers) >= self._jobs:
            self._end(idle[0])
        self._started += 1
        worker = _start(self._started if call.hash_seed is None else call.hash_seed, own=call.hash_seed is not None)
        self._workers.append(worker)
        return worker

    def _collect(self, worker: _Worker) -> Done:
        try:
            value, error = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._bury(worker)
        call, worker.call = worker.call, None
        assert call is not None, "only busy workers are waited for"
        if worker.own:
            self._end(worker)
        return Done(call, value, error)

    def _bury(self, worker: _Worker) -> Done:
        """A worker died, or must: say what it was doing."""
        call, hung = worker.call, time.monotonic() >= worker.until
        assert call is not None, "only busy workers are waited for"
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(_LAST_WORDS_S)
        said = self._end(worker)
        what = f"not done after {call.limit_s:g} s" if hung else f"its process ended ({worker.process.returncode})"
        return Done(call, None, f"{what}\n{said}", hung=hung)

    def _end(self, worker: _Worker) -> str:
        """Leave nothing of it but what it said."""
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.kill()
        worker.process.wait()
        with worker.said:
            worker.said.seek(0)
            return worker.said.read().decode(errors="replace")[-SAID_CHARS_MAX:]


def _import_path() -> str:
    """This very source tree first, whatever is installed."""
    return os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))


def _start(hash_seed: int, *, own: bool) -> _Worker:
    ours, theirs = Pipe()
    said = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the worker)
    environ = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": _import_path()}
    # A child inherits what is blocked: so Ctrl-C, which a terminal sends to all of us, is heard by the parent alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "chaos.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=environ,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return _Worker(process, ours, said, own)

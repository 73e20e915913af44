"""Trio made repeatable: the order in which tasks run follows from a seed, and the tasks of one host can be held.

The only module that touches private names of Trio. Trio shuffles each batch of runnable tasks, by a generator that can
be seeded once its own flag for that is set (it exists for Hypothesis); and its queue of runnable tasks can be replaced
by one that holds back those of a stopped host. It cancels tasks in the order of their addresses, which garbage of
earlier runs in the process moves about: here in the order in which they came. `check_trio` says clearly when a new Trio
has renamed something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappush
from itertools import count
from typing import Any

import trio
import trio.lowlevel
from trio._core import _run

HOST: ContextVar[str] = ContextVar("simulated_host", default="")
"""The host whose code runs; empty for the world's own. Tasks inherit it from those that start them."""


class HoldingQueue(deque[trio.lowlevel.Task]):
    """Trio's queue of runnable tasks, but for those of held hosts: an exact SIGSTOP. No line of theirs runs."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, list[trio.lowlevel.Task]] = {}

    def append(self, task: trio.lowlevel.Task) -> None:
        """Queue a task, or keep it until its host goes on."""
        if self._held:
            waiting = self._held.get(task.context.get(HOST, ""))
            if waiting is not None:
                waiting.append(task)
                return
        super().append(task)

    def hold(self, host: str) -> None:
        """Let no task of this host run from the next batch on."""
        self._held.setdefault(host, [])

    def release(self, host: str) -> None:
        """Let them go on. A no-op when the host is not held."""
        for task in self._held.pop(host, ()):
            super().append(task)

    def holds(self, host: str) -> bool:
        """Whether the host is held."""
        return host in self._held


class _InOrder(dict[Any, None]):
    """As much of a set as Trio uses, walked in the order in which members came."""

    def add(self, member: object) -> None:
        self[member] = None

    def remove(self, member: object) -> None:
        del self[member]


@contextmanager
def _cancelling_in_order() -> Iterator[None]:
    """Within this block, who is cancelled at one instant is cancelled in the order of beginning, not of addresses."""
    status_init, deadlines_add = _run.CancelStatus.__init__, _run.Deadlines.add
    arrivals = count()

    def init(status: Any, *args: Any, **kwargs: Any) -> None:
        status_init(status, *args, **kwargs)
        status._children, status._tasks = _InOrder(), _InOrder()

    def add(deadlines: Any, deadline: float, scope: trio.CancelScope) -> None:
        heappush(deadlines._heap, (deadline, next(arrivals), scope))
        deadlines._active += 1

    _run.CancelStatus.__init__ = init  # type: ignore[method-assign,assignment]
    _run.Deadlines.add = add  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        _run.CancelStatus.__init__ = status_init  # type: ignore[method-assign]
        _run.Deadlines.add = deadlines_add  # type: ignore[method-assign]


@contextmanager
def seeded_scheduling(seed: int) -> Iterator[None]:
    """Within this block, `trio.run` decides by this seed which runnable task comes first, and repeats all else."""
    check_trio()
    was_allowed, state = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # final for Trio's users
    _run._r.seed(seed)
    try:
        with _cancelling_in_order():
            yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = was_allowed  # type: ignore[misc]
        _run._r.setstate(state)


def install_holding_queue() -> HoldingQueue:
    """Replace the queue of the running Trio. Call it once, at the start of the main task."""
    queue = HoldingQueue()
    runner = _run.GLOBAL_RUN_CONTEXT.runner
    queue.extend(runner.runq)
    runner.runq = queue
    return queue


def check_trio() -> None:
    """AssertionError when this Trio does not have what repeatable runs need."""
    for name in ("_ALLOW_DETERMINISTIC_SCHEDULING", "_r", "GLOBAL_RUN_CONTEXT"):
        assert hasattr(_run, name), f"trio {trio.__version__} has no {name}: pin the version in constraints.txt"
    assert "runq" in _run.Runner.__annotations__, f"trio {trio.__version__} queues its tasks in another way"
    for kind, names in ((_run.CancelStatus, ("_children", "_tasks")), (_run.Deadlines, ("_heap", "_active"))):
        assert set(names) <= kind.__annotations__.keys(), f"trio {trio.__version__} cancels its tasks in another way"

"""Refuses whatever would let the real world into a simulated node: threads, real time, real chance, real sockets.

Active only while code of a host runs (see `scheduling.HOST`), so that Trio and the harness keep what they need. What
such code must not call raises `LeakError` with the stack that leads there: the node dies of it, and the run says so.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import trio

from chaos.simulation.scheduling import HOST


class LeakError(AssertionError):
    """A simulated node reached for the real world."""


class _GuardedRandom(random.Random):
    def __new__(cls, *seed: Any) -> _GuardedRandom:
        # Without a seed, Random asks the operating system, from C and past every other guard.
        if HOST.get() and (not seed or seed[0] is None):
            raise LeakError(_text("random.Random() without a seed"))
        return super().__new__(cls)


def _text(name: str) -> str:
    return f"{HOST.get()} used {name}; reach for the outside world through node.env.Env"


def _refusing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if HOST.get():
            raise LeakError(_text(name))
        return original(*args, **kwargs)

    return guarded


def _clock(name: str, original: Callable[[], float]) -> Callable[[], float]:
    def guarded() -> float:
        if HOST.get():
            # A log record takes the time by itself; in a simulated world, that is virtual time.
            if sys._getframe(1).f_globals.get("__name__") == logging.__name__:
                return trio.current_time()
            raise LeakError(_text(name))
        return original()

    return guarded


_REFUSED: tuple[tuple[object, str, tuple[str, ...]], ...] = (
    (os, "os", ("urandom", "getrandom")),
    (socket.socket, "socket.socket", ("__init__",)),
    (socket, "socket", ("create_connection", "socketpair", "getaddrinfo")),
    (threading.Thread, "threading.Thread", ("start",)),
    (time, "time", ("sleep",)),
    (
        random,
        "random",
        (
            "random",
            "uniform",
            "randint",
            "randrange",
            "choice",
            "choices",
            "sample",
            "shuffle",
            "getrandbits",
            "randbytes",
            "gauss",
            "expovariate",
            "seed",
        ),
    ),
    (trio, "trio", ("run_process", "open_file")),
    (trio.to_thread, "trio.to_thread", ("run_sync",)),
)
_CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "clock_gettime")


@contextmanager
def leak_guard() -> Iterator[None]:
    """Guard the process while this block runs. Not for two at a time."""
    with ExitStack() as undo:
        for owner, shown, names in _REFUSED:
            for name in names:
                _replace(undo, owner, name, _refusing(f"{shown}.{name}", getattr(owner, name)))
        for name in _CLOCKS:
            guard = _clock if name in ("time", "monotonic", "perf_counter") else _refusing
            _replace(undo, time, name, guard(f"time.{name}", getattr(time, name)))
        _replace(undo, random, "_urandom", _refusing("secrets or SystemRandom", os.urandom))
        _replace(undo, random, "Random", _GuardedRandom)
        yield


def _replace(undo: ExitStack, owner: object, name: str, new: object) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, new)

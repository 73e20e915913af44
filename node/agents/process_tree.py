"""Killing everything that descends from this process, whatever it did to get away.

A subreaper is given the orphans below it, so nothing leaves its tree: not by a second fork, not by a session of its
own. Linux only. Standard library only, and single-threaded: the spawner and its guards run this.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)

REAP_PAUSE_S = 0.002
"""Between two looks at a dying tree. Only passed while something is being killed."""


def become_subreaper() -> None:
    """From now on orphans below this process become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int, parent_pid: int) -> None:
    """Be sent `signum` when the parent ends. Call it in the child, with the pid that forked it."""
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signum)  # the parent ended before the line above


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")


def descendants(spared: Collection[int] = ()) -> Iterator[int]:
    """The processes below this one, parents before children unless pids wrapped around; each as soon as it is found.

    The list of processes is read while it is used, so one that is forked during the walk, at a higher pid, is met as
    well. Neither the `spared` children nor anything below them is given.
    """
    tree = {os.getpid()}
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdigit():
                continue
            pid = int(entry.name)
            if _parent(pid) in tree and pid not in spared:
                # Zombies too: one whose first thread ended may go on in the others.
                tree.add(pid)
                yield pid


def _parent(pid: int) -> int:
    """The parent's pid; 0, which no process here has, when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[1])  # the name in brackets may hold any byte, even ")"
    except (FileNotFoundError, ProcessLookupError):
        return 0


def kill_descendants(patience_s: float, reaped: Callable[[int, int], None], spared: Collection[int] = ()) -> int:
    """Kill and reap everything below this process but the `spared` children and what is below them.

    Returns the number of those left after `patience_s`, normally 0; only what the kernel will not kill is ever left: a
    process of another user, or one stuck in a device. `reaped(pid, wait status)` is told each child that ended.
    """
    deadline = time.monotonic() + patience_s
    while not reap(reaped):
        doomed = _stop_all(spared)
        for pid in doomed:
            _send(pid, signal.SIGKILL)
        if spared and not doomed:
            return 0
        if time.monotonic() > deadline:
            return sum(1 for _ in descendants(spared))
        time.sleep(REAP_PAUSE_S)
    return 0


def _stop_all(spared: Collection[int]) -> list[int]:
    """Stop every descendant, again until no new one is found: what is stopped cannot fork away from the kill."""
    stopped: dict[int, None] = {}
    while True:
        found = [pid for pid in descendants(spared) if pid not in stopped and _send(pid, signal.SIGSTOP)]
        if not found:
            return list(stopped)
        stopped.update(dict.fromkeys(found))


def _send(pid: int, signum: int) -> bool:
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False  # already gone, or not ours to kill: the caller's patience bounds how long that is tried
    return True


def reap(reaped: Callable[[int, int], None]) -> bool:
    """Collect every child that has ended, telling `reaped` each; True when no child is left at all."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            return False
        reaped(pid, status)

"""A guard: a forked process that starts one command, and ends only when nothing of that command's tree is left.

It holds one end of a control socket; the node holds the other. The node sends TERMINATE (SIGTERM, then SIGKILL after
the grace) or KILL, or simply closes its end or dies, which is a KILL. The guard's only answer is a `Report`, sent when
the tree is gone. Standard library only: it runs in a fork of the spawner.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import time
from typing import Any, NoReturn

from node.agents.process_tree import become_subreaper, die_with_parent, kill_descendants, reap

TERMINATE = b"t"
KILL = b"k"

KILL_PATIENCE_S = 10.0
"""How long a guard tries to kill a tree before it reports what it had to leave."""

OOM_SCORE_ADJ = 500
"""Of 1000. When memory ends the kernel picks an agent before the node, which keeps the default of 0."""

SPAWNER_DIED = signal.SIGUSR1
"""Not SIGTERM, which a service manager sends to all processes of a service: the node decides what ends when."""

ERROR_CHARS_MAX = 200
"""Keeps a report to one small packet."""


def report(control: socket.socket, *, status: int = 0, error: str = "", survivors: int = 0) -> None:
    """Tell the node how it ended: the wait status, or why it could not start, and how many outlived the kill."""
    message = json.dumps({"status": status, "error": error[:ERROR_CHARS_MAX], "survivors": survivors})
    with contextlib.suppress(
        BrokenPipeError, ConnectionResetError
    ):  # the node is gone, and so is the tree: nothing is owed
        control.send(message.encode())


def run_guard(request: dict[str, Any], control: socket.socket, descriptors: list[int], parent_pid: int) -> NoReturn:
    """Start the command of `request` with `descriptors` as its 0, 1, 2, …, guard it to its end, report, exit."""
    guard = _Guard(control, float(request["grace_s"]))
    try:
        become_subreaper()
        die_with_parent(SPAWNER_DIED, parent_pid)  # a guard without a spawner still clears its tree away
        guard.start(request, descriptors)
    except OSError as error:
        report(control, error=error.strerror or str(error))
        os._exit(0)
    for descriptor in descriptors:
        os.close(descriptor)  # or the node would never see the end of the command's output
    guard.wait_for_end()
    survivors = kill_descendants(KILL_PATIENCE_S, guard.reaped)
    if guard.status is None:
        report(control, error="it could not be killed", survivors=survivors)
    else:
        report(control, status=guard.status, survivors=survivors)
    os._exit(0)


class _Guard:
    """Waits for one child, and for anybody who wants it dead."""

    def __init__(self, control: socket.socket, grace_s: float) -> None:
        self.status: int | None = None
        self._control = control
        self._grace_s = grace_s
        self._pid = 0
        self._kill_at: float | None = None
        self._wakeup, wakeup_end = socket.socketpair()
        self._wakeup.setblocking(False)
        wakeup_end.setblocking(False)
        self._wakeup_end = wakeup_end
        signal.set_wakeup_fd(wakeup_end.fileno(), warn_on_full_buffer=False)
        for signum in (signal.SIGCHLD, SPAWNER_DIED):
            signal.signal(signum, lambda _signum, _frame: None)  # the wakeup socket carries the news

    def start(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Fork and exec; OSError when the command cannot be started."""
        failure_reader, failure_writer = os.pipe()
        guard_pid = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _exec_command(request, descriptors, guard_pid, failure_writer)
        os.close(failure_writer)
        with open(failure_reader, "rb") as reader:  # ends at the exec, which closes the writer
            failure = reader.read()
        if failure:
            raise OSError(0, failure.decode(errors="replace"))

    def reaped(self, pid: int, status: int) -> None:
        """Keep the status of the command itself; its orphans are of no interest."""
        if pid == self._pid:
            self.status = status

    def wait_for_end(self) -> None:
        """Return when the command has ended, or must be killed now."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        while True:
            reap(self.reaped)
            if self.status is not None or (self._kill_at is not None and time.monotonic() >= self._kill_at):
                return
            patience_ms = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic()) * 1000 + 1
            ready = dict(poll.poll(patience_ms))
            if self._wakeup.fileno() in ready and SPAWNER_DIED in self._wakeup.recv(4096):
                return
            if self._control.fileno() in ready:
                order = self._control.recv(1)
                if order != TERMINATE:
                    return  # KILL, or the node closed its end or died
                self._terminate()

    def _terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGTERM)
        self._kill_at = time.monotonic() + self._grace_s


def _exec_command(request: dict[str, Any], descriptors: list[int], guard_pid: int, failure_writer: int) -> NoReturn:
    """In the new child: become the command, or tell `failure_writer` why not."""
    try:
        os.setsid()  # a group of its own to be signalled, and no terminal to be stopped by
        die_with_parent(signal.SIGKILL, guard_pid)
        for signum in (
            signal.SIGPIPE,
            signal.SIGXFSZ,
            signal.SIGINT,
            signal.SIGQUIT,
            signal.SIGHUP,
            signal.SIGTERM,
            signal.SIGCHLD,
        ):
            signal.signal(
                signum, signal.SIG_DFL
            )  # Python, nohup and shells leave some ignored, and exec would keep that
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        failure_writer = _place_descriptors(descriptors, failure_writer)
        _limit_resources(request["memory_bytes_max"], request["cpu_s_max"])
        os.chdir(request["cwd"])
        os.execvpe(request["argv"][0], request["argv"], {**os.environ, **request["env"]})  # noqa: S606
    except OSError as error:
        os.write(failure_writer, f"{error.filename or request['argv'][0]}: {error.strerror}".encode(errors="replace"))
    except ValueError as error:  # a NUL in an argument or in the environment
        os.write(failure_writer, str(error).encode(errors="replace"))
    finally:
        os._exit(127)


def _place_descriptors(descriptors: list[int], failure_writer: int) -> int:
    """Make `descriptors` 0, 1, 2, …; returns the new number of `failure_writer`.

    Everything else closes at the exec: Python opens all descriptors that way, and the spawner asked for it with each
    it was sent.
    """
    # First out of the way of the numbers that are wanted, then into place.
    above = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, len(descriptors)) for each in (*descriptors, failure_writer)]
    for target, source in enumerate(above[:-1]):
        os.dup2(source, target, inheritable=True)
    return above[-1]


def _limit_resources(memory_bytes_max: int, cpu_s_max: int) -> None:
    # RLIMIT_DATA counts memory that can be written, not address space that is merely reserved: RLIMIT_AS would keep
    # programs of the JVM, V8 or Go, which reserve much and use little, from starting at all.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes_max, memory_bytes_max))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if cpu_s_max:
        # SIGXCPU first, and SIGKILL a second later for who ignores it.
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s_max, cpu_s_max + 1))
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write(str(OOM_SCORE_ADJ))

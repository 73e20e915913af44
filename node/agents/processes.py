"""The node's side of the spawner: start a command, learn how its whole tree ended, end it.

Each `GuardedProcess` has a line of its own to its guard, so nothing here matches answers to requests. If this process
dies, by whatever cause, all lines end, and with them every tree that it started.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

import node
from node.agents.guard import KILL, KILL_PATIENCE_S, TERMINATE
from node.agents.spawner import REQUEST_BYTES_MAX

REPORT_BYTES_MAX = 4096
REPORT_MARGIN_S = 5.0
"""Beyond the grace and the guard's own patience; only a guard that is itself stopped or starved takes so long."""

PACKAGE_PARENT = Path(node.__file__).resolve().parent.parent

# Appended, so that it changes nothing where the package is installed and makes it importable where it is not.
_BOOT = "import sys; sys.path.append(sys.argv[1]); from {module} import main; sys.exit(main({arguments}))"


def python_command(module: str, arguments: str, *, flags: Sequence[str]) -> list[str]:
    """A command line that calls `module.main(arguments)`, with `arguments` a Python expression over `sys.argv[2:]`."""
    return [sys.executable, *flags, "-c", _BOOT.format(module=module, arguments=arguments), str(PACKAGE_PARENT)]


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a command ended. Its tree is gone, except for `survivors` that the kernel refused to kill."""

    status: int = 0
    """As from waitpid."""
    error: str = ""
    """Why it could not be started or watched; empty when it ran."""
    survivors: int = 0

    @property
    def ok(self) -> bool:
        """It ran and exited with 0."""
        return not self.error and self.status == 0

    @property
    def is_out_of_cpu(self) -> bool:
        """Whether it, or what a shell waited for, was ended for having used all of its CPU time."""
        code = self.exit_code
        return code == 128 + signal.SIGXCPU or (code is None and os.WTERMSIG(self.status) == signal.SIGXCPU)

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None when it did not exit by itself."""
        return os.WEXITSTATUS(self.status) if not self.error and os.WIFEXITED(self.status) else None

    def __str__(self) -> str:
        left = f"; {self.survivors} of its processes could not be killed" if self.survivors else ""
        if self.error:
            return self.error + left
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            name = next((each.name for each in signal.Signals if each == number), "unnamed")
            return f"killed by signal {number} ({name}){left}"
        return f"exit code {os.WEXITSTATUS(self.status)}{left}"


class GuardedProcess:
    """One started command, through the control socket of its guard."""

    def __init__(self, control: socket.socket, grace_s: float) -> None:
        self._control = control
        self._grace_s = grace_s
        self._ended: ExitStatus | None = None

    async def wait(self) -> ExitStatus:
        """Return when the command and everything below it is gone. One caller at a time."""
        while self._ended is None:
            await trio.lowlevel.wait_readable(self._control)
            try:
                packet = self._control.recv(REPORT_BYTES_MAX)
            except (BlockingIOError, ConnectionResetError):
                # A reset says that the guard ended without reading our last order; its report may still be waiting.
                continue
            self._ended = ExitStatus(**json.loads(packet)) if packet else ExitStatus(error="its guard was killed")
            self._control.close()
        return self._ended

    async def end(self, *, softly: bool) -> ExitStatus:
        """End the whole tree and return when it is gone: at once, or `softly` with SIGTERM and a grace first.

        Not cut short by cancellation, but bounded: after the grace, the guard's patience and a margin it gives up.
        """
        if self._ended is None:
            try:
                self._control.send(TERMINATE if softly else KILL)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the guard has sent its report already, or is dead: wait() tells which
        bound_s = self._grace_s + KILL_PATIENCE_S + REPORT_MARGIN_S
        with trio.CancelScope(shield=True, deadline=trio.current_time() + bound_s):
            return await self.wait()
        self._control.close()
        return ExitStatus(error="it could not be ended in time")


class Processes:
    """Starts commands through a spawner process, which is started by the first of them and again should it die."""

    def __init__(self, *, grace_s: float) -> None:
        self._grace_s = grace_s
        self._spawner: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    async def start(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        memory_bytes_max: int,
        descriptors: Sequence[int],
        cpu_s_max: int = 0,
    ) -> GuardedProcess:
        """Start `argv` with `descriptors` as its 0, 1, 2, … and `environment` added to the node's own.

        Each process of it may have `memory_bytes_max` of writable memory, and `cpu_s_max` seconds of CPU unless 0.

        The caller keeps its descriptors and closes them. A command that cannot be started is told by `wait`.
        """
        request = {
            "argv": list(argv),
            "cwd": str(cwd),
            "env": dict(environment),
            "memory_bytes_max": memory_bytes_max,
            "cpu_s_max": cpu_s_max,
            "grace_s": self._grace_s,
        }
        packet = json.dumps(request).encode()
        assert len(packet) <= REQUEST_BYTES_MAX, len(packet)
        control, guard_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)
        with guard_end:
            try:
                await self._send(packet, [guard_end.fileno(), *descriptors])
            except BaseException:
                control.close()
                raise
        return GuardedProcess(control, self._grace_s)

    async def aclose(self) -> None:
        """Kill all that was started and is still there, and end the spawner. Not cut short by cancellation."""
        # Taken first: while this waits, another task may start the next spawner, which is not ours to forget.
        requests, self._requests = self._requests, None
        spawner, self._spawner = self._spawner, None
        if requests is not None:
            trio.lowlevel.notify_closing(requests)
            requests.close()
        if spawner is not None:
            await _wait_for_exit(spawner, KILL_PATIENCE_S + REPORT_MARGIN_S)

    async def _send(self, packet: bytes, descriptors: list[int]) -> None:
        attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        while True:
            requests = self._requests or self._start_spawner()
            try:
                requests.sendmsg([packet], attached)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(requests)
            except trio.ClosedResourceError:
                continue  # another task met the same dead spawner first
            except (BrokenPipeError, ConnectionResetError):
                # Somebody killed the spawner; its guards have ended their trees, and the next round starts a new one.
                if requests is self._requests:
                    await self.aclose()

    def _start_spawner(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._spawner = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
                [
                    *python_command("node.agents.spawner", "int(sys.argv[2])", flags=("-I", "-S", "-X", "utf8")),
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for the node, which ends its agents in its own way
                # The node's own settings are nobody else's business, and must not be mistaken for a job's.
                env={name: value for name, value in os.environ.items() if not name.startswith("RELAYMESH_")},
            )
        ours.setblocking(False)
        self._requests = ours
        return ours


async def _wait_for_exit(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Wait until a process whose end has been asked for is gone; kill it when that takes too long."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + patience_s):
        descriptor = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
    if process.poll() is None:
        process.kill()
        process.wait()

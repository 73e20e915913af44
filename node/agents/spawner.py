"""The spawner: a tiny process that forks one guard per command, and takes everything with it when the node ends.

The node talks to it over one SOCK_SEQPACKET socket: each packet is a JSON request with the guard's control socket and
the command's descriptors attached. There are no answers here; each guard has its own line to the node. The end of the
socket means that the node closed it or died, by whatever cause: then every descendant is killed. Standard library
only, one thread.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import NoReturn

from node.agents.guard import KILL_PATIENCE_S, report, run_guard
from node.agents.process_tree import become_subreaper, kill_descendants, reap

REQUEST_BYTES_MAX = 128 * 1024
DESCRIPTORS_MAX = 5
"""The control socket, stdin, stdout, stderr, and one more for a host's socket."""


def main(socket_fd: int) -> NoReturn:
    """Serve requests on an inherited socket until it ends."""
    become_subreaper()
    os.set_inheritable(socket_fd, False)
    Spawner(socket.socket(fileno=socket_fd)).serve()
    sys.exit(0)


class Spawner:
    """Forks guards and reaps them."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._guards: set[int] = set()
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        # The node decides when to stop; a signal to the whole service must not take the agents away before it did.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self) -> None:
        """Fork a guard for each request; return, with every descendant dead, when the socket has ended."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        poll.register(self._requests, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._wakeup.fileno() in ready:
                self._wakeup.recv(4096)
                reap(self._reaped)
            if self._requests.fileno() in ready and not self._serve_one():
                break
        kill_descendants(KILL_PATIENCE_S, lambda _pid, _status: None)

    def _serve_one(self) -> bool:
        """Read one request and fork its guard; False at the end of the socket."""
        packet, descriptors = _receive(self._requests)
        if not packet:
            return False
        control = socket.socket(fileno=descriptors[0])
        try:
            self._fork_guard(json.loads(packet), control, descriptors[1:])
        except OSError as error:  # out of processes or memory for the moment: this run fails, later ones may not
            report(control, error=f"cannot fork: {error.strerror}")
        control.close()
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        return True

    def _fork_guard(self, request: dict[str, object], control: socket.socket, descriptors: list[int]) -> None:
        spawner_pid = os.getpid()
        pid = os.fork()
        if pid != 0:
            self._guards.add(pid)
            return
        try:
            signal.set_wakeup_fd(-1)
            self._requests.close()  # or the node's death would not reach the spawner while a guard lives
            self._wakeup.close()
            self._wakeup_end.close()
            run_guard(request, control, descriptors, spawner_pid)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _reaped(self, pid: int, status: int) -> None:
        if pid not in self._guards:
            return
        self._guards.discard(pid)
        if status != 0:
            # Somebody killed the guard, so its command's tree is now ours to clear away.
            kill_descendants(KILL_PATIENCE_S, lambda child, _status: self._guards.discard(child), spared=self._guards)


def _receive(requests: socket.socket) -> tuple[bytes, list[int]]:
    """One packet and the descriptors that came with it, which no command inherits by accident."""
    # Not socket.recv_fds: it takes flags but does not pass them on, and MSG_CMSG_CLOEXEC is what counts here.
    received = array.array("i")
    room = socket.CMSG_LEN(DESCRIPTORS_MAX * received.itemsize)
    packet, ancillary, _, _ = requests.recvmsg(REQUEST_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
    for _, _, content in ancillary:
        received.frombytes(content)
    return packet, list(received)

"""Networks of our own for the nodes of a cluster, with a switch between them that does what netem does, and cuts.

Each node lives in a network namespace with one tun device; `packet_switch` reads and writes all of them. Namespaces
have no names: they are held by descriptors of this process, its nodes and the switch, so that the kernel takes them
away with the last of these, even after a `kill -9`. Nothing of the host's own network is touched.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from chaos.real import kernel, packet_switch
from chaos.real.packet_switch import ORDER_BYTES_MAX, Count, Figures, Lay, Lift, Order, Plan
from chaos.real.processes import source_path
from chaos.simulation.links import Conditions, Overlay
from mesh.errors import ConfigError, UnavailableError

T = TypeVar("T")

_NETWORK = "10.77.0"
_NETMASK = "255.255.255.0"
_HOSTS_MAX = 253
_DEVICE = "mesh0"
_MTU_BYTES = 1_500
_ANSWER_S = 10.0


def available() -> str | None:
    """None when a switch can be made here, else one line that says what is missing."""
    if not kernel.TUN.exists():
        return f"there is no {kernel.TUN}: the kernel's tun module is not loaded"
    try:
        _in_a_thread(lambda: _close(_new_port(1)))
    except OSError as error:
        return f"this user may not make networks and tun devices: {error}"
    return None


class TunSwitch:
    """Networks for the nodes n = 1, 2, … and the lines between them, for the time of its `with` block.

    It is a `networks.Network`, which a cluster takes its addresses from, and `lines.Lines` at once.
    """

    def __init__(self, nodes: Sequence[str], *, seed: int, base: Conditions) -> None:
        """Lines have the conditions `base`; `seed` decides the fate of packets, by their number on each line."""
        if len(nodes) > _HOSTS_MAX:
            raise ConfigError(f"a switch has room for {_HOSTS_MAX} nodes, not {len(nodes)}")
        self._nodes = list(nodes)
        self._seed, self._base = seed, base
        self._networks: dict[str, int] = {}
        self._numbers: dict[Overlay, int] = {}
        self._laid = 0

    def __enter__(self) -> Self:
        # A thread of its own enters the new networks, and ends there: all other threads stay where they are.
        ports = _in_a_thread(lambda: [_new_port(number) for number in range(1, 1 + len(self._nodes))])
        self._networks = {self.host(number): network for number, (network, _) in enumerate(ports, 1)}
        devices = [tun for _, tun in ports]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_ANSWER_S)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ORDER_BYTES_MAX)
        self._control = ours
        self._process = subprocess.Popen(
            [sys.executable, "-m", packet_switch.__name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno(), *devices],
            env=os.environ | {"PYTHONPATH": source_path()},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at our terminal is ours to handle
            preexec_fn=kernel.die_with_parent,
        )
        theirs.close()
        for device in devices:
            os.close(device)
        named = zip(self._nodes, enumerate(devices, 1), strict=True)
        self._order(
            Plan(self._seed, self._base, {node: (device, self.host(number)) for node, (number, device) in named})
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()
        self.release()

    # --- as the network of a cluster ---

    def host(self, number: int) -> str:
        """The address of the n-th node, counted from 1."""
        if not 1 <= number <= len(self._nodes):
            raise ConfigError(f"the switch was made for {len(self._nodes)} nodes")
        return f"{_NETWORK}.{number}"

    def enter(self, host: str) -> Callable[[], None]:
        """What moves a starting node into its own network."""
        return kernel.enter_network(self._networks[host])

    def release(self) -> None:
        """Let go of the networks; they are gone when nobody else is in them."""
        while self._networks:
            os.close(self._networks.popitem()[1])

    # --- as lines ---

    def lay(self, overlay: Overlay) -> None:
        """Begin a change; it holds when this returns."""
        self._laid += 1
        self._numbers[overlay] = self._laid
        self._order(Lay(self._laid, overlay))

    def lift(self, overlay: Overlay) -> None:
        """End a change; a no-op when it ended already."""
        number = self._numbers.pop(overlay, None)
        if number is not None:
            self._order(Lift(number))

    def figures(self) -> Mapping[str, int]:
        """Packets so far, by what became of them."""
        counted = self._order(Count())
        return {
            "packetsSent": counted.sent,
            "packetsArrived": counted.arrived,
            "packetsBlocked": counted.blocked,
            "packetsLost": counted.lost,
        }

    def _order(self, order: Order) -> Figures:
        try:
            self._control.send(msgspec.msgpack.encode(order))
            answer = self._control.recv(ORDER_BYTES_MAX)
        except OSError as error:
            raise UnavailableError(f"the packet switch does not answer: {error}") from error
        if not answer:
            raise UnavailableError("the packet switch has ended by itself")
        return msgspec.msgpack.decode(answer, type=Figures)


def _new_port(number: int) -> tuple[int, int]:
    """Descriptors of a new network, which the calling thread is in from then on, and of the tun device in it."""
    network = kernel.new_network()
    try:
        tun = kernel.open_tun(_DEVICE)
    except OSError:
        os.close(network)
        raise
    kernel.set_up("lo")
    kernel.set_address(_DEVICE, f"{_NETWORK}.{number}", _NETMASK, _MTU_BYTES)
    return network, tun


def _close(port: tuple[int, int]) -> None:
    for descriptor in port:
        os.close(descriptor)


def _in_a_thread(work: Callable[[], T]) -> T:
    """Do something to a thread that ends with it."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(work).result()

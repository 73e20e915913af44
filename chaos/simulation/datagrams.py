"""UDP between simulated hosts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from chaos.simulation.event_heap import EventHeap
from chaos.simulation.fingerprint import Fingerprint
from chaos.simulation.links import Links
from chaos.simulation.process import Process
from mesh.errors import ConfigError
from mesh.ids import Address

RECEIVE_BUFFER_DATAGRAMS = 4_096
"""What a stopped process's kernel keeps for it. What comes then is dropped."""

HOST_SUFFIX = ".sim"


def host_of(address: Address) -> str:
    """The simulated host at an address."""
    return address.host.removesuffix(HOST_SUFFIX)


class DatagramNetwork:
    """All bound UDP ports, and the packets on their way."""

    def __init__(self, heap: EventHeap, links: Links, fingerprint: Fingerprint) -> None:
        self._heap = heap
        self._links = links
        self._fingerprint = fingerprint
        self._ports: dict[Address, SimulatedSocket] = {}
        self.delivered = 0
        self.tap: Callable[[bytes, Address, Address], None] | None = None
        """Sees every packet as it is sent: an attacker on the line."""

    def bind(self, address: Address, process: Process) -> SimulatedSocket:
        """A socket for a process; ConfigError when the port is taken."""
        if address in self._ports:
            raise ConfigError(f"{address} is already in use")
        found = self._ports[address] = SimulatedSocket(self, address, process)
        return found

    def unbind(self, address: Address) -> None:
        """Close a port, whoever held it."""
        self._ports.pop(address, None)

    def send(self, data: bytes, source: Address, target: Address) -> None:
        """Put a packet on the line from one address to another. May be called by an attacker with a false source."""
        self._fingerprint.note("datagram", data)
        if self.tap is not None:
            self.tap(data, source, target)
        pair = host_of(source), host_of(target)
        for arrival in self._links.arrivals(pair, len(data), self._heap.now):
            copy = data if arrival.mutated is None else flipped(data, arrival.mutated)
            self._heap.at(arrival.at, lambda copy=copy: self._arrive(pair, copy, source, target))  # type: ignore[misc]

    def _arrive(self, pair: tuple[str, str], data: bytes, source: Address, target: Address) -> None:
        if self._links.held(pair, lambda: self._deliver(data, source, target)):
            return
        self._deliver(data, source, target)

    def _deliver(self, data: bytes, source: Address, target: Address) -> None:
        socket = self._ports.get(target)
        if socket is not None:
            self.delivered += 1
            socket.arrive(data, source)


class SimulatedSocket:
    """`node.env.DatagramSocket`."""

    def __init__(self, network: DatagramNetwork, address: Address, process: Process) -> None:
        self._network = network
        self._address = address
        self._process = process
        self._inbox: deque[tuple[bytes, Address]] = deque()
        self._arrived = trio.Event()
        self.dropped = 0

    @property
    def address(self) -> Address:
        """The address it is bound to."""
        return self._address

    async def wait_readable(self) -> None:
        """Return when `receive_nowait` may have something."""
        self._process.check()
        while not self._inbox:
            self._arrived = trio.Event()
            await self._process.live(self._arrived.wait)

    def receive_nowait(self) -> tuple[bytes, Address] | None:
        """The next datagram, or None when there is none now."""
        self._process.check()
        return self._inbox.popleft() if self._inbox else None

    def send(self, data: bytes, address: Address) -> bool:
        """Hand one datagram to the network; one that is too long for a real network is a fault of the node's."""
        self._process.check()
        assert len(data) <= 1_200, len(data)
        self._network.send(data, self._address, address)
        return True

    def arrive(self, data: bytes, source: Address) -> None:
        """Called by the network."""
        if len(self._inbox) >= RECEIVE_BUFFER_DATAGRAMS:
            self.dropped += 1
            return
        self._inbox.append((data, source))
        self._arrived.set()

    def close(self) -> None:
        """Release the port."""
        self._network.unbind(self._address)


def flipped(data: bytes, where: float) -> bytes:
    """A copy with one bit changed, at this share of its length; an empty packet has none to change."""
    if not data:
        return data
    bit = int(where * len(data) * 8)
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)

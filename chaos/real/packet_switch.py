"""The process behind `tun_switch`: it carries every packet between nodes, and treats it as the lines are told to.

It holds one tun device in each node's network. A packet that a node sends is read there, its fate is drawn by
`chaos.simulation.links`, the very code that the simulated network runs on, and each copy that arrives is written to the
receiver's device at its time. It is a process of its own so that nothing else makes packets wait. It ends with the
socket over which it gets its orders, so with the process that started it.
"""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import sys
import time
from collections.abc import Callable
from os import read, write
from typing import Final

import msgspec

from chaos.simulation.links import Conditions, Links, Overlay

PACKET_BYTES_MAX: Final = 2_048
ORDER_BYTES_MAX: Final = 1 << 20
_BURST = 64  # packets read from one device before others get their turn
_IPV4 = 4
_PROTOCOL = 9  # where an IPv4 header names what it carries
_TCP, _UDP = 6, 17
_CHECKSUM_AT = {_TCP: 16, _UDP: 6}
_SOURCE, _DESTINATION = slice(12, 16), slice(16, 20)


class Plan(msgspec.Struct, frozen=True, tag=True):
    """The first order: which devices there are, and what their lines are like."""

    seed: int
    base: Conditions
    devices: dict[str, tuple[int, str]]
    """By node: the descriptor of its tun device, and its address."""


class Lay(msgspec.Struct, frozen=True, tag=True):
    """Begin a change. Orders name it by its number."""

    number: int
    overlay: Overlay


class Lift(msgspec.Struct, frozen=True, tag=True):
    """End a change; a number that is not laid is harmless."""

    number: int


class Count(msgspec.Struct, frozen=True, tag=True):
    """Only tell the figures."""


Order = Plan | Lay | Lift | Count


class Figures(msgspec.Struct, frozen=True):
    """The answer to every order: packets so far."""

    sent: int
    arrived: int
    """Copies, so possibly more than were sent."""
    blocked: int
    lost: int
    """By chance; what a cut took is not counted here."""
    refused: int
    """Neither IPv4 nor for a node, or not taken by the receiver's device: its queue was full, or its node gone."""


class PacketSwitch:
    """Carries packets between devices. `read_packet` and `write_packet` raise OSError when they cannot now."""

    def __init__(
        self,
        plan: Plan,
        *,
        now: Callable[[], float] = time.monotonic,
        read_packet: Callable[[int, int], bytes] = read,
        write_packet: Callable[[int, bytes], int] = write,
    ) -> None:
        self._links = Links(plan.seed, plan.base)
        self._now = now
        self._read, self._write = read_packet, write_packet
        self._node_of = {descriptor: node for node, (descriptor, _) in plan.devices.items()}
        self._by_address = {
            socket.inet_aton(address): (node, descriptor) for node, (descriptor, address) in plan.devices.items()
        }
        self._laid: dict[int, Overlay] = {}
        self._on_the_way: list[tuple[float, int, tuple[str, str], int, bytes]] = []
        self._numbers = itertools.count()
        self._sent = self._arrived = self._blocked = self._lost = self._refused = 0

    @property
    def descriptors(self) -> list[int]:
        """Devices to watch."""
        return list(self._node_of)

    def obey(self, order: Order) -> Figures:
        """Carry out one order."""
        match order:
            case Lay(number, overlay):
                self._laid[number] = overlay
                self._links.lay(overlay)
            case Lift(number) if number in self._laid:
                self._links.lift(self._laid.pop(number))
            case _:
                pass
        return Figures(self._sent, self._arrived, self._blocked, self._lost, self._refused)

    def take(self, descriptor: int) -> None:
        """Read what a node sent and decide what becomes of it."""
        for _ in range(_BURST):
            try:
                packet = self._read(descriptor, PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            self._accept(self._node_of[descriptor], packet)

    def deliver(self) -> float | None:
        """Hand over everything that is due; seconds until the next is, None when nothing is on the way."""
        now = self._now()
        while self._on_the_way and self._on_the_way[0][0] <= now:
            _, _, pair, descriptor, packet = heapq.heappop(self._on_the_way)
            if not self._links.held(pair, lambda d=descriptor, p=packet: self._arrive(d, p)):  # type: ignore[misc]
                self._arrive(descriptor, packet)
        return max(0.0, self._on_the_way[0][0] - now) if self._on_the_way else None

    def _accept(self, source: str, packet: bytes) -> None:
        receiver = self._by_address.get(packet[_DESTINATION]) if packet[0] >> 4 == _IPV4 else None
        if receiver is None:
            self._refused += 1  # the kernel looks for IPv6 routers by itself
            return
        destination, descriptor = receiver
        pair = (source, destination)
        now = self._now()
        self._sent += 1
        arrivals = self._links.arrivals(pair, len(packet), now)
        if not arrivals:
            if self._links.conditions(pair).blocked:
                self._blocked += 1
            else:
                self._lost += 1
        for arrival in arrivals:
            copy = packet if arrival.mutated is None else mutated(packet, arrival.mutated)
            heapq.heappush(self._on_the_way, (arrival.at, next(self._numbers), pair, descriptor, copy))

    def _arrive(self, descriptor: int, packet: bytes) -> None:
        try:
            self._write(descriptor, packet)
        except OSError:
            self._refused += 1
        else:
            self._arrived += 1


def mutated(packet: bytes, where: float) -> bytes:
    """An IPv4 packet with one bit of its payload flipped, `where` from 0 to 1, behind a checksum that is right again.

    Kernels drop what has a wrong one, but one error in 65,536 has a right one. What carries nothing stays as it is.
    """
    segment_at, protocol = (packet[0] & 15) * 4, packet[_PROTOCOL]
    if protocol not in _CHECKSUM_AT:
        return packet
    payload_at = segment_at + (8 if protocol == _UDP else (packet[segment_at + 12] >> 4) * 4)
    bits = (len(packet) - payload_at) * 8
    if bits <= 0:
        return packet
    changed = bytearray(packet)
    bit = int(where * bits)
    byte_at = payload_at + bit // 8
    changed[byte_at] ^= 1 << bit % 8
    # RFC 1624: the checksum follows from the old one and the one word that changed.
    word = slice(byte_at - (byte_at - segment_at) % 2, byte_at - (byte_at - segment_at) % 2 + 2)
    checksum = slice(segment_at + _CHECKSUM_AT[protocol], segment_at + _CHECKSUM_AT[protocol] + 2)
    total = (0xFFFF ^ _word(packet[checksum])) + (0xFFFF ^ _word(packet[word])) + _word(changed[word])
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    changed[checksum] = (0xFFFF ^ total).to_bytes(2, "big")
    return bytes(changed)


def _word(octets: bytes | bytearray) -> int:
    return int.from_bytes(octets.ljust(2, b"\0"), "big")


def serve(control: socket.socket) -> None:
    """Carry packets until the other end of `control`, which keeps message boundaries, is closed."""
    orders = msgspec.msgpack.Decoder(Order)
    answers = msgspec.msgpack.Encoder()
    plan = orders.decode(control.recv(ORDER_BYTES_MAX))
    assert isinstance(plan, Plan), plan
    switch = PacketSwitch(plan)
    control.send(answers.encode(switch.obey(Count())))
    watched = [control.fileno(), *switch.descriptors]
    while True:
        # Not epoll, which counts whole milliseconds: lines are faster than that.
        readable, _, _ = select.select(watched, [], [], switch.deliver())
        for descriptor in readable:
            if descriptor != control.fileno():
                switch.take(descriptor)
                continue
            order = control.recv(ORDER_BYTES_MAX)
            if not order:
                return
            control.send(answers.encode(switch.obey(orders.decode(order))))


def main() -> None:
    """Serve on the inherited socket that the command line names by its descriptor."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        serve(control)


if __name__ == "__main__":
    main()

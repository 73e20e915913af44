"""The switch itself, on packets and a clock that the test makes."""

import socket
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.real.packet_switch import Count, Figures, Lay, Lift, PacketSwitch, Plan, mutated, serve
from chaos.simulation.links import Conditions, Overlay, towards

ADDRESSES = {"n0": "10.77.0.1", "n1": "10.77.0.2"}
DEVICES = {"n0": (10, ADDRESSES["n0"]), "n1": (11, ADDRESSES["n1"])}


def packet(source, destination, payload=b"", version=4):
    header = bytes([version << 4 | 5]) + bytes(11) + socket.inet_aton(source) + socket.inet_aton(destination)
    return header + payload


class Wires:
    """What nodes sent and have not been read of, and what arrived where."""

    def __init__(self, base) -> None:
        self.now = 100.0
        self.sent = {10: [], 11: []}
        self.arrived = {10: [], 11: []}
        self.full = False
        self.switch = PacketSwitch(
            Plan(1, base, DEVICES), now=lambda: self.now, read_packet=self.read, write_packet=self.write
        )

    def read(self, descriptor, size):
        if not self.sent[descriptor]:
            raise BlockingIOError
        return self.sent[descriptor].pop(0)[:size]

    def write(self, descriptor, data):
        if self.full:
            raise BlockingIOError
        self.arrived[descriptor].append(data)
        return len(data)

    def send(self, *packets, descriptor=10):
        self.sent[descriptor] += packets
        self.switch.take(descriptor)

    def figures(self):
        return self.switch.obey(Count())


TO_N1 = packet(ADDRESSES["n0"], ADDRESSES["n1"], b"payload")


def test_a_packet_arrives_at_its_time_and_not_before():
    wires = Wires(Conditions(delay_min_s=2.0, delay_mean_s=2.0))
    wires.send(TO_N1)
    assert wires.switch.deliver() == pytest.approx(2.0)
    wires.now += 1.5
    assert wires.switch.deliver() == pytest.approx(0.5)
    assert wires.arrived[11] == []
    wires.now += 0.6
    assert wires.switch.deliver() is None
    assert wires.arrived == {10: [], 11: [TO_N1]}


def test_what_is_not_for_a_node_goes_nowhere():
    wires = Wires(Conditions())
    wires.send(packet(ADDRESSES["n0"], "10.77.0.9"), packet(ADDRESSES["n0"], ADDRESSES["n1"], version=6))
    assert wires.switch.deliver() is None
    assert wires.figures() == Figures(sent=0, arrived=0, blocked=0, lost=0, refused=2)


def test_a_device_that_takes_no_more_loses_packets_as_a_full_queue_does():
    wires = Wires(Conditions(delay_min_s=0, delay_mean_s=0))
    wires.full = True
    wires.send(TO_N1)
    wires.switch.deliver()
    assert wires.figures() == Figures(sent=1, arrived=0, blocked=0, lost=0, refused=1)


def test_cuts_and_losses_are_counted_apart():
    wires = Wires(Conditions(loss=1.0))
    wires.send(TO_N1)
    wires.switch.obey(Lay(7, Overlay(pairs=towards(["n0"], ["n1"]), blocked=True)))
    wires.send(TO_N1, TO_N1)
    assert (wires.figures().lost, wires.figures().blocked) == (1, 2)


def test_a_clog_holds_packets_until_it_is_lifted_by_its_number():
    wires = Wires(Conditions(delay_min_s=0, delay_mean_s=0))
    wires.switch.obey(Lay(3, Overlay(pairs=None, clogged=True)))
    wires.send(TO_N1)
    wires.switch.deliver()
    wires.switch.obey(Lift(4))
    assert wires.arrived[11] == []
    wires.switch.obey(Lift(3))
    assert wires.arrived[11] == [TO_N1]


@pytest.mark.parametrize("protocol", [6, 17, 1])
def test_what_carries_nothing_cannot_be_mutated(protocol):
    empty = bytearray(packet(ADDRESSES["n0"], ADDRESSES["n1"], bytes(8 if protocol == 17 else 20)))
    empty[9] = protocol
    if protocol == 6:
        empty[32] = 5 << 4  # the length of a TCP header, in words
    assert mutated(bytes(empty), 0.5) == bytes(empty)


@given(st.binary(min_size=1, max_size=50), st.floats(0, 1, exclude_max=True), st.sampled_from([6, 17]))
def test_a_mutated_packet_differs_by_a_bit_and_its_checksum_is_right(payload, where, protocol):
    header = bytearray(8 if protocol == 17 else 20)
    if protocol == 6:
        header[12] = 5 << 4
    whole = bytearray(packet(ADDRESSES["n0"], ADDRESSES["n1"], bytes(header) + payload))
    whole[9] = protocol
    at = 20 + (6 if protocol == 17 else 16)
    whole[at : at + 2] = (0xFFFF ^ ones_sum(whole[20:])).to_bytes(2, "big")
    changed = mutated(bytes(whole), where)
    differing = [a ^ b for a, b in zip(whole[20 + len(header) :], changed[20 + len(header) :], strict=True)]
    assert sum(octet.bit_count() for octet in differing) == 1
    assert ones_sum(changed[20:]) in (0, 0xFFFF)  # both are zero, and all zeros sum up to the other one


def ones_sum(segment):
    """The sum that a receiver makes: all ones when the checksum is right (but for the pseudo-header, which stays)."""
    padded = bytes(segment) + bytes(len(segment) % 2)
    total = sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_nobody_waits_for_one_who_sends_without_end():
    wires = Wires(Conditions(delay_min_s=0, delay_mean_s=0))
    wires.sent[10] = [TO_N1] * 1_000
    wires.switch.take(10)
    assert 0 < wires.figures().sent < 1_000


def test_it_serves_until_its_socket_is_closed():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served = threading.Thread(target=serve, args=(theirs,))
    served.start()
    with ours, theirs:
        ours.settimeout(2)
        for order in (Plan(1, Conditions(), {}), Lay(1, Overlay(pairs=None, bandwidth_bytes_s=float("inf"))), Count()):
            ours.send(msgspec.msgpack.encode(order))
            assert msgspec.msgpack.decode(ours.recv(1_000), type=Figures).sent == 0
        ours.shutdown(socket.SHUT_RDWR)
        served.join(2)
        assert not served.is_alive()

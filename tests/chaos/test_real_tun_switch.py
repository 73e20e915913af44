"""Packets between networks of our own, through a real switch process. Skipped where there is no right to make them."""

import gc
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chaos.real import tun_switch
from chaos.real.processes import source_path, wait_until
from chaos.real.tun_switch import TunSwitch
from chaos.simulation.links import Conditions, Overlay, between, towards
from mesh.errors import ConfigError, UnavailableError

REASON = tun_switch.available()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no networks of our own: {REASON}")

NODES = ["n0", "n1", "n2"]
PORT = 7_000
FAST = Conditions(delay_min_s=0.0, delay_mean_s=0.0)


def socket_in(switch: TunSwitch, number: int, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    host = switch.host(number)

    def opened() -> socket.socket:
        switch.enter(host)()
        return socket.socket(socket.AF_INET, kind)

    with ThreadPoolExecutor(1) as thread:  # a socket stays in the network where it was made
        return thread.submit(opened).result()


class Mesh:
    def __init__(self, switch: TunSwitch) -> None:
        self.switch = switch
        self.sockets = [socket_in(switch, number) for number in range(1, 1 + len(NODES))]
        for number, each in enumerate(self.sockets, 1):
            each.bind((switch.host(number), PORT))
            each.settimeout(0.1)

    def send(self, source: int, destination: int, data: bytes) -> None:
        self.sockets[source].sendto(data, self.sockets[destination].getsockname())

    def arrives(self, source: int, destination: int) -> bool:
        data = os.urandom(8)
        self.send(source, destination, data)
        try:
            return self.sockets[destination].recv(100) == data
        except TimeoutError:
            return False

    def received(self, destination: int) -> list[bytes]:
        """All that arrives until nothing more does."""
        found = []
        while True:
            try:
                found.append(self.sockets[destination].recv(100))
            except TimeoutError:
                return found

    def close(self) -> None:
        for each in self.sockets:
            each.close()


@pytest.fixture
def mesh():
    with TunSwitch(NODES, seed=1, base=FAST) as switch:
        mesh = Mesh(switch)
        yield mesh
        mesh.close()


def test_every_node_reaches_every_other_from_an_address_of_its_own(mesh):
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    assert all(mesh.arrives(a, b) for a, b in pairs)
    figures = mesh.switch.figures()
    assert figures["packetsSent"] == figures["packetsArrived"] == len(pairs)


def test_a_partition_stops_both_directions_until_it_is_lifted(mesh):
    cut = Overlay(pairs=between(["n0"], ["n1", "n2"]), blocked=True)
    mesh.switch.lay(cut)
    assert not mesh.arrives(0, 1)
    assert not mesh.arrives(2, 0)
    assert mesh.arrives(1, 2)
    assert mesh.switch.figures()["packetsBlocked"] == 2
    mesh.switch.lift(cut)
    mesh.switch.lift(cut)
    assert mesh.arrives(0, 1)


def test_one_way_leaves_the_way_back_open(mesh):
    mesh.switch.lay(Overlay(pairs=towards(["n0"], ["n1"]), blocked=True))
    assert not mesh.arrives(0, 1)
    assert mesh.arrives(1, 0)


def test_delay_is_added_to_every_packet_of_its_lines(mesh):
    mesh.switch.lay(Overlay(pairs=towards(["n0"], ["n1"]), delay_s=0.05))

    def took_s(source: int, destination: int) -> float:
        began = time.monotonic()
        assert mesh.arrives(source, destination)
        return time.monotonic() - began

    assert min(took_s(0, 1) for _ in range(5)) >= 0.05
    assert statistics.median(took_s(1, 0) for _ in range(5)) < 0.03


def test_loss_takes_its_share_and_the_seed_decides_which(mesh):
    mesh.switch.lay(Overlay(pairs=None, loss=0.3))
    for number in range(200):
        mesh.send(0, 1, bytes([number]))
        if number % 20 == 0:
            time.sleep(0.005)  # a device has a queue of 500 packets, a socket one of its own
    arrived = mesh.received(1)
    assert 110 <= len(arrived) <= 170
    figures = mesh.switch.figures()
    assert figures["packetsLost"] == 200 - len(arrived)


def test_copies_arrive_twice_and_reordered_packets_late(mesh):
    twice = Overlay(pairs=None, duplicate=1.0)
    mesh.switch.lay(twice)
    mesh.send(0, 1, b"x")
    assert mesh.received(1) == [b"x", b"x"]
    mesh.switch.lift(twice)
    mesh.switch.lay(Overlay(pairs=None, reorder=0.3, jitter_s=0.01))
    for number in range(40):
        mesh.send(0, 1, bytes([number]))
    arrived = mesh.received(1)
    assert sorted(arrived) == [bytes([number]) for number in range(40)] != arrived


def test_a_flipped_bit_gets_past_the_kernel_to_the_program(mesh):
    mesh.switch.lay(Overlay(pairs=None, mutate=1.0))
    for size in (8, 9):
        mesh.send(0, 1, bytes(size))
        (data,) = mesh.received(1)
        assert sum(octet.bit_count() for octet in data) == 1
        assert len(data) == size


def test_a_flipped_bit_of_a_stream_gets_past_the_kernel_too(mesh):
    stream = socket.SOCK_STREAM
    with socket_in(mesh.switch, 2, stream) as listener, socket_in(mesh.switch, 1, stream) as ours:
        listener.bind((mesh.switch.host(2), PORT))
        listener.listen()
        ours.settimeout(2)
        ours.connect(listener.getsockname())
        mesh.switch.lay(Overlay(pairs=None, mutate=1.0))
        theirs, _ = listener.accept()
        with theirs:
            theirs.settimeout(2)
            ours.sendall(bytes(101))
            assert sum(octet.bit_count() for octet in theirs.recv(200)) == 1


def test_a_clog_holds_everything_until_it_ends(mesh):
    clog = Overlay(pairs=towards(["n0"], ["n1"]), clogged=True)
    mesh.switch.lay(clog)
    mesh.send(0, 1, b"held")
    assert mesh.received(1) == []
    mesh.switch.lift(clog)
    assert mesh.received(1) == [b"held"]


def test_a_narrow_line_sends_one_packet_after_the_other(mesh):
    mesh.switch.lay(Overlay(pairs=None, bandwidth_bytes_s=10_000))
    began = time.monotonic()
    for _ in range(10):
        mesh.send(0, 1, bytes(100 - 28))  # with the headers of IP and UDP: 10 ms each
    for _ in range(10):
        mesh.sockets[1].recv(100)
    assert 0.095 <= time.monotonic() - began < 0.3


def test_streams_pass_and_survive_loss(mesh):
    mesh.switch.lay(Overlay(pairs=None, loss=0.05, delay_s=0.001))
    with (
        socket_in(mesh.switch, 2, socket.SOCK_STREAM) as listener,
        socket_in(mesh.switch, 1, socket.SOCK_STREAM) as ours,
    ):
        listener.bind((mesh.switch.host(2), PORT))
        listener.listen()
        ours.settimeout(10)
        ours.connect(listener.getsockname())
        theirs, (address, _) = listener.accept()
        assert address == mesh.switch.host(1)
        data = os.urandom(30_000)
        with theirs, ThreadPoolExecutor(1) as sender:
            theirs.settimeout(10)
            sender.submit(ours.sendall, data)
            got = b""
            while len(got) < len(data):
                got += theirs.recv(65_536)
        assert got == data


def test_there_is_one_network_for_each_node_and_no_more():
    with TunSwitch(["n0"], seed=1, base=FAST) as switch:
        assert switch.host(1) == "10.77.0.1"
        for number in (0, 2):
            with pytest.raises(ConfigError, match="made for 1 nodes"):
                switch.host(number)
    with pytest.raises(ConfigError, match="room for 253 nodes"):
        TunSwitch([f"n{number}" for number in range(254)], seed=1, base=FAST)


def test_a_switch_that_died_is_reported():
    with TunSwitch(["n0", "n1"], seed=1, base=FAST) as switch:
        os.kill(switch._process.pid, signal.SIGKILL)
        switch._process.wait()
        with pytest.raises(UnavailableError, match="packet switch"):
            switch.figures()


def runs(pid: str) -> bool:
    """Whether it is more than a zombie that nobody has waited for."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def test_nothing_is_left_of_a_killed_process():
    code = (
        "import os; from chaos.real.tun_switch import TunSwitch; from chaos.simulation.links import Conditions; "
        "switch = TunSwitch(['n0', 'n1'], seed=1, base=Conditions()).__enter__(); "
        "print(switch._process.pid, *[os.fstat(fd).st_ino for fd in switch._networks.values()], flush=True); "
        "os.kill(os.getpid(), 9)"
    )
    died = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": source_path()}
    )
    assert died.returncode == -signal.SIGKILL
    switch_pid, *networks = died.stdout.split()
    wait_until(lambda: not runs(switch_pid), 2, "the switch has ended")
    held = {os.stat(link).st_ino for link in Path("/proc").glob("[0-9]*/ns/net") if link.exists()}
    assert len(networks) == 2
    assert not held & {int(network) for network in networks}


def test_descriptors_are_given_back():
    def open_descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = open_descriptors()
    with TunSwitch(NODES, seed=1, base=FAST):
        assert open_descriptors() > before
    assert open_descriptors() == before

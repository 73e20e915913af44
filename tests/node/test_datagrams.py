"""UDP sockets: nothing the network does raises, and a busy port is explained."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from mesh.errors import ConfigError
from mesh.ids import Address
from node import datagrams
from node.datagrams import UdpSocket, bind_udp

ANY_PORT = Address("127.0.0.2", 0)


async def received(sock: UdpSocket) -> tuple[bytes, Address]:
    with trio.fail_after(5):
        while (packet := sock.receive_nowait()) is None:
            await sock.wait_readable()
    return packet


@pytest.fixture
async def pair():
    a, b = await bind_udp(ANY_PORT), await bind_udp(ANY_PORT)
    yield a, b
    a.close()
    b.close()


async def test_datagrams_arrive_with_their_source(pair):
    a, b = pair
    for data in (b"", b"x", bytes(1200)):
        assert a.send(data, b.address)
        assert await received(b) == (data, a.address)
    assert b.receive_nowait() is None
    assert a.send_refused == 0


async def test_the_receive_buffer_is_large_and_its_size_is_known(pair):
    _a, b = pair
    allowed = int(Path("/proc/sys/net/core/rmem_max").read_bytes())  # noqa: ASYNC240 - no disk is behind it
    assert b.receive_buffer_bytes == min(datagrams.RECEIVE_BUFFER_BYTES, allowed)


async def test_an_oversized_datagram_is_seen_to_be_too_long(pair):
    a, b = pair
    a.send(bytes(1201), b.address)
    a.send(bytes(60_000), b.address)
    assert len((await received(b))[0]) == 1201
    assert len((await received(b))[0]) > 1200


async def test_sending_to_nobody_never_raises_and_hides_no_datagram(pair):
    a, b = pair
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.2", 0))
        nobody = Address(*closed.getsockname())
    for _ in range(20):
        a.send(b"into the void", nobody)
    b.send(b"real", a.address)
    assert await received(a) == (b"real", b.address)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOBUFS, errno.ENETUNREACH, errno.ECONNREFUSED, errno.EAGAIN])
async def test_what_the_network_refuses_is_counted(pair, number):
    a, b = pair

    class Refusing:
        def sendto(self, data, address):
            raise OSError(number, "refused")

    real, a._socket = a._socket, Refusing()
    assert a.send(b"x", b.address) is False
    a._socket = real
    assert a.send_refused == 1
    assert a.send(b"x", b.address)


async def test_errors_of_earlier_sends_hide_no_datagram_and_no_loop(pair):
    a, _b = pair

    class Erring:
        def __init__(self, errors):
            self.errors = errors

        def recvfrom(self, size):
            self.errors -= 1
            if self.errors >= 0:
                raise ConnectionRefusedError
            return b"behind", ("127.0.0.9", 9)

    real = a._socket
    a._socket = Erring(datagrams._RECEIVE_ERRORS_MAX - 1)
    assert a.receive_nowait() == (b"behind", Address("127.0.0.9", 9))
    a._socket = Erring(datagrams._RECEIVE_ERRORS_MAX)
    assert a.receive_nowait() is None
    assert a.receive_nowait() == (b"behind", Address("127.0.0.9", 9))
    a._socket = real


async def test_an_address_of_another_family_or_network_is_refused_quietly(pair):
    a, _b = pair
    assert a.send(b"x", Address("::1", 9)) is False
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert a.send_refused == 1


async def test_a_host_that_is_no_text_for_the_system_is_a_lost_datagram(pair):
    one, _ = pair
    assert one.send(b"hello", Address("a\0b", 17_888)) is False


async def test_a_taken_port_and_a_foreign_address_say_what_to_do(pair):
    a, _b = pair
    with pytest.raises(ConfigError, match=rf"{a.address} is already in use: .*another port"):
        await bind_udp(a.address)
    with pytest.raises(ConfigError, match="no address of this host"):
        await bind_udp(Address("192.0.2.1", 17888))
    with pytest.raises(ConfigError, match="cannot listen on"):
        await bind_udp(Address("no-such-host.invalid", 17888))


async def test_a_host_name_is_resolved_beside_the_sending(pair, monkeypatch):
    a, b = pair
    asked = []

    async def getaddrinfo(host, port, **options):
        asked.append(host)
        await trio.lowlevel.checkpoint()
        if host == "gone":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.2", 0))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    seed = Address("seed.example", b.address.port)
    assert a.send(b"too early", seed) is False
    assert a.send(b"too early", seed) is False
    assert a.send(b"x", Address("gone", 1)) is False
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert a.send(b"hello", seed)
    assert await received(b) == (b"hello", a.address)
    assert a.send(b"x", Address("gone", 1)) is False
    assert sorted(asked) == ["gone", "seed.example"]


async def test_names_are_asked_again_when_old_and_forgotten_when_many(monkeypatch, autojump_clock):
    asked = []

    async def getaddrinfo(host, port, **options):
        await trio.lowlevel.checkpoint()
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (f"127.0.0.{len(asked)}", 0))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    names = datagrams._Names(socket.AF_INET)
    assert names.numeric("seed") is None
    await trio.sleep(29)
    assert names.numeric("seed") == "127.0.0.1"
    await trio.sleep(2)
    assert names.numeric("seed") == "127.0.0.1"  # the old answer serves until the new one is there
    await trio.sleep(1)
    assert names.numeric("seed") == "127.0.0.2"
    await trio.sleep(1)
    for number in range(datagrams._NAMES_MAX):
        names.numeric(f"host-{number}")
    await trio.sleep(1)
    assert len(names._asked_at) == datagrams._NAMES_MAX
    assert names.numeric("host-0") is not None
    assert names.numeric("seed") is None


async def test_an_answer_about_a_name_that_lost_its_place_is_not_kept(monkeypatch, autojump_clock):
    async def getaddrinfo(host, port, **options):
        await trio.sleep(5)
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    names = datagrams._Names(socket.AF_INET)
    for number in range(3 * datagrams._NAMES_MAX):
        names.numeric(f"host-{number}")
    await trio.sleep(6)
    assert len(names._numeric) == datagrams._NAMES_MAX

"""Cuts on real loopback sockets. Skipped where the firewall may not be changed."""

import os
import socket
import subprocess
import sys

import pytest

from chaos.real import firewall
from chaos.real.firewall import Firewall, sweep
from mesh.errors import ConfigError

pytestmark = pytest.mark.skipif(firewall.available() is not None, reason=f"no firewall cuts: {firewall.available()}")

WEST, EAST, NORTH = "127.9.17.1", "127.9.17.2", "127.9.17.3"


@pytest.fixture
def walls():
    with Firewall() as walls:
        yield walls


@pytest.fixture
def sockets():
    opened = {}
    for host in (WEST, EAST, NORTH):
        opened[host] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened[host].bind((host, 0))
        opened[host].settimeout(0.15)
    yield opened
    for sock in opened.values():
        sock.close()


def arrives(sockets, source: str, destination: str) -> bool:
    text = os.urandom(8)
    sockets[source].sendto(text, sockets[destination].getsockname())
    try:
        return sockets[destination].recv(100) == text
    except TimeoutError:
        return False


def tables() -> str:
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout


def test_a_cut_stops_both_directions_counts_them_and_lets_nothing_cross(walls, sockets):
    with walls.cut([WEST], [EAST]) as cut:
        assert not arrives(sockets, WEST, EAST)
        assert not arrives(sockets, EAST, WEST)
        assert cut.blocked().packets == 2
        assert cut.blocked().octets == 2 * (8 + 28)  # eight bytes behind the IP and UDP headers
        assert cut.crossed().octets == 0


def test_others_are_not_touched_by_a_cut(walls, sockets):
    with walls.cut([WEST], [EAST]) as cut:
        assert arrives(sockets, WEST, NORTH)
        assert arrives(sockets, NORTH, EAST)
        assert cut.blocked().packets == 0


def test_a_group_is_cut_off_from_a_group(walls, sockets):
    with walls.cut([WEST], [EAST, NORTH]):
        assert not arrives(sockets, WEST, NORTH)
        assert not arrives(sockets, EAST, WEST)
        assert arrives(sockets, EAST, NORTH)


def test_a_one_way_cut_leaves_the_way_back_open(walls, sockets):
    with walls.cut([WEST], [EAST], one_way=True) as cut:
        assert not arrives(sockets, WEST, EAST)
        assert arrives(sockets, EAST, WEST)
        assert cut.blocked().packets == 1


def test_after_healing_packets_pass_and_the_counters_keep_their_values(walls, sockets):
    cut = walls.cut([WEST], [EAST])
    assert not arrives(sockets, WEST, EAST)
    cut.heal()
    cut.heal()
    assert arrives(sockets, WEST, EAST)
    assert cut.blocked().packets == 1
    assert cut.crossed().octets == 0


def test_a_leak_would_be_seen(walls, sockets):
    """The counter of what crossed is alive: with the dropping rule taken away, it counts."""
    cut = walls.cut([WEST], [EAST])
    subprocess.run(["nft", "flush", "chain", "inet", walls.table, "cut_1"], check=True)
    assert arrives(sockets, WEST, EAST)
    assert cut.crossed().packets == 1


def test_an_open_connection_is_cut(walls):
    with socket.create_server((EAST, 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server, walls.cut([EAST], [client.getsockname()[0], WEST]) as cut:
            client.sendall(b"lost for now")
            server.settimeout(0.15)
            with pytest.raises(TimeoutError):
                server.recv(100)
            assert cut.crossed().octets == 0


def test_two_cuts_are_healed_apart(walls, sockets):
    with walls.cut([WEST], [NORTH]):
        with walls.cut([WEST], [EAST]):
            assert not arrives(sockets, WEST, EAST)
        assert arrives(sockets, WEST, EAST)
        assert not arrives(sockets, WEST, NORTH)


def test_a_leaky_cut_drops_its_share_of_packets(walls, sockets):
    leaky = walls.drop([(WEST, EAST)], share=0.5)
    for _ in range(200):
        sockets[WEST].sendto(b"x", sockets[EAST].getsockname())
    assert 60 <= leaky.blocked().packets <= 140
    assert leaky.blocked().packets + leaky.crossed().packets == 200
    leaky.heal()
    assert arrives(sockets, EAST, WEST)


def test_each_pair_is_dropped_in_its_own_direction(walls, sockets):
    with walls.drop([(WEST, EAST), (EAST, NORTH), (WEST, EAST)]):
        assert not arrives(sockets, WEST, EAST)
        assert arrives(sockets, EAST, WEST)
        assert not arrives(sockets, EAST, NORTH)
        assert arrives(sockets, WEST, NORTH)


@pytest.mark.parametrize(
    "sides", [([], [EAST]), ([WEST], []), (["node-a"], [EAST]), ([WEST], ["0.0.0.0; flush ruleset"])]
)
def test_what_is_no_address_is_refused(walls, sides):
    with pytest.raises(ConfigError):
        walls.cut(*sides)


def test_the_table_goes_with_its_block_even_when_cuts_are_open():
    with Firewall() as walls:
        walls.cut([WEST], [EAST])
        assert walls.table in tables()
    assert walls.table not in tables()


def test_the_table_of_a_killed_process_is_swept_and_the_tables_of_living_ones_stay(walls):
    code = (
        "import os; from chaos.real.firewall import Firewall; "
        "walls = Firewall(); walls.__enter__(); print(walls.table, flush=True); os.kill(os.getpid(), 9)"
    )
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    stale = died.stdout.strip()
    assert stale in tables()
    assert stale in sweep()
    assert stale not in tables()
    assert walls.table in tables()

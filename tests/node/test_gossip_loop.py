"""The loop around the membership core: effects in order, datagrams before timers, a turn also when nothing happens."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, cast

import pytest
import trio

from chaos.simulation.credentials import Credentials
from mesh.effects import (
    MemberChanged,
    PacketRefused,
    ProbeStream,
    RumorReceived,
    SelfConflict,
    SendDatagram,
    VectorDiffers,
)
from mesh.errors import UnavailableError
from mesh.ids import Address
from mesh.membership import Membership
from mesh.own_record import OwnRecord
from mesh.profiles import LOCAL
from mesh.takeover import OwnerState
from node.gossip_loop import REFUSED_LOG_EVERY_S, GossipLoop
from tests.node.simulated_env import HostClock, Paused, simulated_world

PEER = Address("b.test", 1)


class ScriptedGossip:
    """A core that says what the test wants."""

    def __init__(self) -> None:
        own = OwnRecord(Credentials(1).identity("a"), boot=1, process=1, address=PEER, rpc_address=PEER)
        self.deadline = float("inf")
        self.calls: list[Any] = []
        self.on_timer_effects: list[Any] = []
        self.members = Membership(own.current, LOCAL, now=0.0)

    def start(self, now):
        self.calls.append(("start", now))
        return []

    def next_deadline(self):
        return self.deadline

    def on_timer(self, now):
        self.calls.append(("timer", now))
        self.deadline = float("inf")
        return self.on_timer_effects

    def on_datagram(self, data, source, now):
        self.calls.append(("datagram", data))
        return [PacketRefused("bad-mac", source)] if data == b"bad" else []

    def on_stream_probe(self, node_id, nonce, alive, now):
        self.calls.append(("probe", node_id, nonce, alive))
        return []


class ScriptedSocket:
    def __init__(self) -> None:
        self.inbox: deque[tuple[bytes, Address]] = deque()
        self.sent: list[tuple[bytes, Address]] = []
        self.arrived = trio.Event()

    def arrive(self, *data: bytes) -> None:
        self.inbox.extend((each, PEER) for each in data)
        self.arrived.set()
        self.arrived = trio.Event()

    async def wait_readable(self) -> None:
        while not self.inbox:
            await self.arrived.wait()

    def receive_nowait(self):
        return self.inbox.popleft() if self.inbox else None

    def send(self, data, address) -> bool:
        self.sent.append((data, address))
        return True


class Calls:
    def __init__(self) -> None:
        self.answers = True

    async def call(self, address, verb, body, *, expect=None, **more):
        await trio.sleep(0.1)
        if not self.answers:
            raise UnavailableError("nobody")
        return body


class Env:
    clock = HostClock(Paused())


@pytest.fixture
def parts():
    gossip, socket, calls = ScriptedGossip(), ScriptedSocket(), Calls()
    loop = GossipLoop(cast(Any, Env()), cast(Any, gossip), cast(Any, socket), cast(Any, calls), me="a", turn_max_s=1.0)
    return loop, gossip, socket, calls


async def test_effects_are_carried_out_in_order(parts, autojump_clock, nursery):
    loop, _, socket, _ = parts
    told = []
    loop.on_rumor = lambda rumor: told.append(("rumor", rumor.payload, len(socket.sent)))
    loop.on_vector_differs = lambda node: told.append(("vector", node))
    loop.on_self_conflict = lambda conflict: told.append(("conflict", conflict.detail))
    loop.on_member_changed.append(lambda change: told.append(("member", change.node_id)))
    await nursery.start(loop.run)
    loop.perform(
        [
            SendDatagram(PEER, b"one"),
            RumorReceived(1, b"r", "b"),
            SendDatagram(PEER, b"two"),
            VectorDiffers("b"),
            MemberChanged("b", None, "ALIVE", "joined"),
            SelfConflict("cloned"),
        ]
    )
    assert [data for data, _ in socket.sent] == [b"one", b"two"]
    assert told == [("rumor", b"r", 1), ("vector", "b"), ("member", "b"), ("conflict", "cloned")]
    assert loop.sent_total == 2
    nursery.cancel_scope.cancel()


async def test_a_conflict_is_told_each_time_and_logged_once_for_each_cause(parts, nursery, caplog):
    loop, *_ = parts
    told = []
    loop.on_self_conflict = lambda conflict: told.append(conflict.detail)
    await nursery.start(loop.run)
    loop.perform([SelfConflict("cloned"), SelfConflict("cloned"), SelfConflict("enrolled anew")])
    assert told == ["cloned", "cloned", "enrolled anew"]
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [text.split(": ")[1] for text in logged] == ["cloned", "enrolled anew"]
    nursery.cancel_scope.cancel()


async def test_all_queued_datagrams_are_read_before_a_timer_fires(parts, autojump_clock, nursery):
    loop, gossip, socket, _ = parts
    gossip.deadline = trio.current_time() + 0.5
    await nursery.start(loop.run)
    await trio.sleep(0.499)
    # They came while this process was away: nothing told the loop, its timer is what wakes it.
    socket.inbox.extend((f"{n}".encode(), PEER) for n in range(200))
    await trio.sleep(0.01)
    names = [call[0] for call in gossip.calls]
    assert names == ["start", *["datagram"] * 200, "timer"]
    assert loop.received_total == 200
    nursery.cancel_scope.cancel()


async def test_the_loop_turns_when_nothing_happens(parts, autojump_clock, nursery):
    loop, _, _, _ = parts
    turns = []
    loop.on_turn = lambda: turns.append(trio.current_time())
    await nursery.start(loop.run)
    await trio.sleep(5.5)
    assert len(turns) == 5
    nursery.cancel_scope.cancel()


async def test_an_earlier_deadline_wakes_a_sleeping_loop(parts, autojump_clock, nursery):
    loop, gossip, _, _ = parts
    await nursery.start(loop.run)
    await trio.sleep(0.1)
    gossip.deadline = trio.current_time() + 0.2
    loop.perform([])
    await trio.sleep(0.3)
    assert gossip.calls[-1] == ("timer", pytest.approx(0.3, abs=0.01))
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answers", [True, False])
async def test_a_stream_probe_reports_whether_the_peer_answered(parts, autojump_clock, nursery, answers):
    loop, gossip, _, calls = parts
    calls.answers = answers
    await nursery.start(loop.run)
    loop.perform([ProbeStream("b", PEER, 7)])
    await trio.sleep(2)
    assert gossip.calls[-1] == ("probe", "b", 7, answers)
    assert await loop.handle_probe(cast(Any, None), b"nonce", None) == b"nonce"
    nursery.cancel_scope.cancel()


async def test_refused_datagrams_are_counted_all_and_logged_once_a_minute(parts, autojump_clock, nursery, caplog):
    loop, _, socket, _ = parts
    caplog.set_level(logging.WARNING)
    await nursery.start(loop.run)
    for _ in range(3):
        socket.arrive(b"bad", b"bad")
        await trio.sleep(1)
    assert loop.refused == {"bad-mac": 6}
    assert len(caplog.records) == 1
    await trio.sleep(REFUSED_LOG_EVERY_S)
    socket.arrive(b"bad")
    await trio.sleep(1)
    assert len(caplog.records) == 2
    nursery.cancel_scope.cancel()


async def test_owner_states_follow_the_members(tmp_path, autojump_clock):
    async with simulated_world(tmp_path) as world:
        a, b, c = (world.host(name) for name in "abc")
        await world.up()
        loop = a.node.loop
        assert [loop.owner_state(name) for name in "abz"] == [
            OwnerState.PRESENT,
            OwnerState.PRESENT,
            OwnerState.UNKNOWN,
        ]
        assert loop.alive_peers() == ["b", "c"]
        assert loop.placeable() == ["a", "b", "c"]
        assert loop.rpc_address("b") == b.rpc_address
        assert loop.rpc_address("z") is None
        assert loop.current_life("b") == b.node.life
        assert loop.current_life("z") is None
        await b.stop()
        await c.crash()
        await world.until(lambda: a.sees("c") == "DEAD" and a.sees("b") == "LEFT")
        assert [loop.owner_state(name) for name in "bc"] == [OwnerState.LEFT, OwnerState.DEAD]
        # Back from death it is a member at once, and gets new work only after its dwell window.
        await c.start()
        await world.until(lambda: a.sees("c") == "ALIVE")
        assert loop.owner_state("c") is OwnerState.PRESENT
        assert loop.usable() == ["a", "c"]
        assert loop.placeable() == ["a"]
        await world.until(lambda: loop.placeable() == ["a", "c"])

"""Requests reach handlers, errors keep their class, and no peer or handler ends the server."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from mesh.errors import (
    ConfigError,
    ConflictError,
    FrameError,
    LimitError,
    NotFoundError,
    RecordError,
    RelayMeshError,
    StoreError,
    UnavailableError,
)
from mesh.ids import Address
from mesh.protocol import Speaks, this_release
from node.env import PeerIdentity
from node.streams import rpc_messages
from node.streams.frames import LOCAL_CLUSTER, MESSAGE_BYTES_MAX, FrameDecoder, encode_message
from node.streams.framing import FramedStream
from node.streams.rpc import CALLS_MAX, CONNECTIONS_MAX, POOL_IDLE_S, SERVER_IDLE_S, RpcPool, RpcServer, Verb

CLUSTER = b"cluster1"
ADDRESS = Address("192.0.2.1", 18443)
SERVER = PeerIdentity("node", "node-s", 1)
CLIENT = PeerIdentity("node", "node-c", 1)


class PlainStream:
    """A SecureStream in memory, whose peer is whoever the test says."""

    def __init__(self, stream: trio.StapledStream, peer: PeerIdentity) -> None:
        self.stream = stream
        self.peer = peer

    async def send_all(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


class MemoryNet:
    """Connects to one server in memory, and counts how often."""

    def __init__(self, nursery: trio.Nursery, server: RpcServer, *, us: PeerIdentity = CLIENT) -> None:
        self.nursery = nursery
        self.server = server
        self.us = us
        self.they = SERVER
        self.opened: list[trio.StapledStream] = []
        self.reachable = True

    async def connect(self, address: Address) -> PlainStream:
        await trio.lowlevel.checkpoint()
        if not self.reachable:
            raise UnavailableError(f"{address} cannot be reached: Connection refused")
        ours, theirs = memory_stream_pair()
        self.opened.append(theirs)
        self.nursery.start_soon(self._serve, PlainStream(theirs, self.us))
        return PlainStream(ours, self.they)

    async def _serve(self, stream: PlainStream) -> None:
        await self.server.handle(stream)
        await stream.aclose()


async def echo(peer, body, send):
    return body


@contextlib.asynccontextmanager
async def running(verbs, *, us=CLIENT, pool_options=None, **options) -> AsyncIterator[tuple[MemoryNet, RpcPool]]:
    async with trio.open_nursery() as nursery:
        server = RpcServer(verbs, cluster=CLUSTER, **options)
        net = MemoryNet(nursery, server, us=us)
        pool = RpcPool(net, CLUSTER, **(pool_options or {}))
        nursery.start_soon(pool.run)
        yield net, pool
        nursery.cancel_scope.cancel()


async def raw_stream(net: MemoryNet) -> trio.StapledStream:
    return (await net.connect(ADDRESS)).stream


async def everything_until_the_end(stream: trio.StapledStream) -> list[object]:
    decoder = FrameDecoder(CLUSTER)
    replies = []
    with trio.fail_after(SERVER_IDLE_S * 2):
        while data := await stream.receive_some():
            decoder.feed(data)
            replies += [msgspec.msgpack.decode(message) for message in iter(decoder.next_message, None)]
    return replies


# --- answers and errors -----------------------------------------------------------------------------------------------


async def test_a_handler_learns_who_asks_and_answers():
    async def who(peer, body, send):
        return f"{peer.role} {peer.name} {body.decode()}".encode()

    async with running({"who": Verb(who)}) as (_, pool):
        assert await pool.call(ADDRESS, "who", b"hello", expect="node-s") == b"node node-c hello"


async def test_parts_come_before_the_answer_and_in_order():
    async def count(peer, body, send):
        for number in range(5):
            await send(str(number).encode())
        return b"done"

    parts = []

    async def on_part(part: bytes) -> None:
        await trio.lowlevel.checkpoint()
        parts.append(part)

    async with running({"count": Verb(count)}) as (_net, pool):
        assert await pool.call(ADDRESS, "count", b"", on_part=on_part) == b"done"
        assert parts == [b"0", b"1", b"2", b"3", b"4"]
        with pytest.raises(UnavailableError, match="parts where none belong"):
            await pool.call(ADDRESS, "count", b"")


@pytest.mark.parametrize(
    "kind",
    [
        NotFoundError,
        ConflictError,
        LimitError,
        UnavailableError,
        ConfigError,
        StoreError,
        RecordError,
        FrameError,
    ],
)
async def test_an_error_of_the_handler_is_the_same_class_for_the_caller(kind):
    async def fail(peer, body, send):
        raise kind("do this instead")

    async with running({"fail": Verb(fail), "echo": Verb(echo)}) as (net, pool):
        with pytest.raises(kind, match=r"^do this instead$"):
            await pool.call(ADDRESS, "fail", b"")
        assert await pool.call(ADDRESS, "echo", b"still here") == b"still here"
        assert len(net.opened) == 1


async def test_one_error_inside_a_group_is_that_error():
    async def fail(peer, body, send):
        async with trio.open_nursery():
            raise NotFoundError("no such task")

    async with running({"fail": Verb(fail)}) as (_, pool):
        with pytest.raises(NotFoundError, match="no such task"):
            await pool.call(ADDRESS, "fail", b"")


async def test_a_bug_in_a_handler_is_logged_and_tells_no_details(caplog):
    async def broken(peer, body, send):
        raise ValueError("secret-detail")

    async with running({"broken": Verb(broken), "echo": Verb(echo)}) as (net, pool):
        with pytest.raises(RelayMeshError, match="ValueError") as caught:
            await pool.call(ADDRESS, "broken", b"")
        assert "secret-detail" not in str(caught.value)
        assert "secret-detail" in caplog.text
        assert await pool.call(ADDRESS, "echo", b"x") == b"x"
        assert net.server.errors == {"internal": 1}


async def test_an_unknown_verb_and_a_verb_of_other_roles_are_refused():
    async with running({"mine": Verb(echo, roles=("operator", "local"))}) as (net, pool):
        with pytest.raises(UnavailableError, match="does not know 'nothing'"):
            await pool.call(ADDRESS, "nothing", b"")
        with pytest.raises(RelayMeshError, match="for role operator or local, and node-c is node"):
            await pool.call(ADDRESS, "mine", b"")
        assert net.server.calls == {}


async def test_an_operator_may_only_what_operators_may():
    verbs = {"pull": Verb(echo, roles=("node",)), "admin": Verb(echo, roles=("node", "operator"))}
    async with running(verbs, us=PeerIdentity("operator", "ann", 1)) as (_, pool):
        assert await pool.call(ADDRESS, "admin", b"x") == b"x"
        with pytest.raises(RelayMeshError, match="ann is operator"):
            await pool.call(ADDRESS, "pull", b"x")


async def test_the_control_socket_speaks_with_the_local_cluster_id():
    async with trio.open_nursery() as nursery:
        server = RpcServer({"echo": Verb(echo, roles=("local",))}, cluster=CLUSTER)
        ours, theirs = memory_stream_pair()
        nursery.start_soon(server.handle, PlainStream(theirs, PeerIdentity("local", "uid-0")))
        framed = FramedStream(PlainStream(ours, SERVER), LOCAL_CLUSTER)
        await framed.send(rpc_messages.encode(rpc_messages.Call("echo", b"hello")))
        assert rpc_messages.decode_reply(await framed.receive()) == rpc_messages.End(b"hello")
        await framed.aclose()


async def test_an_answer_too_large_for_a_message_is_an_error_and_the_connection_lives_on():
    async def huge(peer, body, send):
        return bytes(int(body))

    async with running({"huge": Verb(huge)}) as (net, pool):
        with pytest.raises(LimitError, match="too large"):
            await pool.call(ADDRESS, "huge", str(MESSAGE_BYTES_MAX).encode())
        assert len(await pool.call(ADDRESS, "huge", b"1000000")) == 1_000_000
        assert len(net.opened) == 1


async def test_a_request_too_large_is_refused_before_it_is_sent():
    async with running({"echo": Verb(echo)}) as (_, pool):
        with pytest.raises(LimitError):
            await pool.call(ADDRESS, "echo", bytes(MESSAGE_BYTES_MAX))


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_verb_runs_up_to_its_limit_at_once_and_one_more_is_told_to_try_again(autojump_clock):
    async def slow(peer, body, send):
        await trio.sleep(5)
        return body

    async with running({"slow": Verb(slow, concurrent_max=3)}) as (_net, pool), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(pool.call, ADDRESS, "slow", b"")
        await wait_all_tasks_blocked()
        with pytest.raises(UnavailableError, match=r"3 'slow' requests run here already: try again"):
            await pool.call(ADDRESS, "slow", b"")
    async with running({"slow": Verb(slow, concurrent_max=3)}) as (_net, pool):
        for _ in range(4):  # one after another there is no limit
            await pool.call(ADDRESS, "slow", b"")


async def test_a_pool_makes_so_many_calls_at_once_and_the_next_waits(autojump_clock):
    async def slow(peer, body, send):
        await trio.sleep(5)
        return body

    async with running({"slow": Verb(slow)}) as (net, pool), trio.open_nursery() as nursery:
        for _ in range(CALLS_MAX + 1):
            nursery.start_soon(pool.call, ADDRESS, "slow", b"")
        await wait_all_tasks_blocked()
        assert net.server.calls["slow"] == CALLS_MAX
        await trio.sleep(5.5)
        assert net.server.calls["slow"] == CALLS_MAX + 1


async def test_connections_up_to_the_limit_are_served_and_the_operator_keeps_his_own(autojump_clock):
    async with running({"echo": Verb(echo, roles=("node", "local"))}) as (net, pool):
        streams = [await raw_stream(net) for _ in range(CONNECTIONS_MAX)]
        await wait_all_tasks_blocked()
        assert net.server.connections == CONNECTIONS_MAX
        with pytest.raises(UnavailableError, match=f"{CONNECTIONS_MAX} connections are open here"):
            await pool.call(ADDRESS, "echo", b"")
        ours, theirs = memory_stream_pair()
        net.nursery.start_soon(net.server.handle, PlainStream(theirs, PeerIdentity("local", "uid-0")))
        local = FramedStream(PlainStream(ours, SERVER), LOCAL_CLUSTER)
        await local.send(rpc_messages.encode(rpc_messages.Call("echo", b"me")))
        assert rpc_messages.decode_reply(await local.receive()) == rpc_messages.End(b"me")
        await streams[0].aclose()
        await wait_all_tasks_blocked()
        assert await pool.call(ADDRESS, "echo", b"room again") == b"room again"


# --- time -------------------------------------------------------------------------------------------------------------


async def test_a_long_handler_ticks_and_is_waited_for(autojump_clock):
    async def slow(peer, body, send):
        await trio.sleep(900)
        return b"at last"

    async with running({"slow": Verb(slow)}) as (net, pool):
        assert await pool.call(ADDRESS, "slow", b"") == b"at last"
        assert await pool.call(ADDRESS, "slow", b"") == b"at last"
        assert len(net.opened) == 1


async def test_a_silent_peer_is_given_up_and_not_asked_again(autojump_clock):
    async def slow(peer, body, send):
        await trio.sleep(100)
        return body

    async with running({"slow": Verb(slow)}, tick_s=99) as (net, pool):
        begun = trio.current_time()
        with pytest.raises(UnavailableError, match="sent no byte for 10 s"):
            await pool.call(ADDRESS, "slow", b"")
        assert trio.current_time() - begun == pytest.approx(10)
        assert len(net.opened) == 1


async def test_silence_on_a_kept_connection_is_no_reason_to_ask_twice(autojump_clock):
    asked = []

    async def stuck_the_second_time(peer, body, send):
        asked.append(body)
        if len(asked) == 2:
            await trio.sleep_forever()
        return body

    async with running({"stuck": Verb(stuck_the_second_time)}, tick_s=99) as (net, pool):
        await pool.call(ADDRESS, "stuck", b"")
        with pytest.raises(UnavailableError, match="sent no byte for 10 s"):
            await pool.call(ADDRESS, "stuck", b"")
        assert len(asked) == 2
        assert len(net.opened) == 1


async def test_an_idle_connection_is_closed_by_the_server(autojump_clock):
    async with running({"echo": Verb(echo)}) as (net, _pool):
        stream = await raw_stream(net)
        await stream.send_all(encode_message(CLUSTER, rpc_messages.encode(rpc_messages.Call("echo", b"1"))))
        begun = trio.current_time()
        assert await everything_until_the_end(stream) == [["end", b"1"]]
        assert SERVER_IDLE_S <= trio.current_time() - begun < SERVER_IDLE_S + 3
        assert net.server.connections == 0


async def test_a_slow_request_is_not_idleness(autojump_clock):
    async with running({"echo": Verb(echo)}) as (net, _pool):
        stream = await raw_stream(net)
        for byte in encode_message(CLUSTER, rpc_messages.encode(rpc_messages.Call("echo", b"1"))):
            await trio.sleep(8)
            await stream.send_all(bytes([byte]))
        assert await everything_until_the_end(stream) == [["end", b"1"]]


async def test_the_pool_closes_what_is_idle_and_keeps_what_is_used(autojump_clock):
    async with running({"echo": Verb(echo)}) as (net, pool):
        await pool.call(ADDRESS, "echo", b"")
        await trio.sleep(POOL_IDLE_S - 1)
        await pool.call(ADDRESS, "echo", b"")
        await trio.sleep(POOL_IDLE_S - 1)
        assert net.server.connections == 1
        assert len(net.opened) == 1
        await trio.sleep(2)
        assert net.server.connections == 0
        await pool.call(ADDRESS, "echo", b"")
        assert len(net.opened) == 2
        await trio.sleep(POOL_IDLE_S + 1)
        assert net.server.connections == 0


# --- peers that go away -----------------------------------------------------------------------------------------------


async def test_a_cancelled_call_cancels_the_handler(autojump_clock):
    ends = []

    async def slow(peer, body, send):
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time())

    async with running({"slow": Verb(slow), "echo": Verb(echo)}) as (net, pool):
        with trio.move_on_after(1):
            await pool.call(ADDRESS, "slow", b"")
        await wait_all_tasks_blocked()
        assert ends == [trio.current_time()]
        assert net.server.connections == 0
        assert await pool.call(ADDRESS, "echo", b"x") == b"x"


async def test_a_peer_that_vanishes_cancels_the_handler():
    ended = trio.Event()

    async def slow(peer, body, send):
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with running({"slow": Verb(slow)}) as (net, _pool):
        stream = await raw_stream(net)
        await stream.send_all(encode_message(CLUSTER, rpc_messages.encode(rpc_messages.Call("slow", b""))))
        await wait_all_tasks_blocked()
        assert not ended.is_set()
        await stream.aclose()
        with trio.fail_after(5):
            await ended.wait()


async def test_a_handler_that_fails_while_it_is_cancelled_takes_nothing_with_it(caplog):
    async def fail_on_the_way_out() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("on the way out")

    async def clumsy(peer, body, send):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_on_the_way_out)
            nursery.start_soon(trio.sleep_forever)

    async with running({"clumsy": Verb(clumsy)}) as (net, pool):
        net.nursery.start_soon(pool.call, ADDRESS, "clumsy", b"")
        await wait_all_tasks_blocked()
        net.nursery.cancel_scope.cancel()
    assert "on the way out" in caplog.text


async def test_a_peer_that_takes_no_parts_ends_only_its_own_connection(autojump_clock):
    started = []

    async def flood(peer, body, send):
        started.append(peer)
        while True:
            await send(bytes(1000))

    server = RpcServer({"flood": Verb(flood)}, cluster=CLUSTER)
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.handle, PlainStream(theirs, CLIENT))
        await ours.send_all(encode_message(CLUSTER, rpc_messages.encode(rpc_messages.Call("flood", b""))))
        await trio.sleep(11)
        assert started
        assert server.connections == 0
        assert server.errors == {}


async def test_a_handler_that_gives_up_sending_a_part_ends_the_connection(autojump_clock):
    # Half a part followed by an answer would be read as one broken message.
    async def impatient(peer, body, send):
        with trio.move_on_after(1):
            await send(bytes(1000))
        return b"never seen"

    server = RpcServer({"impatient": Verb(impatient)}, cluster=CLUSTER)
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.handle, PlainStream(theirs, CLIENT))
        await ours.send_all(encode_message(CLUSTER, rpc_messages.encode(rpc_messages.Call("impatient", b""))))
        await trio.sleep(2)
        assert server.connections == 0


async def test_a_kept_connection_that_died_is_replaced_once():
    async with running({"echo": Verb(echo)}) as (net, pool):
        await pool.call(ADDRESS, "echo", b"")
        await net.opened[0].aclose()
        assert await pool.call(ADDRESS, "echo", b"again") == b"again"
        assert len(net.opened) == 2
        await net.opened[1].aclose()
        net.reachable = False
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await pool.call(ADDRESS, "echo", b"")


async def test_a_request_that_got_a_part_of_an_answer_is_never_sent_again():
    calls = []

    async def half(peer, body, send):
        calls.append(body)
        if len(calls) == 2:
            await send(b"first half")
            await net.opened[0].aclose()
            await trio.sleep_forever()
        return b""

    async def on_part(part):
        await trio.lowlevel.checkpoint()

    async with running({"half": Verb(half)}) as (net, pool):
        await pool.call(ADDRESS, "half", b"")
        with pytest.raises(UnavailableError, match="closed the connection before the answer"):
            await pool.call(ADDRESS, "half", b"", on_part=on_part)
        assert len(calls) == 2


async def test_a_fresh_connection_that_ends_at_once_hints_at_the_identity():
    async def leave(stream):
        await stream.receive_some(1)
        await stream.aclose()

    async with running({}) as (net, pool):
        net._serve = leave
        with pytest.raises(UnavailableError, match=r"192\.0\.2\.1:18443 \(leave\).*may not accept this identity"):
            await pool.call(ADDRESS, "leave", b"")
        assert len(net.opened) == 1


async def test_the_wrong_peer_is_not_asked():
    async with running({"echo": Verb(echo)}) as (net, pool):
        with pytest.raises(UnavailableError, match="is node node-s, not node node-x"):
            await pool.call(ADDRESS, "echo", b"", expect="node-x")
        await pool.call(ADDRESS, "echo", b"", expect="node-s")
        with pytest.raises(UnavailableError, match="not node node-x"):
            await pool.call(ADDRESS, "echo", b"", expect="node-x")
        net.they = PeerIdentity("operator", "node-s", 1)
        with pytest.raises(UnavailableError, match="is operator node-s, not a node"):
            await pool.call(ADDRESS, "echo", b"")
        assert net.server.calls["echo"] == 1


async def test_an_error_of_the_callers_own_part_handler_comes_out_and_costs_the_connection():
    async def count(peer, body, send):
        await send(b"1")
        await trio.sleep_forever()

    async def on_part(part):
        raise FrameError("mine")

    async with running({"count": Verb(count), "echo": Verb(echo)}) as (net, pool):
        with pytest.raises(FrameError, match="mine"):
            await pool.call(ADDRESS, "count", b"", on_part=on_part)
        await wait_all_tasks_blocked()
        assert net.server.connections == 0
        assert await pool.call(ADDRESS, "echo", b"") == b""


async def test_the_end_of_the_pool_closes_its_connections():
    async with trio.open_nursery() as nursery:
        server = RpcServer({"echo": Verb(echo)}, cluster=CLUSTER)
        net = MemoryNet(nursery, server)
        async with trio.open_nursery() as pool_nursery:
            pool = RpcPool(net, CLUSTER)
            pool_nursery.start_soon(pool.run)
            await pool.call(ADDRESS, "echo", b"")
            pool_nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert server.connections == 0


# --- peers that break the protocol ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encode_message(b"cluster2", b"hello"), "another mesh"),
        (b"\xff\xff\xff\xff" + CLUSTER + b"\x00", "announces 4294967295 bytes"),
        (encode_message(CLUSTER, b"x") * 3, "one after another"),
        (b"GET / HTTP/1.1\r\n\r\n", "not RelayMesh"),
    ],
)
async def test_broken_framing_is_answered_once_and_ends_that_stream_alone(data, says, autojump_clock):
    async with running({"echo": Verb(echo)}) as (net, pool):
        stream = await raw_stream(net)
        await stream.send_all(data)
        replies = await everything_until_the_end(stream)
        assert [reply[:2] for reply in replies if says in reply[2]] == [["error", "frame"]]
        assert await pool.call(ADDRESS, "echo", b"x") == b"x"


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\xa4call\xa1v", b"\x93\xa4call\xa1\xff\xc4\x00", b"\x91" * 2000])
async def test_a_message_that_is_no_request_is_answered_with_an_error(data):
    async with running({"echo": Verb(echo)}) as (net, _pool):
        stream = await raw_stream(net)
        framed = FramedStream(PlainStream(stream, SERVER), CLUSTER)
        await framed.send(data)
        reply = rpc_messages.decode_reply(await framed.receive())
        assert isinstance(reply, rpc_messages.Error)
        assert reply.code == "frame"


async def test_random_bytes_never_hurt_the_server(autojump_clock, caplog):
    caplog.set_level(logging.WARNING)
    rng = random.Random(7)
    async with running({"echo": Verb(echo)}) as (net, pool):
        for _ in range(200):
            stream = await raw_stream(net)
            noise = rng.randbytes(rng.randrange(1, 200))
            await stream.send_all(encode_message(CLUSTER, noise) if rng.random() < 0.5 else noise)
            if rng.random() < 0.5:
                await stream.aclose()
        await trio.sleep(SERVER_IDLE_S * 2)
        assert net.server.connections == 0
        assert await pool.call(ADDRESS, "echo", b"x") == b"x"
    assert caplog.text == ""


async def test_a_peer_that_answers_nonsense_is_named():
    async with trio.open_nursery() as nursery:
        server = RpcServer({}, cluster=CLUSTER)
        net = MemoryNet(nursery, server)

        async def nonsense(stream: PlainStream) -> None:
            await stream.send_all(encode_message(CLUSTER, b"nonsense"))

        net._serve = nonsense
        with pytest.raises(UnavailableError, match="no reply"):
            await RpcPool(net, CLUSTER).call(ADDRESS, "echo", b"")


# --- messages ---------------------------------------------------------------------------------------------------------


def test_messages_are_plain_msgpack_arrays():
    decode = msgspec.msgpack.decode
    assert decode(rpc_messages.encode(rpc_messages.Call("pull", b"x"))) == ["call", "pull", b"x", None]
    assert decode(rpc_messages.encode(rpc_messages.Part(b"x"))) == ["part", b"x"]
    assert decode(rpc_messages.encode(rpc_messages.End(b"x"))) == ["end", b"x"]
    assert decode(rpc_messages.encode(rpc_messages.Error("busy", "later"))) == ["error", "busy", "later"]
    told = rpc_messages.encode(rpc_messages.Error("unavailable", "later", 250))
    assert decode(told) == ["error", "unavailable", "later", 250]
    reply = rpc_messages.decode_reply(told)
    assert isinstance(reply, rpc_messages.Error)
    refused = reply.exception()
    assert isinstance(refused, UnavailableError)
    assert (str(refused), refused.retry_after_ms) == ("later", 250)
    assert decode(rpc_messages.encode(rpc_messages.Tick())) == ["tick"]


def test_elements_of_newer_releases_are_ignored():
    newer = msgspec.msgpack.encode(["call", "v", b"b", None, {"new": 1}])
    assert rpc_messages.decode_call(newer) == rpc_messages.Call("v", b"b")


def test_an_error_code_of_a_newer_release_is_some_error():
    error = rpc_messages.Error("from-the-future", "text").exception()
    assert type(error) is RelayMeshError
    assert rpc_messages.error_code(error) == "internal"


@given(st.binary(max_size=60))
def test_random_bytes_are_no_message_or_a_valid_one(data):
    for decode in (rpc_messages.decode_call, rpc_messages.decode_reply):
        with contextlib.suppress(FrameError):
            assert rpc_messages.encode(decode(data))


# --- versions ---------------------------------------------------------------------------------------------------------


async def opened(net: MemoryNet, speaks: Speaks | None) -> list[object]:
    """What the server answers to the first call of a peer that speaks this."""
    stream = await raw_stream(net)
    call = rpc_messages.Call("echo", b"x", speaks)
    framed = FramedStream(PlainStream(stream, SERVER), CLUSTER)
    await framed.send(rpc_messages.encode(call))
    replies = [msgspec.msgpack.decode(await framed.receive())]
    while replies[-1][0] not in ("end", "error"):
        replies.append(msgspec.msgpack.decode(await framed.receive()))
    await framed.aclose()
    return replies


async def test_the_first_messages_of_a_stream_say_what_both_ends_speak():
    async with running({"echo": Verb(echo)}, speaks=Speaks(1, 4, 9, "4.0")) as (net, pool):
        pool.speaks = Speaks(2, 3, 5, "2.0")
        for _ in range(3):
            assert await pool.call(ADDRESS, "echo", b"x") == b"x"
        assert net.server.protocols == {3: 1}
        assert [kept.framed.speaks.release for kept in pool._kept.values()] == ["4.0"]
        assert await opened(net, pool.speaks) == [["hello", [1, 4, 9, "4.0"]], ["end", b"x"]]


async def test_a_peer_that_does_not_say_what_it_speaks_is_answered_in_the_first_protocol():
    async with running({"echo": Verb(echo)}) as (net, _):
        assert await opened(net, None) == [["end", b"x"]]
        assert net.server.protocols == {1: 1}


@pytest.mark.parametrize("client", [Speaks(5, 6, 9, "5.0"), Speaks(1, 1, 3, "0.1")])
async def test_a_peer_out_of_range_is_refused_with_both_versions_and_counted(client, caplog):
    async with running({"echo": Verb(echo)}, speaks=Speaks(2, 4, 9, "4.0")) as (net, pool):
        pool.speaks = client
        with pytest.raises(UnavailableError, match=rf"protocol 2 to 4, and this node \(release {client.release}\)"):
            await pool.call(ADDRESS, "echo", b"x")
        _, (kind, code, text) = await opened(net, client)
        assert (kind, code) == ("error", "protocol")
        assert f"node-c (release {client.release}) speaks protocol {client.versions}, and this node" in text
        assert net.server.errors["protocol"] >= 1
        assert not net.server.calls
    assert text in caplog.text


async def test_a_server_that_does_not_say_what_it_speaks_is_refused_by_a_client_that_cannot_speak_the_first_protocol():
    async with running({"echo": Verb(echo)}) as (net, pool):
        pool.speaks = Speaks(2, 3, 5, "2.0")

        async def of_the_first_release(stream: PlainStream) -> None:
            await stream.receive_some(1000)
            await stream.send_all(encode_message(CLUSTER, rpc_messages.encode(rpc_messages.End(b"x"))))

        net._serve = of_the_first_release
        with pytest.raises(UnavailableError, match=r"node-s speaks protocol 1, and this node \(release 2.0\) 2 to 3"):
            await pool.call(ADDRESS, "echo", b"x")
        pool.speaks = this_release()
        assert await pool.call(ADDRESS, "echo", b"x") == b"x"

"""A framed stream gives whole messages, and gives up on a peer that stops in the middle of one."""

from __future__ import annotations

import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair

from mesh.errors import FrameError, LimitError
from node.env import PeerIdentity
from node.streams.frames import FRAME_BYTES_MAX, encode_message
from node.streams.framing import STALL_S, FramedStream, StalledError

CLUSTER = b"cluster1"


class PlainStream:
    def __init__(self, stream: trio.StapledStream) -> None:
        self.stream = stream
        self.peer = PeerIdentity("node", "node-a", 1)
        self.send_all = stream.send_all
        self.receive_some = stream.receive_some
        self.aclose = stream.aclose


def pair(**options):
    ours, theirs = memory_stream_pair()
    return FramedStream(PlainStream(ours), CLUSTER, **options), theirs


async def test_messages_pass_in_both_directions_and_end_cleanly():
    left, right = memory_stream_pair()
    a, b = FramedStream(PlainStream(left), CLUSTER), FramedStream(PlainStream(right), CLUSTER)
    messages = [b"", b"one", bytes(200_000)]
    for message in messages:
        await a.send(message)
        await b.send(message)
    await a.aclose()
    assert [message async for message in b] == messages
    assert await b.receive() is None


async def test_a_foreign_cluster_is_refused():
    framed, theirs = pair()
    await theirs.send_all(encode_message(b"cluster2", b"hello"))
    with pytest.raises(FrameError, match="another mesh"):
        await framed.receive()


async def test_an_end_inside_a_message_is_no_clean_end():
    framed, theirs = pair()
    await theirs.send_all(encode_message(CLUSTER, b"hello")[:-1])
    await theirs.aclose()
    with pytest.raises(FrameError, match="in the middle"):
        await framed.receive()


async def test_too_long_a_message_is_not_begun():
    framed, theirs = pair(message_bytes_max=10)
    with pytest.raises(LimitError):
        await framed.send(bytes(11))
    await framed.send(bytes(10))
    assert await theirs.receive_some() == encode_message(CLUSTER, bytes(10))


async def test_silence_between_messages_lasts_as_long_as_it_may(autojump_clock):
    framed, _theirs = pair()
    with trio.move_on_after(1000) as scope:
        await framed.receive()
    assert scope.cancelled_caught
    begun = trio.current_time()
    with pytest.raises(StalledError, match="no byte for 3 s"):
        await framed.receive(silence_s=3)
    assert trio.current_time() - begun == pytest.approx(3)


async def test_a_message_that_stops_growing_is_given_up(autojump_clock):
    framed, theirs = pair()
    await theirs.send_all(encode_message(CLUSTER, b"hello")[:-1])
    begun = trio.current_time()
    with pytest.raises(StalledError):
        await framed.receive()
    assert trio.current_time() - begun == pytest.approx(STALL_S)


async def test_a_slow_message_may_take_longer_than_a_stall(autojump_clock):
    framed, theirs = pair()

    async def trickle() -> None:
        for byte in encode_message(CLUSTER, b"hello"):
            await trio.sleep(STALL_S - 1)
            await theirs.send_all(bytes([byte]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        assert await framed.receive() == b"hello"


async def test_a_peer_that_takes_no_byte_is_given_up(autojump_clock):
    ours, _theirs = lockstep_stream_pair()  # nothing is buffered: nobody reads, so sending blocks
    framed = FramedStream(PlainStream(ours), CLUSTER)
    with pytest.raises(StalledError, match="took no byte"):
        await framed.send(b"hello")


async def test_a_cancelled_receive_loses_nothing(autojump_clock):
    framed, theirs = pair()
    message = bytes(range(256)) * (FRAME_BYTES_MAX // 100)
    data = encode_message(CLUSTER, message)
    received = None
    for start in range(0, len(data), 50_000):
        await theirs.send_all(data[start : start + 50_000])
        with trio.move_on_after(1):
            received = await framed.receive()
    assert received == message

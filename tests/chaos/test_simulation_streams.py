from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from chaos.simulation.clock import WorldClock
from chaos.simulation.event_heap import EventHeap
from chaos.simulation.fingerprint import Fingerprint
from chaos.simulation.links import Conditions, Links, Overlay, between
from chaos.simulation.process import Process, ProcessGone
from chaos.simulation.streams import HANDSHAKE_S, WINDOW_BYTES, SimulatedStream, StreamNetwork
from mesh.errors import ConfigError, UnavailableError
from mesh.ids import Address
from node.env import PeerIdentity

SERVER = Address("b.sim", 1)
CUT = Overlay(pairs=between(["a"], ["b"]), blocked=True)


class Net:
    """Host `a`, which connects, and host `b`, which serves."""

    def __init__(self, nursery: trio.Nursery, heap: EventHeap, **conditions: float) -> None:
        self.nursery = nursery
        self.links = Links(1, Conditions(**conditions))
        self.streams = StreamNetwork(heap, self.links, Fingerprint(heap))
        self.a, self.b = Process("a"), Process("b")
        self.served: list[SimulatedStream] = []

    async def serve(self, handler: Callable | None = None) -> None:
        async def keep(stream: SimulatedStream) -> None:
            self.served.append(stream)
            if handler:
                await handler(stream)
            await trio.sleep_forever()

        async def serve(*, task_status: trio.TaskStatus[Address]) -> None:
            try:
                await self.streams.serve(self.b, PeerIdentity("node", "b"), SERVER, keep, task_status=task_status)
            except* ProcessGone:
                assert self.b.is_gone

        await self.nursery.start(serve)

    async def connect(self) -> SimulatedStream:
        return await self.streams.connect(self.a, PeerIdentity("node", "a"), SERVER)


def run(main: Callable, **conditions: float) -> None:
    heap = EventHeap()
    clock = WorldClock(heap)

    async def rooted() -> None:
        with clock.running():
            async with trio.open_nursery() as nursery:
                await main(Net(nursery, heap, **conditions))
                nursery.cancel_scope.cancel()

    trio.run(rooted, clock=clock)
    assert not clock.stuck


async def read_all(stream: SimulatedStream) -> bytes:
    data = b""
    while more := await stream.receive_some(100):
        data += more
    return data


@pytest.mark.parametrize("loss", [0.0, 0.4])
def test_all_bytes_arrive_in_order_and_the_end_after_them_whatever_is_lost(loss):
    async def main(net: Net) -> None:
        got: list[bytes] = []

        async def collect(stream: SimulatedStream) -> None:
            got.append(await read_all(stream))

        await net.serve(collect)
        stream = await net.connect()
        assert stream.peer.name == "b"
        for number in range(50):
            await stream.send_all(b"%03d" % number)
        await stream.aclose()
        await trio.sleep(120)
        assert got == [b"".join(b"%03d" % number for number in range(50))]
        assert net.served[0].peer.name == "a"

    run(main, loss=loss)


def test_what_a_cut_stops_goes_on_when_it_ends():
    async def main(net: Net) -> None:
        await net.serve()
        stream = await net.connect()
        net.links.lay(CUT)
        await stream.send_all(b"hello")
        await trio.sleep(10)
        with trio.move_on_after(5) as scope:
            await net.served[0].receive_some(10)
        assert scope.cancelled_caught
        net.links.lift(CUT)
        assert await net.served[0].receive_some(10) == b"hello"

    run(main)


def test_a_sender_waits_while_a_window_of_bytes_is_unread():
    async def main(net: Net) -> None:
        await net.serve()
        stream = await net.connect()
        with trio.move_on_after(5) as scope:
            await stream.send_all(b"x" * WINDOW_BYTES)
        assert scope.cancelled_caught
        net.nursery.start_soon(read_all, net.served[0])
        await stream.send_all(b"y")

    run(main)


def test_a_killed_process_resets_its_streams_at_the_other_end():
    async def main(net: Net) -> None:
        await net.serve()
        stream = await net.connect()
        net.b.dies()
        net.streams.process_died("b")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(10)

    run(main)


def test_a_host_without_power_tells_nobody_until_it_is_back():
    async def main(net: Net) -> None:
        await net.serve()
        stream = await net.connect()
        net.b.dies()
        net.streams.power_lost("b")
        with trio.move_on_after(60) as scope:
            await stream.receive_some(10)
        assert scope.cancelled_caught
        await stream.send_all(b"still there?")
        with pytest.raises(UnavailableError, match="did not answer"):
            await net.connect()
        net.streams.power_back("b")
        await stream.send_all(b"and now?")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(10)

    run(main)


def test_connecting_over_a_cut_takes_as_long_as_a_handshake_may():
    async def main(net: Net) -> None:
        await net.serve()
        net.links.lay(CUT)
        began = trio.current_time()
        with pytest.raises(UnavailableError, match="did not answer"):
            await net.connect()
        assert trio.current_time() - began == pytest.approx(HANDSHAKE_S)

    run(main)


def test_a_port_without_a_listener_refuses_and_a_taken_one_too():
    async def main(net: Net) -> None:
        with pytest.raises(UnavailableError, match="refused"):
            await net.connect()
        await net.serve()
        with pytest.raises(ConfigError):
            await net.streams.serve(
                net.b, PeerIdentity("node", "b"), SERVER, read_all, task_status=trio.TASK_STATUS_IGNORED
            )

    run(main)


def test_a_process_that_is_gone_can_neither_send_nor_receive():
    async def main(net: Net) -> None:
        await net.serve()
        stream = await net.connect()
        net.a.dies()
        with pytest.raises(ProcessGone):
            await stream.send_all(b"x")
        with pytest.raises(ProcessGone):
            await stream.receive_some(1)

    run(main)

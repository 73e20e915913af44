"""Reliable streams between simulated hosts, as TCP and TLS make them: ordered, delayed by loss, stalled by cuts.

Nothing that was sent is lost while both ends live: what a cut stops goes on when the line opens again. An end that dies
with its process is told to the other (RST); one that dies with its host is not, until the host runs again. A bit that
flips on the way ends the connection, as TLS would. The other end's identity is declared, not proven: whether proofs
hold is tested with real TLS, and virtual time cannot be read into a certificate anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from chaos.simulation.datagrams import host_of
from chaos.simulation.event_heap import EventHeap
from chaos.simulation.fingerprint import Fingerprint
from chaos.simulation.links import RETRANSMIT_S, Links, Pair
from chaos.simulation.process import Process
from mesh.errors import ConfigError, UnavailableError
from mesh.ids import Address
from node.env import PeerIdentity

WINDOW_BYTES = 256 << 10
"""Bytes on their way or unread, after which the sender waits."""
HANDSHAKE_S = 5.0
"""As node.streams.trio_net gives up."""
_HANDSHAKE_FLIGHTS = 5
"""One-way trips until both ends may speak: SYN, SYN-ACK, client hello, server's flight, client's finish."""
_HANDSHAKE_BYTES = 1_000

Handler = Callable[["SimulatedStream"], Awaitable[object]]


class _Direction:
    """One direction of a stream: bytes, then perhaps an end."""

    def __init__(self, streams: StreamNetwork, pair: Pair) -> None:
        self._streams = streams
        self.pair = pair
        self._backlog: deque[bytes | None] = deque()
        self._last_at = 0.0
        self._retry_armed = False
        self._on_way_bytes = 0
        self.buffer = bytearray()
        self.ended = False
        """The sender closed in order; what is buffered can still be read."""
        self.broken = False
        self.readable = trio.Event()
        self.writable = trio.Event()

    @property
    def is_full(self) -> bool:
        return self._on_way_bytes + len(self.buffer) >= WINDOW_BYTES

    def send(self, data: bytes | None) -> None:
        """Put bytes on the line; None is the end. Order is kept whatever the line does."""
        if not self.broken:
            self._on_way_bytes += len(data or b"")
            self._backlog.append(data)
            self._transmit()

    def _transmit(self) -> None:
        if self.broken:
            return
        if self._backlog and not self._streams.links.is_open(self.pair):
            # Lost; sent again later. Links tell when they open, and a retransmission timer finds out soon after.
            self._streams.wait_for_line(self)
            return
        while self._backlog:
            data = self._backlog.popleft()
            delay_s = self._streams.links.segment_delay_s(self.pair, len(data or b""), self._streams.heap.now)
            # In order: a segment waits for the ones before it.
            self._last_at = max(self._last_at, self._streams.heap.now + delay_s)
            self._streams.heap.at(self._last_at, lambda data=data: self._arrive(data))  # type: ignore[misc]

    def line_opened(self) -> None:
        """The line may carry again: go on after a retransmission time."""
        if not self._retry_armed:
            self._retry_armed = True
            self._streams.heap.after(RETRANSMIT_S, self._retry)

    def _retry(self) -> None:
        self._retry_armed = False
        self._transmit()

    def _arrive(self, data: bytes | None) -> None:
        if self.broken:
            return
        if data is None:
            self.ended = True
        else:
            self._on_way_bytes -= len(data)
            self.buffer += data
        self.readable.set()

    def read(self, max_bytes: int) -> bytes:
        data = bytes(self.buffer[:max_bytes])
        del self.buffer[:max_bytes]
        self.writable.set()
        return data

    def break_off(self) -> None:
        self.broken = True
        self._backlog.clear()
        self.buffer.clear()
        self.readable.set()
        self.writable.set()


class SimulatedStream:
    """`node.env.SecureStream`: one end of a connection."""

    def __init__(
        self,
        streams: StreamNetwork,
        process: Process,
        peer: PeerIdentity,
        outgoing: _Direction,
        incoming: _Direction,
    ) -> None:
        self._streams = streams
        self.process = process
        self._peer = peer
        self._out = outgoing
        self._in = incoming
        self._closed = False
        self.other: SimulatedStream | None = None

    @property
    def peer(self) -> PeerIdentity:
        """Who is at the other end."""
        return self._peer

    async def send_all(self, data: bytes) -> None:
        """Send all bytes, or raise trio.BrokenResourceError."""
        self.process.check()
        if self._closed:
            raise trio.ClosedResourceError("this end was closed")
        if not data:
            await self.process.live(trio.lowlevel.checkpoint)
            return
        self._streams.fingerprint.note("segment", data)
        self._streams.meet(self)
        self._check_broken()
        self._out.send(bytes(data))
        while self._out.is_full:
            self._out.writable = trio.Event()
            await self.process.live(self._out.writable.wait)
            self._check_broken()
        await self.process.live(trio.lowlevel.checkpoint)

    async def receive_some(self, max_bytes: int) -> bytes:
        """The next bytes; empty at a clean end."""
        self.process.check()
        while not self._in.buffer and not self._in.ended:
            self._check_broken()
            self._in.readable = trio.Event()
            await self.process.live(self._in.readable.wait)
        self._check_broken()
        return self._in.read(max_bytes)

    def _check_broken(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this end was closed")
        if self._in.broken or self._out.broken:
            raise trio.BrokenResourceError("the connection was reset")

    async def aclose(self) -> None:
        """End the stream without waiting for the other side."""
        self._end()
        await trio.lowlevel.checkpoint()

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            if not self.process.is_gone:
                self._out.send(None)
            self._in.readable.set()
            self._out.writable.set()
            self._streams.forget(self)

    def reset(self) -> None:
        """The other end is gone, and this one notices."""
        self._out.break_off()
        self._in.break_off()
        self._streams.forget(self)

    def vanish(self) -> None:
        """This end is gone with its process. What it had sent still arrives; the other end does not know yet."""
        self._closed = True


class _Listener:
    def __init__(self, process: Process, identity: PeerIdentity) -> None:
        self.process = process
        self.identity = identity
        self.waiting: deque[SimulatedStream] = deque()
        self.arrived = trio.Event()


class StreamNetwork:
    """All listeners and connections."""

    def __init__(self, heap: EventHeap, links: Links, fingerprint: Fingerprint) -> None:
        self.heap = heap
        self.links = links
        self.fingerprint = fingerprint
        self._listeners: dict[Address, _Listener] = {}
        self._ends: dict[str, list[SimulatedStream]] = {}
        self._stalled: list[_Direction] = []
        self.switched_off: set[str] = set()  # only membership is asked, never iterated
        """Hosts without power: they do not even refuse."""
        self.opened = 0
        links.on_change(self._line_opened)

    # --- what processes do ---

    async def connect(self, process: Process, me: PeerIdentity, address: Address) -> SimulatedStream:
        """A connection to whoever listens there; UnavailableError within 5 s when that does not come about."""
        process.check()
        there = host_of(address)
        away, back = (process.host, there), (there, process.host)
        took_s = 0.0
        for flight in range(_HANDSHAKE_FLIGHTS):
            took_s += self.links.segment_delay_s(back if flight % 2 else away, _HANDSHAKE_BYTES, self.heap.now)
        reachable = self.links.is_open(away) and self.links.is_open(back) and there not in self.switched_off
        if not reachable or took_s > HANDSHAKE_S:
            await process.live(trio.sleep, HANDSHAKE_S)
            raise UnavailableError(f"{address} did not answer within {HANDSHAKE_S:g} s")
        await process.live(trio.sleep, took_s)
        listener = self._listeners.get(address)
        if listener is None or listener.process.is_gone:
            raise UnavailableError(f"{address} cannot be reached: connection refused")
        return self._connected(process, me, away, back, listener)

    def _connected(
        self, process: Process, me: PeerIdentity, away: Pair, back: Pair, listener: _Listener
    ) -> SimulatedStream:
        self.opened += 1
        going, coming = _Direction(self, away), _Direction(self, back)
        ours = SimulatedStream(self, process, listener.identity, going, coming)
        theirs = SimulatedStream(self, listener.process, me, coming, going)
        ours.other, theirs.other = theirs, ours
        for end in (ours, theirs):
            self._ends.setdefault(end.process.host, []).append(end)
        listener.waiting.append(theirs)
        listener.arrived.set()
        return ours

    async def serve(
        self,
        process: Process,
        me: PeerIdentity,
        address: Address,
        handler: Handler,
        *,
        task_status: trio.TaskStatus[Address],
    ) -> None:
        """Listen until cancelled; ConfigError when the port is taken."""
        if address in self._listeners:
            raise ConfigError(f"{address} is already in use")
        listener = self._listeners[address] = _Listener(process, me)
        try:
            task_status.started(address)
            async with trio.open_nursery() as nursery:
                while True:
                    while not listener.waiting:
                        listener.arrived = trio.Event()
                        await process.live(listener.arrived.wait)
                    nursery.start_soon(_serve_one, listener.waiting.popleft(), handler)
        finally:
            if self._listeners.get(address) is listener:
                del self._listeners[address]

    # --- what happens to hosts ---

    def process_died(self, host: str) -> None:
        """The kernel of the host resets the connections of a process that is gone."""
        for end in self._ends.pop(host, []):
            other = end.other
            if other is not None:
                # The reset travels like any packet; a cut delays it until somebody sends again.
                self._when_open((host, other.process.host), other.reset)
            end.vanish()

    def power_lost(self, host: str) -> None:
        """Nothing tells the other ends; they find out when they send to a host that has forgotten them."""
        self.switched_off.add(host)
        for end in self._ends.pop(host, []):
            end.vanish()

    def power_back(self, host: str) -> None:
        """The host's kernel answers again."""
        self.switched_off.discard(host)

    # --- inner ---

    def meet(self, end: SimulatedStream) -> None:
        """A segment reaches a host that knows of no such connection: it answers with a reset."""
        other = end.other
        assert other is not None
        if other.process.is_gone and other.process.host not in self.switched_off:
            self._when_open((other.process.host, end.process.host), end.reset)

    def _when_open(self, pair: Pair, action: Callable[[], None]) -> None:
        def attempt() -> None:
            if self.links.is_open(pair):
                action()
            else:
                self.heap.after(RETRANSMIT_S * 5, attempt)

        self.heap.after(self.links.segment_delay_s(pair, 40, self.heap.now), attempt)

    def wait_for_line(self, direction: _Direction) -> None:
        """Call `line_opened` on it when lines have changed."""
        if direction not in self._stalled:
            self._stalled.append(direction)

    def _line_opened(self) -> None:
        stalled, self._stalled = self._stalled, []
        for direction in stalled:
            direction.line_opened()

    def forget(self, end: SimulatedStream) -> None:
        """An end was closed."""
        ends = self._ends.get(end.process.host, [])
        if end in ends:
            ends.remove(end)


async def _serve_one(stream: SimulatedStream, handler: Handler) -> None:
    try:
        await handler(stream)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # the connection ended, as connections do
    finally:
        with trio.CancelScope(shield=True):
            await stream.aclose()

"""Requests and replies between nodes, and from the command line to its node.

`RpcServer` answers on streams that others opened; `RpcPool` asks, over connections that it keeps for a while. Nothing
that a peer sends, and nothing that a handler raises, ends the server. A peer that goes away cancels the handler that
runs for it. While a request runs its server ticks, so `SILENCE_S` without a byte means that the peer is gone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from mesh.errors import FrameError, LimitError, RelayMeshError, UnavailableError
from mesh.ids import Address
from mesh.protocol import SILENT, Speaks, common, refusal, this_release
from node.env import PeerIdentity, SecureStream
from node.streams.frames import LOCAL_CLUSTER
from node.streams.framing import FramedStream, StalledError
from node.streams.guard import Dialler, StreamGuard
from node.streams.rpc_messages import (
    SILENCE_S,
    TICK_S,
    Call,
    End,
    Error,
    Hello,
    Part,
    Reply,
    Tick,
    decode_call,
    decode_reply,
    encode,
    error_code,
)
from node.streams.tls import failure_text

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 256
"""Open streams; the control socket has as many of its own, so that peers cannot lock out the operator."""
SERVER_IDLE_S = 60.0
POOL_IDLE_S = 30.0
"""Below the server's, so that it is the pool that closes a kept connection, and finds it alive until then."""
CALLS_MAX = 8

Send = Callable[[bytes], Awaitable[None]]
Handler = Callable[[PeerIdentity, bytes, Send], Awaitable[bytes]]
"""`await handler(peer, body, send)` returns the answer; `await send(part)` sends what comes before it."""

_GONE = (FrameError, trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing that can be asked, who may ask it, and how many may run at once (more are told to try again)."""

    handler: Handler
    roles: tuple[str, ...] = ("node",)
    """Of `node`, `operator`, `local`."""
    concurrent_max: int = 64


class RpcServer:
    """Answers requests by verb. Give `handle` to `Net.serve` and to `Net.serve_local`.

    Exceptions of `mesh.errors` reach the caller as the same class. Any other exception of a handler is logged here
    and reaches the caller as a RelayMeshError without details.
    """

    def __init__(
        self,
        verbs: Mapping[str, Verb],
        *,
        cluster: bytes,
        guard: StreamGuard | None = None,
        connections_max: int = CONNECTIONS_MAX,
        idle_s: float = SERVER_IDLE_S,
        tick_s: float = TICK_S,
        speaks: Speaks | None = None,
    ) -> None:
        """`speaks` is what askers are told and measured by; by default, what this release speaks."""
        self.speaks = speaks or this_release()
        self._verbs = verbs
        self._cluster = cluster
        self._guard = guard or StreamGuard(lambda _peer: None)
        self._connections_max = connections_max
        self.idle_s = idle_s
        self.tick_s = tick_s
        self._running: Counter[str] = Counter()
        self._open: Counter[bool] = Counter()
        self.calls: Counter[str] = Counter()
        """Requests that reached a handler, by verb."""
        self.errors: Counter[str] = Counter()
        """Error replies, by code."""
        self.protocols: Counter[int] = Counter()
        """Streams of peers served so far, by the protocol version that they use."""

    @property
    def connections(self) -> int:
        """Streams that are being served now."""
        return self._open.total()

    async def handle(self, stream: SecureStream) -> None:
        """Serve one stream until its peer closes it, falls idle, or breaks the protocol."""
        local = stream.peer.role == "local"
        framed = FramedStream(stream, LOCAL_CLUSTER if local else self._cluster)
        connection = _Connection(self, framed)
        if self._open[local] >= self._connections_max:
            await connection.refuse(
                self.refusal("busy", f"{self._connections_max} connections are open here: try again in a second")
            )
            return
        refusal = self._guard.admit(stream)
        if refusal is not None:
            await connection.refuse(self.refusal("forbidden", refusal))
            return
        self._open[local] += 1
        try:
            await connection.run()
        finally:
            self._open[local] -= 1
            self._guard.forget(stream)

    def refuses(self, speaks: Speaks, peer: PeerIdentity) -> Error | None:
        """The reply to a peer with which we have no version of the protocol in common; None when we have one."""
        shared = common(self.speaks, speaks)
        if shared is None:
            text = refusal(self.speaks, speaks, peer.name)
            log.warning("refused a stream: %s", text)
            return self.refusal("protocol", text)
        self.protocols[shared] += peer.role == "node"
        return None

    async def answer(self, call: Call, peer: PeerIdentity, send: Send) -> End | Error:
        """Run one request to its reply. Only cancellation comes out as an exception."""
        verb = self._verbs.get(call.verb)
        if verb is None:
            return self.refusal("unavailable", f"this node does not know {call.verb[:64]!r}: its release may be older")
        if peer.role not in verb.roles:
            allowed = " or ".join(verb.roles)
            return self.refusal("forbidden", f"{call.verb!r} is for role {allowed}, and {peer.name} is {peer.role}")
        if self._running[call.verb] >= verb.concurrent_max:
            detail = f"{verb.concurrent_max} {call.verb!r} requests run here already"
            return self.refusal("busy", f"{detail}: try again in a second, or at another peer")
        self.calls[call.verb] += 1
        self._running[call.verb] += 1
        try:
            return End(await verb.handler(peer, call.body, send))
        except Exception as error:
            return self._failure(call.verb, error)
        except BaseExceptionGroup as group:
            # A handler with tasks of its own was cancelled, and one of them failed on the way out. Nobody waits for
            # the answer; but its failure must not come out of the server beside the cancellation.
            cancelled, failed = group.split(trio.Cancelled)
            if cancelled is None or not isinstance(failed, ExceptionGroup):
                raise
            self._failure(call.verb, failed)
            raise cancelled from None
        finally:
            self._running[call.verb] -= 1

    def _failure(self, verb: str, error: Exception) -> Error:
        # A handler with tasks of its own raises groups; one exception in a group is that exception.
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, RelayMeshError):
            wait_ms = error.retry_after_ms if isinstance(error, UnavailableError) else None
            return self.refusal(error_code(error), str(error), wait_ms)
        log.error("handler of %r failed", verb, exc_info=error)
        return self.refusal("internal", f"{verb!r} failed inside the node ({type(error).__name__}): see its log")

    def refusal(self, code: str, text: str, retry_after_ms: int | None = None) -> Error:
        """An error reply, counted."""
        self.errors[code] += 1
        return Error(code, text, retry_after_ms)


class _Connection:
    """One served stream: a task that reads, and one that answers.

    The reading task never stops, so it notices at once when the peer goes away; and it sends the ticks.
    """

    def __init__(self, server: RpcServer, framed: FramedStream) -> None:
        self._server = server
        self._framed = framed
        self._sending = trio.Lock()
        self._scope = trio.CancelScope()
        self._unanswered = 0

    async def run(self) -> None:
        # One request may wait: a client that read its answer can send the next before our task came round.
        requests, to_answer = trio.open_memory_channel[bytes](1)
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answer_all, to_answer)
                await self._read_all(requests)
                nursery.cancel_scope.cancel()

    async def refuse(self, reply: Error) -> None:
        with self._scope:
            await self._send(reply)

    async def _read_all(self, requests: trio.MemorySendChannel[bytes]) -> None:
        try:
            while await self._pass_on(requests):
                await self._tick()
        except FrameError as error:
            log.info("stream of %s ended: %s", self._framed.peer.name, error)
            await self._send(self._server.refusal("frame", str(error)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("stream of %s broke", self._framed.peer.name)

    async def _pass_on(self, requests: trio.MemorySendChannel[bytes]) -> bool:
        """Hand requests to the answering task. True after a silence; False when the stream ended or was idle too long.

        One scope serves many requests, its deadline moving along: one for each would cost as much as reading it.
        """
        with trio.CancelScope() as silence:
            while True:
                busy = self._unanswered > 0
                silence.deadline = trio.current_time() + (self._server.tick_s if busy else self._server.idle_s)
                message = await self._framed.receive()
                if message is None:
                    return False
                self._unanswered += 1
                try:
                    requests.send_nowait(message)
                except trio.WouldBlock:
                    raise FrameError("requests came faster than answers: one after another, please") from None
        # A request may have come in the very moment in which the deadline passed that it was about to move.
        idle = not busy and trio.current_time() >= silence.deadline
        return not idle or self._unanswered > 0 or self._framed.mid_message

    async def _tick(self) -> None:
        # A part on its way is as good a sign of life, and may be what the lock waits for.
        if self._unanswered and not self._sending.locked():
            await self._send(Tick())

    async def _answer_all(self, requests: trio.MemoryReceiveChannel[bytes]) -> None:
        async for message in requests:
            try:
                call = decode_call(message)
            except FrameError as error:
                await self._send(self._server.refusal("frame", str(error)))
            else:
                await self._send_answer(await self._answer(call))
            self._unanswered -= 1

    async def _answer(self, call: Call) -> End | Error:
        if self._framed.speaks is None:
            if call.speaks is not None:
                await self._send(Hello(self._server.speaks))
            speaks = call.speaks or SILENT
            refused = self._server.refuses(speaks, self._framed.peer)
            if refused is not None:
                return refused
            self._framed.speaks = speaks
        return await self._server.answer(call, self._framed.peer, self._send_part)

    async def _send_answer(self, reply: End | Error) -> None:
        try:
            await self._send(reply)
        except LimitError as error:
            await self._send(self._server.refusal("limit", f"the answer is too large: {error}"))

    async def _send_part(self, body: bytes) -> None:
        await self._send(Part(body))

    async def _send(self, reply: Reply) -> None:
        """Send one message whole, or end the connection: half a message would be read as part of the next."""
        data = encode(reply)
        try:
            self._sending.acquire_nowait()  # nearly always free; waiting for it would give away a turn of the loop
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            await self._framed.send(data)
        except LimitError:
            raise  # nothing was sent
        except _GONE as error:
            log.debug("%s takes no more replies: %s", self._framed.peer.name, error)
            self._scope.cancel()
            await trio.lowlevel.checkpoint()  # raises Cancelled, which also ends the handler that wanted to send
        except trio.Cancelled:
            self._scope.cancel()
            raise
        finally:
            self._sending.release()


@dataclass(slots=True)
class _Kept:
    framed: FramedStream
    idle_since: float


class _LostError(Exception):
    """A connection ended before the answer."""

    def __init__(self, reason: str, *, unheard: bool) -> None:
        super().__init__(reason)
        self.unheard = unheard
        """It ended, by itself and before one byte of a reply."""


class RpcPool:
    """Asks peers, keeping one idle connection per address. `run` must be running, or idle ones are never closed.

    At most `calls_max` calls run at once, others wait their turn. A handler that asks on must not use the pool that
    its askers use: pools full of calls that wait for each other would wait for ever.
    """

    def __init__(
        self,
        dialler: Dialler,
        cluster: bytes,
        *,
        calls_max: int = CALLS_MAX,
        idle_s: float = POOL_IDLE_S,
        speaks: Speaks | None = None,
    ) -> None:
        """`speaks` is what peers are told and measured by; by default, what this release speaks."""
        self.speaks = speaks or this_release()
        self._dialler = dialler
        self._cluster = cluster
        self._idle_s = idle_s
        self._turns = trio.Semaphore(calls_max, max_value=calls_max)
        self._kept: dict[Address, _Kept] = {}
        self._any_kept = trio.Event()

    async def call(
        self,
        address: Address,
        verb: str,
        body: bytes,
        *,
        expect: str | None = None,
        timeout_s: float = SILENCE_S,
        on_part: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> bytes:
        """The answer of the node at `address`, which must be named `expect` when that is given.

        `timeout_s` is the longest silence: a working peer ticks, so a call lasts as long as its handler does. Put it
        into a trio.move_on_after for a limit in all; the peer's handler is then cancelled too.
        Parts go to `on_part` in order; the next is read when it returns. Errors of the peer's handler come as the
        classes of `mesh.errors`. UnavailableError when nobody is there, it is somebody else, or the connection is
        lost: then the request may have been carried out. It is sent a second time only when a kept connection ends
        before any byte of a reply, so verbs must be safe to repeat.
        """
        async with self._turns:
            kept = await self._take_kept(address, expect)
            if kept is not None:
                try:
                    return await self._exchange(address, kept, verb, body, timeout_s, on_part)
                except _LostError as error:
                    if not error.unheard:
                        raise UnavailableError(f"{address} ({verb}): {error}") from error
            fresh = await self._connect(address, expect)
            try:
                return await self._exchange(address, fresh, verb, body, timeout_s, on_part)
            except _LostError as error:
                hint = ": it may not accept this identity, or is stopping" if error.unheard else ""
                raise UnavailableError(f"{address} ({verb}): {error}{hint}") from error

    async def run(self) -> None:
        """Close connections that were idle too long, until cancelled; then close all."""
        try:
            while True:
                while not self._kept:
                    await self._any_kept.wait()
                oldest = min(kept.idle_since for kept in self._kept.values())
                await trio.sleep_until(oldest + self._idle_s)
                await self._close_idle(oldest)
        finally:
            with trio.move_on_after(1.0, shield=True):
                await self._close_idle(float("inf"))

    async def _close_idle(self, idle_since: float) -> None:
        for address in [address for address, kept in self._kept.items() if kept.idle_since <= idle_since]:
            framed = self._pop(address)
            if framed is not None:
                await framed.aclose()

    async def _take_kept(self, address: Address, expect: str | None) -> FramedStream | None:
        framed = self._pop(address)
        if framed is not None and expect not in (None, framed.peer.name):
            await framed.aclose()
            return None
        return framed

    async def _connect(self, address: Address, expect: str | None) -> FramedStream:
        stream = await self._dialler.connect(address)
        if stream.peer.role == "node" and expect in (None, stream.peer.name):
            return FramedStream(stream, self._cluster)
        await stream.aclose()
        wanted = "a node" if expect is None else f"node {expect}"
        raise UnavailableError(f"{address} is {stream.peer.role} {stream.peer.name}, not {wanted}")

    async def _exchange(
        self,
        address: Address,
        framed: FramedStream,
        verb: str,
        body: bytes,
        timeout_s: float,
        on_part: Callable[[bytes], Awaitable[None]] | None,
    ) -> bytes:
        """One request and its replies. The connection is kept if it can be used again, and else closed."""
        try:
            opening = self.speaks if framed.speaks is None else None
            reply = await self._converse(framed, Call(verb, body, opening), timeout_s, on_part)
        except BaseException:
            await framed.aclose()
            raise
        await self._keep(address, framed)
        if isinstance(reply, Error):
            raise reply.exception()
        return reply.body

    async def _converse(
        self,
        framed: FramedStream,
        call: Call,
        timeout_s: float,
        on_part: Callable[[bytes], Awaitable[None]] | None,
    ) -> End | Error:
        heard_before = framed.bytes_received
        try:
            await framed.send(encode(call))
        except _GONE as error:
            raise _LostError(failure_text(error), unheard=not isinstance(error, StalledError)) from error
        while True:
            try:
                reply = await self._next_reply(framed, timeout_s)
            except _GONE as error:
                unheard = framed.bytes_received == heard_before and not isinstance(error, StalledError)
                raise _LostError(failure_text(error), unheard=unheard) from error
            if framed.speaks is None:
                self._meet(framed, reply.speaks if isinstance(reply, Hello) else SILENT)
            if isinstance(reply, (End, Error)):
                return reply
            if isinstance(reply, Part):
                if on_part is None:
                    raise _LostError("it sends parts where none belong", unheard=False)
                await on_part(reply.body)

    def _meet(self, framed: FramedStream, theirs: Speaks) -> None:
        # The server refuses us by the same rule; but one that did not would be misunderstood.
        if common(self.speaks, theirs) is None:
            raise UnavailableError(refusal(self.speaks, theirs, framed.peer.name))
        framed.speaks = theirs

    @staticmethod
    async def _next_reply(framed: FramedStream, timeout_s: float) -> Reply:
        data = await framed.receive(silence_s=timeout_s)
        if data is None:
            raise FrameError("it closed the connection before the answer")
        return decode_reply(data)

    async def _keep(self, address: Address, framed: FramedStream) -> None:
        if address in self._kept:
            await framed.aclose()
            return
        self._kept[address] = _Kept(framed, trio.current_time())
        self._any_kept.set()

    def _pop(self, address: Address) -> FramedStream | None:
        kept = self._kept.pop(address, None)
        if kept is not None and not self._kept:
            self._any_kept = trio.Event()
        return None if kept is None else kept.framed

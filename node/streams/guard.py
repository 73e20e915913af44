"""Who may hold a stream with us: asked when one opens, and of all open ones whenever the answer may have changed.

Promise: `enforce` ends every stream, served or dialled, whose peer is refused by now; what waits on it fails as it does
when a connection breaks. The control socket is never refused: the host's owner must always reach the node.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import trio

from mesh.errors import UnavailableError
from mesh.ids import Address
from node.env import PeerIdentity, SecureStream

log = logging.getLogger(__name__)

Refusal = Callable[[PeerIdentity], str | None]
"""Why a peer may hold no stream, in words for its owner; None when it may."""


class Dialler(Protocol):
    """The part of `node.env.Net` that opens streams."""

    async def connect(self, address: Address) -> SecureStream:
        """Open an authenticated stream; UnavailableError when nobody answers or the identity does not hold."""
        ...


class StreamGuard:
    """Knows the open streams of one node. Every stream that `admit` saw must be given to `forget` in the end."""

    def __init__(self, refusal: Refusal) -> None:
        self._refusal = refusal
        self._open: dict[int, SecureStream] = {}
        self.refused_total = 0

    def admit(self, stream: SecureStream) -> str | None:
        """Why this stream may not be used; None when it may, and is watched from now on."""
        refusal = self._why(stream.peer)
        if refusal is None:
            self._open[id(stream)] = stream
        return refusal

    def forget(self, stream: SecureStream) -> None:
        """This stream has ended."""
        self._open.pop(id(stream), None)

    async def enforce(self) -> None:
        """End every open stream whose peer is refused by now."""
        async with trio.open_nursery() as nursery:  # a stalled peer takes its time to be closed, the others need not
            for stream in list(self._open.values()):
                refusal = self._why(stream.peer)
                if refusal is not None:
                    log.info("ended a stream with %s: %s", stream.peer.name, refusal)
                    self.forget(stream)
                    nursery.start_soon(_end, stream)

    def _why(self, peer: PeerIdentity) -> str | None:
        refusal = None if peer.role == "local" else self._refusal(peer)
        self.refused_total += refusal is not None
        return refusal


class GuardedDialler:
    """Opens streams through a `Dialler`, to peers that the guard admits."""

    def __init__(self, net: Dialler, guard: StreamGuard) -> None:
        self._net = net
        self._guard = guard

    async def connect(self, address: Address) -> SecureStream:
        """Open a stream; UnavailableError also when its peer was revoked."""
        stream = await self._net.connect(address)
        refusal = self._guard.admit(stream)
        if refusal is None:
            return _Guarded(stream, self._guard)
        await stream.aclose()
        raise UnavailableError(f"{address} is {stream.peer.name}: {refusal}")


class _Guarded:
    """A dialled stream that tells the guard of its end."""

    __slots__ = ("_guard", "_stream")

    def __init__(self, stream: SecureStream, guard: StreamGuard) -> None:
        self._stream = stream
        self._guard = guard

    @property
    def peer(self) -> PeerIdentity:
        return self._stream.peer

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        self._guard.forget(self._stream)
        await self._stream.aclose()


async def _end(stream: SecureStream) -> None:
    try:
        await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("the stream with %s ended by itself meanwhile", stream.peer.name)

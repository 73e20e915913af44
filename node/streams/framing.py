"""Whole messages on a stream: over any `SecureStream` of node/env.py.

A peer that stops taking or giving bytes in the middle of a message is given up after `STALL_S`. Between messages
a stream may be silent for as long as its user allows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from mesh.errors import FrameError
from mesh.protocol import Speaks
from node.env import PeerIdentity, SecureStream
from node.streams.frames import FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, FrameDecoder, encode_frames

STALL_S = 10.0
"""A large message over a poor link may take minutes; ten seconds without a single byte is a dead link."""


class StalledError(FrameError):
    """The peer took or gave no byte for too long. It may be slow, dead, or out of reach."""


class FramedStream:
    """Sends and receives whole messages. One task may send while another receives, not two of a kind at once.

    A cancelled `receive` loses nothing: the next one goes on where it stopped. After a cancelled `send`, or any
    exception of either, the stream is of no more use.
    """

    __slots__ = ("_cluster", "_decoder", "_message_bytes_max", "_stall_s", "_stream", "bytes_received", "speaks")

    def __init__(
        self,
        stream: SecureStream,
        cluster: bytes,
        *,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        stall_s: float = STALL_S,
    ) -> None:
        self._stream = stream
        self._cluster = cluster
        self._message_bytes_max = message_bytes_max
        self._stall_s = stall_s
        self._decoder = FrameDecoder(cluster, message_bytes_max=message_bytes_max)
        self.bytes_received = 0
        self.speaks: Speaks | None = None
        """What the peer has said that it speaks; None before its first message."""

    @property
    def peer(self) -> PeerIdentity:
        """Who is at the other end."""
        return self._stream.peer

    @property
    def mid_message(self) -> bool:
        """Whether the peer began a message that has not ended."""
        return self._decoder.mid_message

    async def send(self, message: bytes) -> None:
        """Send one message.

        LimitError when it is too long (nothing was sent), StalledError when the peer takes no byte for `stall_s`,
        trio.BrokenResourceError when the connection is gone.
        """
        for frame in encode_frames(self._cluster, message, message_bytes_max=self._message_bytes_max):
            with trio.move_on_after(self._stall_s) as scope:
                await self._stream.send_all(frame)
            if scope.cancelled_caught:
                raise StalledError(f"{self.peer.name} took no byte for {self._stall_s:g} s")

    async def receive(self, *, silence_s: float | None = None) -> bytes | None:
        """The next message, or None when the peer ended the stream between two messages.

        `silence_s` limits the wait for each next byte; without it only a begun message is limited, to `stall_s`.
        StalledError past it; FrameError when a limit or the cluster id does not hold, or the stream ends inside a
        message; trio.BrokenResourceError when the connection is gone.
        """
        while (message := self._decoder.next_message()) is None:
            data = await self._receive_some(silence_s)
            if not data:
                if self._decoder.mid_message:
                    raise FrameError(f"{self.peer.name} ended the stream in the middle of a message")
                return None
            self.bytes_received += len(data)
            self._decoder.feed(data)
        return message

    async def _receive_some(self, silence_s: float | None) -> bytes:
        if silence_s is None:
            if not self._decoder.mid_message:
                return await self._stream.receive_some(FRAME_BYTES_MAX)
            silence_s = self._stall_s
        with trio.move_on_after(silence_s):
            return await self._stream.receive_some(FRAME_BYTES_MAX)
        raise StalledError(f"{self.peer.name} sent no byte for {silence_s:g} s")

    async def aclose(self) -> None:
        """End the stream without waiting for the peer."""
        await self._stream.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Messages until the clean end."""
        while (message := await self.receive()) is not None:
            yield message

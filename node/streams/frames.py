"""Cut messages into frames and put them together again. Pure: no loop, no socket.

A frame is `!I8sB` (payload length, cluster id, flags) and then its payload. A message is the payloads of consecutive
frames up to the first one without the MORE flag. Every frame names its cluster, so that a peer of another mesh is
recognised by its first frame, whatever authenticated the stream below.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mesh.errors import FrameError, LimitError

_HEADER = struct.Struct("!I8sB")
_MORE = 0x01

CLUSTER_BYTES = 8
LOCAL_CLUSTER = bytes(CLUSTER_BYTES)
"""The cluster id of the control socket: its client need not know which mesh the node belongs to."""

FRAME_BYTES_MAX = 65_536
"""One frame with its header. Between two frames of a large message the sender yields to its other tasks."""
PAYLOAD_BYTES_MAX = FRAME_BYTES_MAX - _HEADER.size

MESSAGE_BYTES_MAX = 20 * 1024 * 1024
"""The largest submit (16 MiB in all) with room for its metadata."""


def encode_frames(cluster: bytes, message: bytes, *, message_bytes_max: int = MESSAGE_BYTES_MAX) -> Iterator[bytes]:
    """The frames of one message, in order; an empty message is one empty frame.

    LimitError when the message is too long, before the first frame: a receiver would end the stream on it.
    """
    assert len(cluster) == CLUSTER_BYTES, cluster
    if len(message) > message_bytes_max:
        raise LimitError(f"a message of {len(message)} bytes does not fit a stream: at most {message_bytes_max} bytes")
    return _cut(cluster, message)


def encode_message(cluster: bytes, message: bytes, *, message_bytes_max: int = MESSAGE_BYTES_MAX) -> bytes:
    """All frames of one message as one byte string; LimitError when the message is too long."""
    return b"".join(encode_frames(cluster, message, message_bytes_max=message_bytes_max))


def _cut(cluster: bytes, message: bytes) -> Iterator[bytes]:
    view = memoryview(message)
    start = 0
    while True:
        payload = view[start : start + PAYLOAD_BYTES_MAX]
        start += len(payload)
        more = _MORE if start < len(view) else 0
        yield _HEADER.pack(len(payload), cluster, more) + payload
        if not more:
            return


class FrameDecoder:
    """Turns received bytes back into messages, however the network cut them.

    Feed bytes with `feed`, then take messages with `next_message` until it returns None. Holds at most one message
    below its limit, and what was fed beyond it. After a FrameError the stream cannot be understood any more.
    """

    __slots__ = ("_buffer", "_cluster", "_message_bytes_max", "_parts", "_parts_bytes")

    def __init__(self, cluster: bytes, *, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        assert len(cluster) == CLUSTER_BYTES, cluster
        self._cluster = cluster
        self._message_bytes_max = message_bytes_max
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._parts_bytes = 0

    @property
    def mid_message(self) -> bool:
        """Whether a message began that has not ended. An end of stream here is a truncation."""
        return bool(self._buffer or self._parts)

    def feed(self, data: bytes) -> None:
        """Take received bytes."""
        self._buffer += data

    def next_message(self) -> bytes | None:
        """The next whole message, or None when more bytes are needed.

        FrameError when a header breaks a limit or names another cluster: judged as soon as the header is there, so a
        hostile length is never waited for.
        """
        while len(self._buffer) >= _HEADER.size:
            length, cluster, flags = _HEADER.unpack_from(self._buffer)
            self._check_header(length, cluster, flags)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return None
            self._parts.append(bytes(memoryview(self._buffer)[_HEADER.size : end]))
            self._parts_bytes += length
            del self._buffer[:end]
            if not flags & _MORE:
                return self._take_parts()
        return None

    def _check_header(self, length: int, cluster: bytes, flags: int) -> None:
        if cluster != self._cluster:
            raise FrameError(
                f"a frame of cluster {cluster.hex()} came where {self._cluster.hex()} is spoken: "
                "the other end belongs to another mesh, or is not RelayMesh"
            )
        if length > PAYLOAD_BYTES_MAX:
            raise FrameError(f"a frame announces {length} bytes of payload: at most {PAYLOAD_BYTES_MAX}")
        if flags & ~_MORE:
            raise FrameError(f"a frame has unknown flags {flags:#04x}: the other end may be a newer release")
        if flags & _MORE and not length:
            # Without this rule a peer could keep a receiver busy for ever below every limit.
            raise FrameError("an empty frame that promises more")
        if self._parts_bytes + length > self._message_bytes_max:
            raise FrameError(f"a message grows past {self._message_bytes_max} bytes")

    def _take_parts(self) -> bytes:
        message = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._parts_bytes = 0
        return message

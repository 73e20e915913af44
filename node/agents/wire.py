"""Messages between the node and one agent-host process: a length, then msgpack, over a socket pair.

The node sends `Run` and gets exactly one `Done` for it. A host's first message is `Hello` or `LoadFailed`. The host
runs code that is not ours, so the node checks every length and shape that it reads; the host trusts the node.
"""

from __future__ import annotations

import msgspec

from mesh.errors import FrameError

HOST_SOCKET_FD = 3
"""Where a host finds its end of the socket pair: the first descriptor after stdin, stdout and stderr."""

HEADER_BYTES = 4
DONE_OVERHEAD_BYTES_MAX = 64 * 1024
"""Room for an error text and framing beside the result. `Hello` must fit in it too: 256 agents take about 20 KiB."""

RUN_BYTES_MAX = 1 << 30
"""Payload and parent outputs of one job. Far above what a submit may hold; it only keeps the length field sane."""

ERROR_CHARS_MAX = 512
LOG_BYTES_MAX = 4096


class Run(msgspec.Struct, array_like=True, frozen=True):
    """One attempt at one step, for the host to run."""

    agent: str
    payload: bytes
    parents: dict[str, bytes]
    fence: str
    attempt: int
    task_id: str
    step_id: str
    step_name: str
    namespace: str
    trace: str


class Offer(msgspec.Struct, array_like=True, frozen=True):
    """One agent that a host has loaded, with its options; None leaves a value to the node."""

    name: str
    timeout_s: float | None
    max_attempts: int | None
    base_backoff_ms: int | None
    max_backoff_ms: int | None
    concurrency: int | None


class Hello(msgspec.Struct, array_like=True, frozen=True, tag="hello"):
    """The host has imported its files and is ready."""

    agents: list[Offer]


class LoadFailed(msgspec.Struct, array_like=True, frozen=True, tag="load-failed"):
    """The host could not import `file`, and ends. `line` is 0 when it is not known."""

    file: str
    line: int
    error: str


class Done(msgspec.Struct, array_like=True, frozen=True, tag="done"):
    """How the job ended. `kind` is one of `success`, `failed`, `rejected` (see node.env.Outcome)."""

    kind: str
    result: bytes
    error: str
    retire: bool
    """The host should not be used again: it has children left over, or ran out of memory."""


FromHost = Hello | LoadFailed | Done

_encoder = msgspec.msgpack.Encoder()
_run_decoder = msgspec.msgpack.Decoder(Run)
_from_host_decoder: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(Hello | LoadFailed | Done)


def encode_frame(message: Run | FromHost) -> bytearray:
    """The message with its length in front, ready to send."""
    frame = bytearray(HEADER_BYTES)
    _encoder.encode_into(message, frame, HEADER_BYTES)
    frame[:HEADER_BYTES] = (len(frame) - HEADER_BYTES).to_bytes(HEADER_BYTES, "big")
    return frame


def body_length(header: bytes | bytearray, length_max: int) -> int:
    """The length that a header announces; FrameError when it is above `length_max`."""
    length = int.from_bytes(header[:HEADER_BYTES], "big")
    if length > length_max:
        raise FrameError(f"a message of {length} bytes is above the limit of {length_max}")
    return length


def decode_run(body: bytes | bytearray | memoryview) -> Run:
    """A job from the node."""
    return _run_decoder.decode(body)


def decode_from_host(body: bytes | bytearray | memoryview) -> FromHost:
    """A message from a host; FrameError when it is not one."""
    try:
        return _from_host_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"an agent host sent something that is not a message: {error}") from error

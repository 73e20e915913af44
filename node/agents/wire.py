"""Messages between the node and one agent-host process: a length, then msgpack, over a socket pair.

The node sends `Run` and gets exactly one `Done` for it. Before that the host may send `Report` and `Save`; each `Save`
gets one `Saved`. The node may send one `CancelAsked`, which can arrive after `Done` was sent. A host's first message is
`Hello` or `LoadFailed`. The host runs code that is not ours, so the node checks every length and shape that it reads;
the host trusts the node.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from mesh.errors import FrameError
from node.agents.api import SNOOZE_MS_MAX

HOST_SOCKET_FD = 3
"""Where a host finds its end of the socket pair: the first descriptor after stdin, stdout and stderr."""

HEADER_BYTES = 4
DONE_OVERHEAD_BYTES_MAX = 64 * 1024
"""Room for an error text and framing beside the result. `Hello` must fit in it too: 256 agents take about 20 KiB."""

RUN_BYTES_MAX = 1 << 30
"""Payload and parent outputs of one job. Far above what a submit may hold; it only keeps the length field sane."""

ERROR_CHARS_MAX = 512
LOG_BYTES_MAX = 4096


class Run(msgspec.Struct, array_like=True, frozen=True, tag="run"):
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
    saved: bytes = b""
    """The latest checkpoint of an earlier attempt, as JSON; empty when there is none."""


class CancelAsked(msgspec.Struct, array_like=True, frozen=True, tag="cancel"):
    """Somebody asked to cancel the task of the job that runs."""


class Saved(msgspec.Struct, array_like=True, frozen=True, tag="saved"):
    """The answer to `Save`. `kind` is empty when it is durable, else `moved` (the lease has) or `failed`."""

    kind: str = ""
    error: str = ""


ToHost = Run | CancelAsked | Saved


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
    """How the job ended. `kind`: `success`, `failed`, `rejected`, `snoozed` or `cancelled` (see node.env.Outcome)."""

    kind: str
    result: bytes
    error: str
    retire: bool
    """The host should not be used again: it has children left over, or ran out of memory."""
    snooze_ms: Annotated[int, msgspec.Meta(ge=0, le=SNOOZE_MS_MAX)] = 0


class Report(msgspec.Struct, array_like=True, frozen=True, tag="progress"):
    """How far the job is. Gets no answer."""

    fraction: float
    text: str


class Save(msgspec.Struct, array_like=True, frozen=True, tag="save"):
    """Keep this checkpoint."""

    content: bytes


FromHost = Hello | LoadFailed | Done | Report | Save

_encoder = msgspec.msgpack.Encoder()
_to_host_decoder: msgspec.msgpack.Decoder[ToHost] = msgspec.msgpack.Decoder(Run | CancelAsked | Saved)
_from_host_decoder: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(
    Hello | LoadFailed | Done | Report | Save
)


def encode_frame(message: ToHost | FromHost) -> bytearray:
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


def decode_to_host(body: bytes | bytearray | memoryview) -> ToHost:
    """A message from the node."""
    return _to_host_decoder.decode(body)


def decode_from_host(body: bytes | bytearray | memoryview) -> FromHost:
    """A message from a host; FrameError when it is not one."""
    try:
        return _from_host_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"an agent host sent something that is not a message: {error}") from error

"""What travels on a stream once both ends have proven themselves: requests, replies and error codes. Pure.

A connection carries one request after another, as msgpack arrays:

    ["call", verb, body, speaks]              the request; the first one on a connection says what the asker speaks
    ["hello", speaks]                         the first reply to an asker that said so: what the server speaks
    ["part", body]*                           what comes before the answer, in order
    ["end", body] | ["error", code, text]     the answer; an error may end with the milliseconds after which to retry
    ["tick"]                                  sent while a request runs, so that silence means a dead peer

Both ends then use the highest version of the protocol that both speak (`mesh.protocol.common`); whoever says nothing
speaks version 1. More elements than these are ignored, so that a newer release may add some.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

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
from mesh.protocol import Speaks

TICK_S = 2.0
SILENCE_S = 10.0
"""Five ticks missed: the peer, or the way to it, is gone."""

_ERROR_CLASSES: Mapping[str, type[RelayMeshError]] = {
    "not_found": NotFoundError,
    "conflict": ConflictError,
    "limit": LimitError,
    "config": ConfigError,
    "unavailable": UnavailableError,
    "busy": UnavailableError,
    "protocol": UnavailableError,
    "store": StoreError,
    "record": RecordError,
    "frame": FrameError,
}
_CODES = {kind: code for code, kind in _ERROR_CLASSES.items() if code not in ("busy", "protocol")}


class Call(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """Asks for `verb`. The body is the verb's own business."""

    verb: str
    body: bytes
    speaks: Speaks | None = None


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """What the server speaks; sent once, before anything else."""

    speaks: Speaks


class Part(msgspec.Struct, frozen=True, array_like=True, tag="part"):
    """A piece that comes before the answer."""

    body: bytes


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """The answer."""

    body: bytes


class Error(msgspec.Struct, frozen=True, array_like=True, tag="error"):
    """The answer is an exception."""

    code: str
    text: str
    retry_after_ms: int | None = None

    def exception(self) -> RelayMeshError:
        """The exception of `mesh.errors` that the code stands for; the base class when the code is not known here."""
        kind = _ERROR_CLASSES.get(self.code, RelayMeshError)
        return kind(self.text, retry_after_ms=self.retry_after_ms) if kind is UnavailableError else kind(self.text)


class Tick(msgspec.Struct, frozen=True, array_like=True, tag="tick"):
    """The request is still running."""


Reply = Hello | Part | End | Error | Tick

_encoder = msgspec.msgpack.Encoder()
_call_decoder = msgspec.msgpack.Decoder(Call)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Hello | Part | End | Error | Tick)


def encode(message: Call | Reply) -> bytes:
    """The message as bytes."""
    if isinstance(message, Error) and message.retry_after_ms is None:
        return _encoder.encode(("error", message.code, message.text))  # as every release has said it
    return _encoder.encode(message)


def decode_call(data: bytes) -> Call:
    """The request in `data`; FrameError when it is none."""
    try:
        return _call_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"a message is no request: {error}") from error


def decode_reply(data: bytes) -> Reply:
    """The reply in `data`; FrameError when it is none."""
    try:
        return _reply_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"a message is no reply: {error}") from error


def error_code(error: RelayMeshError) -> str:
    """The code that stands for an exception on the wire; `internal` for one without a class of its own."""
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), "internal")

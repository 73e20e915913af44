"""The one way in which this node asks another something: a verb and a body over an authenticated stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from mesh.errors import FrameError
from mesh.ids import Address

T = TypeVar("T")


class Caller(Protocol):
    """Calls a peer; `node.streams.rpc.RpcPool` in production."""

    async def call(
        self,
        address: Address,
        verb: str,
        body: bytes,
        *,
        expect: str | None = None,
        timeout_s: float = 10.0,
        on_part: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> bytes:
        """The final answer, after `on_part` saw every part before it.

        `expect` is the node id that must be at the other end. Raises the peer's error as the same class, or
        UnavailableError when nobody answers.
        """
        ...


def decode(body: bytes, wanted: type[T]) -> T:
    """A body of another node as the type that its verb promises, or FrameError.

    A peer may run another release. Its nonsense must cost one call, never this process.
    """
    try:
        return msgspec.msgpack.decode(body, type=wanted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"not a {wanted.__name__}: {error}") from None

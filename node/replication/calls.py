"""The one way in which this node asks another something: a verb and a body over an authenticated stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from mesh.ids import Address


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

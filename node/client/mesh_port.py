"""Asks nodes of a mesh, one after another until one answers: the rules are the same for threads and for Trio.

A command that may be repeated is repeated when its answer was lost, so what it asks for must be the same however often
it arrives: submits carry a key for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from mesh.errors import NotFoundError, UnavailableError
from mesh.ids import parse_namespace

ROUNDS = 3
"""How often all targets are tried, with a pause before each further round: a node that restarts is back in a moment."""
PAUSE_S = 0.5


class Connections(Protocol):
    """How to reach the targets, by their places in a list."""

    count: int

    async def exchange(self, target: int, command: str, body: bytes, *, fresh: bool) -> Any:
        """The answer of a target to an admin request; raises the classes of `mesh.errors`.

        `fresh`: over a connection of its own, so that the request is never sent twice.
        """
        ...

    async def pause(self, seconds: float) -> None:
        """Wait."""
        ...

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        ...


class MeshPort:
    """A `Port` to the first target that answers; it stays with that one until it fails."""

    def __init__(self, connections: Connections, namespace: str) -> None:
        """ConfigError for a namespace that cannot be one."""
        self._connections = connections
        self._namespace = parse_namespace(namespace)
        self._first = 0

    async def ask(self, command: str, args: Mapping[str, Any], *, repeatable: bool = True) -> Any:
        """The answer of a node. UnavailableError when no target gave one, NotFoundError when none knows of it."""
        body = msgspec.msgpack.encode({"command": command, "namespace": self._namespace, "args": dict(args)})
        if not repeatable:
            return await self._connections.exchange(self._first, command, body, fresh=True)
        unknown: NotFoundError | None = None
        failure: UnavailableError | None = None
        for turn in range(ROUNDS):
            if turn:
                await self._connections.pause(PAUSE_S)
            for _ in range(self._connections.count):
                target = self._first
                try:
                    return await self._connections.exchange(target, command, body, fresh=False)
                except UnavailableError as error:
                    failure = error
                except NotFoundError as error:
                    unknown = error  # another node may have heard of a task that has not come to this one yet
                self._first = (target + 1) % self._connections.count
            if unknown is not None and failure is None:
                break
        refusal = unknown or failure
        assert refusal is not None
        raise refusal

    def now(self) -> float:
        """Seconds on the connections' clock."""
        return self._connections.now()

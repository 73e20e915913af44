"""Connections for plain threads: each call takes an idle one or opens another, so threads do not wait for each other.

The methods are coroutines for the sake of their port and never suspend: they block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from mesh.errors import RelayMeshError
from node.admin_client import AdminClient, Target

IDLE_S = 30.0
"""Half of the time after which a node closes a silent connection."""
IDLE_MAX = 8
"""Idle connections that are kept; each is a file descriptor here and at the node."""


class SyncConnections:
    """Idle connections to a list of targets. Usable by several threads at once."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self.count = len(targets)
        self._lock = threading.Lock()
        self._idle: list[tuple[int, AdminClient, float]] = []
        """Target, connection, and when it was last used; the longest idle one first."""

    async def exchange(self, target: int, command: str, body: bytes, *, fresh: bool) -> Any:
        """The answer of one target, see `Connections`."""
        client = None if fresh else self._take(target)
        client = client or AdminClient(self._targets[target])
        try:
            answer = client.exchange(command, body)
        except RelayMeshError:
            self._give_back(target, client)  # whatever lost its answer has closed its connection
            raise
        except BaseException:
            client.close()
            raise
        self._give_back(target, client)
        return answer

    async def pause(self, seconds: float) -> None:
        """Block this long."""
        time.sleep(seconds)  # noqa: ASYNC251  (it never runs in a loop)

    def now(self) -> float:
        """Seconds on the monotonic clock."""
        return time.monotonic()

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, client, _ in idle:
            client.close()

    def _take(self, target: int) -> AdminClient | None:
        stale: list[AdminClient] = []
        found: AdminClient | None = None
        with self._lock:
            while self._idle and self._idle[0][2] < time.monotonic() - IDLE_S:
                stale.append(self._idle.pop(0)[1])
            for place, (owner, client, _) in reversed(list(enumerate(self._idle))):
                if owner == target:
                    found = client
                    del self._idle[place]
                    break
        for client in stale:
            client.close()
        return found

    def _give_back(self, target: int, client: AdminClient) -> None:
        with self._lock:
            self._idle.append((target, client, time.monotonic()))
            surplus = self._idle.pop(0)[1] if len(self._idle) > IDLE_MAX else None
        if surplus is not None:
            surplus.close()

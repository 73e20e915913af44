"""A person with the directory of a simulated mesh: talks to one node as long as it answers and then to another.

He takes a refusal for "try again", and believes the mesh before his own notes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from mesh.errors import ConflictError, RelayMeshError

if TYPE_CHECKING:
    from chaos.simulation.host import Host
    from chaos.simulation.world import World

CALL_S = 3.0
AGAIN_S = 0.5


class DirectoryHolder:
    """What every use of the directory has in common. `name` is that of his own random numbers."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.draws = world.stream(name)
        self.host: Host | None = None
        """Whom he asks first."""

    async def reach(self, reached: Callable[[], bool], ask: Callable[[Host], Awaitable[None]]) -> None:
        """Ask until it is reached. What `ask` raises is a refusal, or means that nobody answered."""
        while not reached():
            host = self._someone()
            try:
                await ask(host)
            except ConflictError:
                await trio.sleep(AGAIN_S)
            except (RelayMeshError, TimeoutError):
                self.host = None  # it is down or cannot store anything: another one, then
                await trio.sleep(AGAIN_S)

    def _someone(self) -> Host:
        running = self.world.running()
        if self.host is None or self.host not in running:
            self.host = self.draws.choice(running or list(self.world.hosts.values()))
        return self.host

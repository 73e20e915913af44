"""The operator who rotates the gossip keys of a simulated mesh, as `relaymesh mesh keys` does on a real one.

The day of grace before a key is removed passes in no time: what may go wrong then does so sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio

from chaos.observations import RingAccepted
from chaos.simulation.directory_holder import CALL_S, DirectoryHolder
from mesh import key_rotation
from mesh.ca_statements import Statement
from mesh.errors import ConflictError
from mesh.key_rotation import GRACE_MS, open_ring, sign_ring
from mesh.sealing import SECRET_BYTES, KeyRing

if TYPE_CHECKING:
    from chaos.simulation.host import Host
    from chaos.simulation.world import World

ROTATION_MAX_S = 25.0
"""After this he gives up, whatever was reached: a mesh that he cannot reach needs no new keys."""


class KeyOperator:
    """One person with the mesh directory; several rotations come one after another."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._cas = world.ca_operator
        self._holder = DirectoryHolder(world, "key operator")
        self._ring: KeyRing = world.credentials.ring
        self._said: Statement | None = None

    async def rotate(self, host: Host) -> None:
        """Add a key, promote it, and take the former one away in two steps; through this node while it answers."""
        async with self._cas.busy:
            self._holder.host = host
            with trio.move_on_after(ROTATION_MAX_S):
                secret, former = self._holder.draws.randbytes(SECRET_BYTES), self._ring.primary.key_id
                await self._reach(lambda ring: key_rotation.add(ring, secret))
                await self._reach(lambda ring: key_rotation.promote(ring, ring.keys()[-1].key_id))
                await self._reach(lambda ring: key_rotation.retire(ring, former, 0))
                await self._reach(lambda ring: key_rotation.retire(ring, former, GRACE_MS))

    async def _reach(self, change: Callable[[KeyRing], KeyRing]) -> None:
        """Bring the mesh one ring further."""
        wanted = self._ring.number + 1

        async def ask(host: Host) -> None:
            await self._ask_for_next(host, wanted, change)

        await self._holder.reach(lambda: self._ring.number >= wanted, ask)

    async def _ask_for_next(self, host: Host, wanted: int, change: Callable[[KeyRing], KeyRing]) -> None:
        shown = await host.call("mesh-keys", {"withStatement": True}, CALL_S)
        if shown["statement"]:
            self._believe(shown["statement"])
        if self._ring.number >= wanted:
            return  # what was asked for before has happened after all
        if shown["ring"] < self._ring.number:
            raise ConflictError("this node is behind")
        statement = sign_ring(self._cas.signing_key, self._cas.authority.cluster, change(self._ring))
        answer = await host.call("mesh-keys-install", {"statement": statement}, CALL_S)
        self._tell(host, answer)
        self._believe(statement)

    def _believe(self, raw: bytes) -> None:
        ring, said = open_ring(self._cas.authority, raw)
        if self._said is None or said.order > self._said.order:
            self._ring, self._said = ring, said

    def _tell(self, host: Host, answer: Mapping[str, Any]) -> None:
        grown = len(answer["keys"]) > len(self._ring.keys())
        self._world.tell(
            RingAccepted(
                at_ms=self._world.now_ms(),
                host=host.name,
                number=answer["ring"],
                primary=next(key["keyId"] for key in answer["keys"] if key["state"] == "primary"),
                active=tuple(answer["countedMembers"]),
                grown=grown,
            )
        )

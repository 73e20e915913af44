"""The operator who rotates the CA of a simulated mesh, as `relaymesh mesh ca` does on a real one.

He holds the mesh directory: the keys of all CAs, and which of them sign. The gossip keys are rotated by it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chaos.observations import CaListAccepted
from chaos.simulation.directory_holder import CALL_S, DirectoryHolder
from mesh import authorities as cas
from mesh.authorities import Authorities, CaState, Reissued, open_authorities, sign_authorities
from mesh.ca_statements import NOTHING_SAID
from mesh.errors import ConflictError
from mesh.identity import Authority, content_of, issue
from mesh.key_rotation import open_ring, sign_ring
from mesh.sealing import KeyRing

if TYPE_CHECKING:
    from chaos.simulation.host import Host
    from chaos.simulation.world import World

ROTATION_MAX_S = 40.0
"""After this he gives up, whatever was reached."""
ENROLMENTS_TO_COME = 4
"""A simulated host brings a certificate of the first CA whenever it is enrolled anew; what it will show is known."""

Change = Callable[[Authorities, Sequence[Reissued]], Authorities]


class CaOperator:
    """One person with the mesh directory; whatever is done with it comes one after another."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._holder = DirectoryHolder(world, "ca operator")
        self._keys = {world.credentials.ca_public_key: world.credentials.ca_key}
        self._order = NOTHING_SAID
        self.authorities = cas.first_authorities(world.credentials.ca_public_key)
        self.authority = Authority(world.credentials.ca_public_key)
        """What is believed in the name of this mesh."""
        self.busy = trio.Lock()
        """Held by whoever uses the directory."""

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The key of the CA that signs now."""
        return self._keys[self.authorities.signing.public_key]

    async def rotate(self, host: Host) -> None:
        """Add a CA, promote it, and retire the former one; through this node while it answers."""
        async with self.busy:
            self._holder.host = host
            with trio.move_on_after(ROTATION_MAX_S):
                key = self._world.credentials.key(f"ca {len(self._keys)}")
                public_key = key.public_key().public_bytes_raw()
                self._keys[public_key] = key
                new, former = cas.ca_name(public_key), self.authorities.signing.name
                await self._reach(
                    lambda: self._state(new) is not None,
                    lambda now, _: cas.add(now, self._keys[now.signing.public_key], public_key),
                )
                await self._reach(
                    lambda: self._state(new) is CaState.SIGNING,
                    lambda now, reissued: cas.promote(now, new, reissued),
                )
                await self._reach(
                    lambda: self._state(former) is CaState.RETIRED,
                    lambda now, reissued: cas.retire(now, former, reissued),
                )

    def _state(self, name: str) -> CaState | None:
        return next((ca.state for ca in self.authorities.cas if ca.name == name), None)

    async def _reach(self, reached: Callable[[], bool], change: Change) -> None:
        async def ask(host: Host) -> None:
            await self._ask_for_next(host, reached, change)

        await self._holder.reach(reached, ask)

    async def _ask_for_next(self, host: Host, reached: Callable[[], bool], change: Change) -> None:
        shown = await host.call("mesh-ca", {"withStatement": True}, CALL_S)
        if shown["statement"]:
            self._believe(shown["statement"])
        if reached():
            return  # what was asked for before has happened after all
        if shown["number"] < self.authorities.number:
            raise ConflictError("this node is behind")
        key = self._keys[change(self.authorities, ()).signing.public_key]
        following = change(self.authorities, self._reissued(key))
        statement = sign_authorities(key, self.authority.cluster, following)
        said = {"statement": statement, **await self._ring_anew(host, key)}
        self._tell(host, await host.call("mesh-ca-install", said, CALL_S), following)
        self._believe(statement)

    async def _ring_anew(self, host: Host, key: Ed25519PrivateKey) -> dict[str, bytes]:
        said = (await host.call("mesh-keys", {"withStatement": True}, CALL_S))["statement"]
        if not said or key is self.signing_key:
            return {}
        ring, _ = open_ring(self.authority, said)
        return {"ring": sign_ring(key, self.authority.cluster, KeyRing([*ring], number=ring.number + 1))}

    def _reissued(self, key: Ed25519PrivateKey) -> list[Reissued]:
        made = []
        for name, host in self._world.hosts.items():
            for number in range(1, host.enrolment + ENROLMENTS_TO_COME):
                certificate = self._world.credentials.identity(name, number).certificate
                role, _, _, public_key = content_of(certificate)
                again = issue(
                    key, cluster=self.authority.cluster, role=role, name=name, enrolment=number, public_key=public_key
                )
                made.append(Reissued(again))
        return made

    def _believe(self, raw: bytes) -> None:
        authorities, said = open_authorities(self.authorities, self.authority.cluster, raw)
        if said.order > self._order:
            self.authorities, self._order = authorities, said.order
            self.authority.trust(authorities.trusted, [each.certificate for each in authorities.reissued])

    def _tell(self, host: Host, answer: Mapping[str, Any], following: Authorities) -> None:
        self._world.tell(
            CaListAccepted(
                at_ms=self._world.now_ms(),
                host=host.name,
                number=following.number,
                signing=following.signing.name,
                active=tuple(answer["countedMembers"]),
                added=cas.only_added(self.authorities, following),
            )
        )

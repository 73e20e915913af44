"""Learns what all members have seen, so that deleted rows can be forgotten: two looks at everybody's vector.

The same rounds find the origins that no row is left of, so that the vectors need not list them for ever.

Promises: nothing is asked while nothing is deleted, and few origins are old. Each member looks by itself; what one
learns it tells the others, who need not look again then. A member that cannot be asked counts with the last vector that
it told, which is a lower bound; one that never told any holds up the forgetting until it is pruned. `mesh.stability`
says why two looks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated

import msgspec
import trio

from mesh.errors import RelayMeshError
from mesh.ids import Address, Origin
from mesh.stability import Look, Stable, look, settle
from mesh.version_vector import VersionVector
from node.env import Env
from node.replication.calls import Caller, decode
from node.storage.reader import Reader
from node.storage.store import Commit, Store
from node.storage.transaction import Transaction

log = logging.getLogger(__name__)

BETWEEN_LOOKS_S = 2.0
"""What was under way at the first look has arrived by the second, in a mesh that is not cut."""
ROUND_PAUSE_S = 15.0
ROUND_PAUSE_MAX_S = 600.0
"""A round that brought nothing is tried again, less and less often: a member may be away for days."""
OLD_ORIGINS_MAX = 16
"""So many more origins than members, and more than after the last round, are worth a round of their own."""
COLLAPSE_ORIGINS_MAX = 256
"""Origins that one round asks about."""


class VectorRequest(msgspec.Struct, array_like=True):
    """What have you seen? And here is what we know to be stable."""

    stable: bytes
    candidates: Annotated[list[tuple[str, int]], msgspec.Meta(max_length=COLLAPSE_ORIGINS_MAX)] = []
    """Origins of which no row is left at the asker."""


class VectorAnswer(msgspec.Struct, array_like=True):
    """What is durable here, and what we know to be stable."""

    vector: bytes
    stable: bytes
    empty: list[tuple[str, int]] = []
    """Those of the candidates of which no row is left here either, and under which we do not write."""


async def serve_vector(store: Store, body: bytes) -> bytes:
    """Take in what a peer knows, and tell it what we have seen."""
    request = decode(body, VectorRequest)
    await store.adopt(Stable.from_wire(request.stable))
    vector = store.vector
    empty: list[Origin] = []
    if request.candidates:
        # Rows and vector as of one transaction, or a row could come in between.
        vector, empty = await store.read(partial(_vector_and_empty, writer=store.origin))
    asked = set(request.candidates)
    told = [(origin.node, origin.incarnation) for origin in empty if tuple(origin) in asked]
    return msgspec.msgpack.encode(VectorAnswer(vector.to_wire(), store.stable.to_wire(), told))


class StabilityRounds:
    """Looks at everybody's vector for as long as there are tombstones."""

    def __init__(
        self,
        env: Env,
        store: Store,
        calls: Caller,
        *,
        members: Callable[[], Mapping[str, Address | None]],
        pause_s: float = ROUND_PAUSE_S,
    ) -> None:
        """`members` gives the other members that were not pruned, with their address, or None for one not to be asked.

        A round begins `pause_s` after the first deletion, give or take a half.
        """
        self._env = env
        self._store = store
        self._calls = calls
        self._members = members
        self._pause_s = pause_s
        self._wake = trio.Event()
        self._first: Look | None = None
        self._old_origins = 0
        """Origins beyond those of members, as of the last round."""
        self.rounds_total = 0
        self.is_looking = False
        """Whether a round is under way: what it learns is written down at its end."""
        store.on_commit(self._on_commit)

    def _on_commit(self, commit: Commit) -> None:
        if any(change.after.deleted for change in commit.changes) or (commit.vector_changed and self._has_old_origins):
            self._wake.set()

    def _count_old_origins(self) -> int:
        return self._store.vector.origin_count - len(self._members()) - 1

    @property
    def _has_old_origins(self) -> bool:
        enough = self._old_origins + OLD_ORIGINS_MAX
        # Asked at every commit: who the members are matters only when there are origins enough.
        return self._store.vector.origin_count >= enough and self._count_old_origins() >= enough

    async def run(self) -> None:
        """Look whenever there is something to forget, until cancelled."""
        pause_s = self._pause_s
        while True:
            if not self._store.has_tombstones and not self._has_old_origins:
                pause_s = self._pause_s
                await self._wake.wait()
            self._wake = trio.Event()
            # A half to one and a half: members that hear of a deletion together do not all look.
            await self._env.clock.sleep(pause_s * (0.5 + self._env.rng.random()))
            if not self._store.has_tombstones and not self._has_old_origins:
                continue
            self.is_looking = True
            try:
                grew = await self.round()
                grew = await self.collapse() or grew
            except RelayMeshError as error:
                log.info("cannot learn what all members have seen: %s", error)
                grew = False
            self.is_looking = False
            pause_s = self._pause_s if grew else min(2 * pause_s, max(self._pause_s, ROUND_PAUSE_MAX_S))

    async def round(self) -> bool:
        """Two looks, the first of which may be an earlier round's second. True when more is stable than before."""
        self.rounds_total += 1
        if self._first is None:
            self._first = await self._look()
            await self._env.clock.sleep(BETWEEN_LOOKS_S)
        first, second = self._first, await self._look()
        self._first = second
        if first is None or second is None:
            return False
        known = self._store.stable
        found = settle(known, first, second)
        if known.includes(found):
            return False
        await self._store.adopt(found)
        await self._ask_all()  # whoever hears of it need not look
        return True

    async def collapse(self) -> bool:
        """Find origins that every member has seen alike, and of which nobody has a row; True when there are any."""
        found = False
        vector, empty = await self._store.read(partial(_vector_and_empty, writer=self._store.origin))
        if empty:
            found = await self._collapse_what_is_empty_everywhere(vector, empty[:COLLAPSE_ORIGINS_MAX])
        self._old_origins = self._count_old_origins()
        return found

    async def _collapse_what_is_empty_everywhere(self, ours: VersionVector, candidates: list[Origin]) -> bool:
        answers = await self._ask_all([(origin.node, origin.incarnation) for origin in candidates])
        if answers.keys() != self._members().keys():
            return False
        gone = VersionVector()
        told = [(VersionVector.from_wire(answer.vector), set(answer.empty)) for answer in answers.values()]
        for origin in candidates:
            seen = ours.ranges(origin)
            if all(vector.ranges(origin) == seen and tuple(origin) in empty for vector, empty in told):
                for lo, hi in seen:
                    gone.add(origin, lo, hi)
        if gone.is_empty:
            return False
        log.info("%d origins of former processes have no row left: they leave the vectors", len(gone.origins()))
        await self._store.adopt(Stable(collapsed=gone))
        await self._ask_all()
        return True

    async def _look(self) -> Look | None:
        told = {node: VersionVector.from_wire(answer.vector) for node, answer in (await self._ask_all()).items()}
        remembered = await self._store.read(_remembered)
        vectors: dict[str, VersionVector | None] = {
            node: told.get(node, remembered.get(node)) for node in self._members()
        }
        changed = {node: vector for node, vector in told.items() if remembered.get(node) != vector}
        if changed:
            await self._store.write(partial(_remember, vectors=changed))
        # Who has not heard of the collapsed dots yet still lists them; who was not asked did when it told.
        gone = self._store.stable.collapsed
        others = [None if vector is None else vector.without(gone) for vector in vectors.values()]
        return look([self._store.vector.copy(), *others])

    async def _ask_all(self, candidates: Sequence[tuple[str, int]] = ()) -> dict[str, VectorAnswer]:
        told: dict[str, VectorAnswer] = {}
        body = msgspec.msgpack.encode(VectorRequest(self._store.stable.to_wire(), list(candidates)))

        async def ask(node: str, address: Address) -> None:
            try:
                answer = decode(await self._calls.call(address, "vector", body, expect=node), VectorAnswer)
                told[node] = answer
                await self._store.adopt(Stable.from_wire(answer.stable))
            except RelayMeshError as error:
                log.info("cannot ask %s what it has seen: %s", node, error)

        async with trio.open_nursery() as nursery:
            for node, address in self._members().items():
                if address is not None:
                    nursery.start_soon(ask, node, address)
        return told


def _vector_and_empty(reader: Reader, *, writer: Origin) -> tuple[VersionVector, list[Origin]]:
    """What was seen, and the origins but `writer` of which no row is left, not even one that was put aside."""
    return reader.vector(), [origin for origin in reader.origins_without_rows() if origin != writer]


def _remembered(reader: Reader) -> dict[str, VersionVector]:
    found = reader.sql("SELECT node_id, vector FROM replicas ORDER BY node_id")
    return {str(node): VersionVector.from_wire(vector) for node, vector in found}


def _remember(tx: Transaction, *, vectors: Mapping[str, VersionVector]) -> None:
    for node, vector in vectors.items():
        tx.execute("INSERT OR REPLACE INTO replicas VALUES (?, ?)", (node, vector.to_wire()))

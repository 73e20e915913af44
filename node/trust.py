"""What this node holds of the CA's word: the key ring in use and the list of revocations, in a file of mode 0600.

Promises: a statement is on the disk before anything acts on it, and only a later one ever replaces it. The file is
apart from the database, so that no snapshot of rows carries a secret. A node without it begins with the ring of its
enrolment and fetches the rest (`node.trust_fetch`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import msgspec
import trio

from mesh.ca_statements import NOTHING_SAID, Statement
from mesh.errors import ConflictError, RecordError, StoreError
from mesh.identity import Authority
from mesh.key_rotation import key_name, only_grew, open_ring
from mesh.membership import Member
from mesh.revocations import Revocations, open_revocations
from mesh.sealing import KeyRing
from node.env import Env, PeerIdentity
from node.replication.calls import decode

log = logging.getLogger(__name__)

TRUST_FILE = "trust.json"
"""Inside a node's root."""


class _TrustFile(msgspec.Struct, frozen=True, kw_only=True):
    schema: Literal["relaymesh.trust.v1"]
    ring: bytes
    revocations: bytes


Orders = tuple[tuple[int, bytes], tuple[int, bytes]]
"""Which ring and which revocations somebody has, as `Statement.order`."""


class Trust:
    """The ring and the revocations of one node. `open` comes first."""

    def __init__(self, env: Env, authority: Authority, *, ring: KeyRing, ring_statement: bytes) -> None:
        """`ring` is the one of the enrolment, and `ring_statement` the CA's word for it; empty for the first ring."""
        self._env = env
        self._authority = authority
        self._enrolled_statement = ring_statement
        self.ring = ring
        self.revocations = Revocations()
        self._ring_said: Statement | None = None
        self._revocations_said: Statement | None = None
        self._changing = trio.Lock()
        self.on_changed: list[Callable[[], None]] = []
        """Called after a change was made durable, in the same step of this process."""
        self.revocations_loaded_at_ms = 0

    @property
    def orders(self) -> Orders:
        """What we have."""
        ring, revocations = self._ring_said, self._revocations_said
        return ring.order if ring else NOTHING_SAID, revocations.order if revocations else NOTHING_SAID

    @property
    def ring_statement(self) -> bytes:
        """The CA's word for our ring; empty while it is the first one."""
        return self._ring_said.raw if self._ring_said else b""

    @property
    def revocations_statement(self) -> bytes:
        """The CA's word for our list; empty while nobody was ever revoked."""
        return self._revocations_said.raw if self._revocations_said else b""

    async def open(self) -> None:
        """Read what was stored. A file that does not hold is set at nought, loudly: peers have what it said."""
        self._take(*self._newer(self._enrolled_statement, b""))
        try:
            data = await self._env.writer_thread.run(partial(self._env.disk.load, TRUST_FILE))
            if data is None:
                return
            file = msgspec.json.decode(data, type=_TrustFile)
            self._take(*self._newer(file.ring, file.revocations))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, RecordError) as error:
            log.error("%s is damaged and not used, its content is fetched from peers: %s", TRUST_FILE, error)

    async def accept(self, ring: bytes, revocations: bytes) -> bool:
        """Take over statements that are later than ours, durably; empty ones say nothing. True when one was news.

        RecordError when one does not hold, StoreError when the disk does not take it; then nothing has changed.
        """
        async with self._changing:
            new_ring, new_revocations = self._newer(ring, revocations)
            if new_ring is None and new_revocations is None:
                return False
            file = _TrustFile(
                schema="relaymesh.trust.v1",
                ring=new_ring[1].raw if new_ring else self.ring_statement,
                revocations=new_revocations[1].raw if new_revocations else self.revocations_statement,
            )
            try:
                data = msgspec.json.encode(file)
                await self._env.writer_thread.run(partial(self._env.disk.save, TRUST_FILE, data))
            except OSError as error:
                raise StoreError(
                    f"{TRUST_FILE} cannot be written ({error.strerror}): free the disk, or mend it"
                ) from error
            self._take(new_ring, new_revocations)
            for tell in self.on_changed:
                tell()
            return True

    def _newer(
        self, ring: bytes, revocations: bytes
    ) -> tuple[tuple[KeyRing, Statement] | None, tuple[Revocations, Statement] | None]:
        """What is later than ours, opened."""
        ours_ring, ours_revocations = self.orders
        opened_ring = open_ring(self._authority, ring) if ring else None
        opened_list = open_revocations(self._authority, revocations) if revocations else None
        return (
            opened_ring if opened_ring and opened_ring[1].order > ours_ring else None,
            opened_list if opened_list and opened_list[1].order > ours_revocations else None,
        )

    def _take(self, ring: tuple[KeyRing, Statement] | None, revocations: tuple[Revocations, Statement] | None) -> None:
        if ring is not None:
            self.ring, self._ring_said = ring
            log.info(
                "key ring %d is in use, its primary key is %s", self.ring.number, key_name(self.ring.primary.key_id)
            )
        if revocations is not None:
            self.revocations, self._revocations_said = revocations
            self._authority.refusal = self.revocations.refusal
            self.revocations_loaded_at_ms = int(self._env.clock.wall() * 1000)
            log.info("revocations %d are enforced, %d in all", self.revocations.number, len(self.revocations))

    async def serve(self, peer: PeerIdentity, body: bytes, send: object) -> bytes:
        """The verb `trust`: the asker says what it has, and gets what is later."""
        ring, revocations = decode(body, tuple[tuple[int, bytes], tuple[int, bytes]])
        ours_ring, ours_revocations = self.orders
        return msgspec.msgpack.encode(
            (
                self.ring_statement if ours_ring > ring else b"",
                self.revocations_statement if ours_revocations > revocations else b"",
            )
        )

    # --- the operator's next ring ---

    def check_next_ring(self, raw: bytes, others: Iterable[Member], *, force: bool) -> None:
        """ConflictError unless this ring may follow ours now.

        Whoever has not installed our ring yet would miss what the next one takes away or seals with, and hear nobody.
        So that waits until every other ALIVE or SUSPECT member says that it has ours; `force` leaves them behind.
        """
        ring, statement = open_ring(self._authority, raw)
        if statement.order <= self.orders[0]:
            raise ConflictError(f"ring {self.ring.number} is in use here, and the one given has number {ring.number}")
        behind = lagging(others, self.ring.number)
        if behind and not force and not only_grew(self.ring, ring):
            raise ConflictError(
                f"ring {self.ring.number} is not installed yet on {', '.join(behind)}: try again when `mesh keys list` "
                "shows nobody lagging, or mend those nodes"
            )


def lagging(others: Iterable[Member], ring: int) -> list[str]:
    """The ALIVE and SUSPECT members that have not said yet that they installed this ring."""
    return [member.node_id for member in others if member.active and member.ring < ring]

"""What this node holds of the CA's word: key ring, revocations and which CAs are trusted, in a file of mode 0600.

Promises: a statement is on the disk before anything acts on it, and only a later one ever replaces it. Statements that
come together are judged by the CAs that are trusted after all of them, and taken over together or not at all. The file
is apart from the database, so that no snapshot of rows carries a secret. A node without it begins with what its
enrolment brought and fetches the rest (`node.trust_fetch`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, NamedTuple

import msgspec
import trio

from mesh.authorities import KIND as AUTHORITIES
from mesh.authorities import Authorities, ca_name, first_authorities, only_added, open_authorities
from mesh.ca_statements import NOTHING_SAID, Statement, unproven_statement
from mesh.errors import ConflictError, RecordError, StoreError
from mesh.identity import Authority
from mesh.key_rotation import KIND as RING
from mesh.key_rotation import key_name, only_grew, open_ring
from mesh.membership import Member, Status
from mesh.revocations import KIND as REVOCATIONS
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
    authorities: bytes = b""


Order = tuple[int, bytes]
"""Which statement of a kind somebody has, as `Statement.order`."""


class Orders(msgspec.Struct, frozen=True, array_like=True):
    """Which statements somebody has."""

    ring: Order
    revocations: Order
    authorities: Order = NOTHING_SAID


class Statements(msgspec.Struct, frozen=True, array_like=True):
    """What is later than what somebody has; empty where nothing is."""

    ring: bytes = b""
    revocations: bytes = b""
    authorities: bytes = b""


def encode_trust(said: Orders | Statements) -> bytes:
    """For the wire. While no CA was ever rotated nothing is said of them: releases that know of none refuse that."""
    fields = msgspec.structs.astuple(said)
    return msgspec.msgpack.encode(fields if fields[2] not in (b"", NOTHING_SAID) else fields[:2])


class _Later(NamedTuple):
    """Statements that are later than ours, opened."""

    ring: tuple[KeyRing, Statement] | None
    revocations: tuple[Revocations, Statement] | None
    authorities: tuple[Authorities, Statement] | None


class Trust:
    """The ring, the revocations and the CAs of one node. `open` comes first."""

    def __init__(
        self,
        env: Env,
        authority: Authority,
        *,
        ring: KeyRing,
        ring_statement: bytes,
        ca_root: bytes = b"",
        authorities_statement: bytes = b"",
    ) -> None:
        """What the enrolment brought: a ring and the mesh's CAs, each with the CA's word for it, empty for the first.

        `ca_root` is the X.509 form of the first CA, where streams are TLS.
        """
        self._env = env
        self._authority = authority
        self._enrolled = Statements(ring_statement, b"", authorities_statement)
        self.authorities = first_authorities(authority.ca_public_key, ca_root)
        self._authorities_said: Statement | None = None
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
        return Orders(_order(self._ring_said), _order(self._revocations_said), _order(self._authorities_said))

    @property
    def ring_statement(self) -> bytes:
        """The CA's word for our ring; empty while it is the first one."""
        return self._ring_said.raw if self._ring_said else b""

    @property
    def revocations_statement(self) -> bytes:
        """The CA's word for our list; empty while nobody was ever revoked."""
        return self._revocations_said.raw if self._revocations_said else b""

    @property
    def authorities_statement(self) -> bytes:
        """The CA's word for which CAs are trusted; empty while none was ever rotated."""
        return self._authorities_said.raw if self._authorities_said else b""

    async def open(self) -> None:
        """Read what was stored. A file that does not hold is set at nought, loudly: peers have what it said."""
        try:
            data = await self._env.writer_thread.run(partial(self._env.disk.load, TRUST_FILE))
            if data is not None:
                file = msgspec.json.decode(data, type=_TrustFile)
                stored = Statements(file.ring, file.revocations, file.authorities)
                self._take(self._later(stored, is_ours=True))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, RecordError) as error:
            log.error("%s is damaged and not used, its content is fetched from peers: %s", TRUST_FILE, error)
        try:
            # After the file: an enrolment may be newer, and what the file says be of a CA that was retired since.
            self._take(self._later(self._enrolled))
        except RecordError as error:
            log.error("what the enrolment says of keys and CAs is not used, peers have what came after it: %s", error)

    def check(self, ring: bytes, revocations: bytes, authorities: bytes = b"") -> None:
        """Raise RecordError where `accept` would; nothing changes."""
        self._later(Statements(ring, revocations, authorities))

    async def accept(self, ring: bytes, revocations: bytes, authorities: bytes = b"") -> bool:
        """Take over statements that are later than ours, durably; empty ones say nothing. True when one was news.

        RecordError when one does not hold, StoreError when the disk does not take it; then nothing has changed.
        """
        async with self._changing:
            later = self._later(Statements(ring, revocations, authorities))
            if not any(later):
                return False
            file = _TrustFile(
                schema="relaymesh.trust.v1",
                ring=later.ring[1].raw if later.ring else self.ring_statement,
                revocations=later.revocations[1].raw if later.revocations else self.revocations_statement,
                authorities=later.authorities[1].raw if later.authorities else self.authorities_statement,
            )
            try:
                data = msgspec.json.encode(file)
                await self._env.writer_thread.run(partial(self._env.disk.save, TRUST_FILE, data))
            except OSError as error:
                raise StoreError(
                    f"{TRUST_FILE} cannot be written ({error.strerror}): free the disk, or mend it"
                ) from error
            self._take(later)
            for tell in self.on_changed:
                tell()
            return True

    def _later(self, said: Statements, *, is_ours: bool = False) -> _Later:
        """What is later than ours, opened. What we stored was believed then, and may be of a CA that is retired now."""
        ours = self.orders
        authorities, authority = None, self._authority
        if self._is_later(said.authorities, AUTHORITIES, ours.authorities):
            authorities = open_authorities(self.authorities, authority.cluster, said.authorities)
            authority = Authority(authority.ca_public_key)
            opened = authorities[0]
            authority.trust([ca.public_key for ca in opened.cas] if is_ours else opened.trusted, ())
        return _Later(
            open_ring(authority, said.ring) if self._is_later(said.ring, RING, ours.ring) else None,
            open_revocations(authority, said.revocations)
            if self._is_later(said.revocations, REVOCATIONS, ours.revocations)
            else None,
            authorities,
        )

    def _is_later(self, raw: bytes, kind: str, ours: Order) -> bool:
        # Before the signature: an older one may be of a CA that was retired since, and is no forgery for that.
        return bool(raw) and unproven_statement(self._authority.cluster, raw, kind).order > ours

    def _take(self, later: _Later) -> None:
        if later.authorities is not None:
            self.authorities, self._authorities_said = later.authorities
            reissued = [each.certificate for each in self.authorities.reissued]
            self._authority.trust(self.authorities.trusted, reissued)
            log.info(
                "CA list %d is followed, the signing CA is %s", self.authorities.number, self.authorities.signing.name
            )
        if later.ring is not None:
            self.ring, self._ring_said = later.ring
            log.info(
                "key ring %d is in use, its primary key is %s", self.ring.number, key_name(self.ring.primary.key_id)
            )
        if later.revocations is not None:
            self.revocations, self._revocations_said = later.revocations
            self._authority.refusal = self.revocations.refusal
            self.revocations_loaded_at_ms = int(self._env.clock.wall() * 1000)
            log.info("revocations %d are enforced, %d in all", self.revocations.number, len(self.revocations))

    async def serve(self, peer: PeerIdentity, body: bytes, send: object) -> bytes:
        """The verb `trust`: the asker says what it has, and gets what is later."""
        theirs, ours = decode(body, Orders), self.orders
        return encode_trust(
            Statements(
                self.ring_statement if ours.ring > theirs.ring else b"",
                self.revocations_statement if ours.revocations > theirs.revocations else b"",
                self.authorities_statement if ours.authorities > theirs.authorities else b"",
            )
        )

    # --- the operator's next step ---

    def check_next_ring(self, raw: bytes, others: Iterable[Member], *, force: bool) -> None:
        """ConflictError unless this ring may follow ours now.

        Whoever has not installed our ring yet would miss what the next one takes away or seals with, and hear nobody.
        So that waits until every other ALIVE or SUSPECT member says that it has ours; `force` leaves them behind.
        """
        ring, statement = open_ring(self._authority, raw)
        if statement.order <= self.orders.ring:
            raise ConflictError(f"ring {self.ring.number} is in use here, and the one given has number {ring.number}")
        behind = lagging(others, self.ring.number)
        if behind and not force and not only_grew(self.ring, ring):
            raise ConflictError(
                f"ring {self.ring.number} is not installed yet on {', '.join(behind)}: try again when `mesh keys list` "
                "shows nobody lagging, or mend those nodes"
            )

    def check_next_authorities(self, said: Statements, members: Iterable[Member], *, force: bool) -> None:
        """ConflictError unless this list of CAs may follow ours now. `members` are all others that we know.

        Whoever has not installed our list yet would not believe what a new signing CA says. Who holds no certificate of
        a CA that stays would be believed by nobody, so a CA is retired only when every other ALIVE or SUSPECT member
        proves that it has one, and every DEAD one can have one when it returns. What the CA said before must hold on.
        """
        raw = said.authorities
        following, statement = open_authorities(self.authorities, self._authority.cluster, raw)
        if statement.order <= self.orders.authorities:
            raise ConflictError(
                f"CA list {self.authorities.number} is followed here, and the one given has number {following.number}"
            )
        self._check_what_was_said(said, following)
        if force or only_added(self.authorities, following):
            return
        others = list(members)
        behind = [each.node_id for each in others if each.active and each.authorities < self.authorities.number]
        if behind:
            raise ConflictError(
                f"CA list {self.authorities.number} is not followed yet by {', '.join(behind)}: try again when "
                "`mesh ca list` shows nobody lagging, or mend those nodes"
            )
        going = {key for key in self.authorities.trusted if key not in following.trusted}
        if going:
            self._check_nobody_depends(others, going, following)

    def _check_what_was_said(self, said: Statements, following: Authorities) -> None:
        after = Authority(self._authority.ca_public_key)
        after.trust(following.trusted, ())
        ring, revocations = said.ring or self.ring_statement, said.revocations or self.revocations_statement
        try:
            if ring:
                open_ring(after, ring)
            if revocations:
                open_revocations(after, revocations)
        except RecordError:
            raise ConflictError(
                "the key ring or the revocations are of a CA that is to be trusted no more: sign them anew with it, "
                "from the mesh's own directory"
            ) from None

    def _check_nobody_depends(self, others: Iterable[Member], going: set[bytes], following: Authorities) -> None:
        after = Authority(self._authority.ca_public_key)
        after.trust(following.trusted, [each.certificate for each in following.reissued])
        names = ", ".join(sorted(ca_name(key) for key in going))
        for member in others:
            signer = self.signer_of(member)
            if member.active and signer not in following.trusted:
                raise ConflictError(
                    f"{member.node_id} holds no certificate of a CA that stays, only of {names}: wait until `mesh ca "
                    "list` shows one, or enroll it anew"
                )
            if member.status is not Status.LEFT and signer in going and not _holds(after, member):
                raise ConflictError(
                    f"{member.node_id} would be cut off for good: only CA {names} issued its certificate. Enroll it "
                    "anew, or --force"
                )

    def signer_of(self, member: Member) -> bytes:
        """Key of the trusted CA that signed the certificate which a member uses; empty when none did."""
        try:
            return self._authority.signer_of(member.certificate)
        except RecordError:
            return b""


def _order(said: Statement | None) -> Order:
    return said.order if said else NOTHING_SAID


def _holds(authority: Authority, member: Member) -> bool:
    try:
        authority.check(member.certificate)
    except RecordError:
        return False
    return True


def lagging(others: Iterable[Member], ring: int) -> list[str]:
    """The ALIVE and SUSPECT members that have not said yet that they installed this ring."""
    return [member.node_id for member in others if member.active and member.ring < ring]

"""The table of members, and the one rule that decides which news about a member wins.

Promises: news is ordered by (life, incarnation); within one incarnation DEAD beats SUSPECT beats ALIVE; a signed LEFT
beats everything of its life; only a higher life ends LEFT. The highest signed (life, incarnation) is kept even when
nothing else changes, so no older claim can revive or kill. Claims are unsigned: they never add a member, never move an
address, and wait (parked) until a signed record shows the incarnation that they speak about. The table is bounded.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from mesh.identity import Certificate
from mesh.ids import Address, Life
from mesh.messages import Claim, Reason
from mesh.profiles import SUSPICION_MAX_FACTOR, Profile
from mesh.protocol import Speaks, common
from mesh.records import MemberRecord
from mesh.suspicion import Suspicion

PARKED_MAX = 256  # claims that arrived before the record they speak about; news travels in any order for seconds only
FORGOTTEN_MAX = 4_096  # names of pruned members whose last record must not bring them back
ACCUSERS_MAX = 16  # shown to people; more would not make a suspicion any shorter


class Status(enum.StrEnum):
    """What the protocol holds of a member. Never delayed: it alone decides who may be taken over."""

    ALIVE = "ALIVE"
    SUSPECT = "SUSPECT"
    DEAD = "DEAD"
    LEFT = "LEFT"


ACTIVE = (Status.ALIVE, Status.SUSPECT)  # probed, gossiped to and counted as members of the mesh
RANK = {Status.ALIVE: 0, Status.SUSPECT: 1, Status.DEAD: 2, Status.LEFT: 3}


@dataclass(slots=True, kw_only=True)
class Member:
    """One member as this node sees it. Only `Membership` changes it."""

    node_id: str
    tag: bytes
    certificate: Certificate
    life: Life
    incarnation: int
    process: int
    status: Status
    address: Address
    rpc_address: Address
    store_failed: bool
    speaks: Speaks
    ring: int
    """Number of the newest key ring that it says it has."""
    revocations: int
    authorities: int
    record: bytes
    """The newest signed record, verifiable by anyone."""
    status_since: float
    last_heard: float | None = None
    """When a packet of this life last came from it; None before the first."""
    accusers: dict[str, str] = field(default_factory=dict)
    """Who accused it and why, while SUSPECT or DEAD."""
    dead_claims: dict[str, None] = field(default_factory=dict)
    """Who declared this incarnation DEAD while we still doubted it."""
    suspicion: Suspicion | None = None

    @property
    def standing(self) -> tuple[str, str, int]:
        """Role, name and enrolment, which is what revocations name."""
        return self.certificate.role, self.certificate.name, self.certificate.enrolment

    @property
    def active(self) -> bool:
        """ALIVE or SUSPECT."""
        return self.status in ACTIVE


@dataclass(frozen=True, slots=True)
class Change:
    """News that changed the table, and is therefore worth passing on."""

    member: Member
    before: Status | None
    after: Status
    reason: str
    accuser: str | None = None
    visible: bool = True
    """False when only an incarnation rose: nothing that anyone outside the protocol acts on."""


INSTALLED = "installed"
"""The reason of a change that says no more than which keys, revocations, CAs and certificate a member has now."""


class _Forgotten(NamedTuple):
    """The last that was known of a member that left the table."""

    life: Life
    incarnation: int
    has_left: bool


class Membership:
    """All members, this node included."""

    def __init__(self, own: MemberRecord, profile: Profile, now: float) -> None:
        self._profile = profile
        self._own = _member(own, now)
        self._by_id: dict[str, Member] = {own.node_id: self._own}
        self._by_tag: dict[bytes, Member] = {own.tag: self._own}
        self._parked: dict[tuple[bytes, int, int, bytes], Claim] = {}
        self._forgotten: dict[bytes, _Forgotten] = {}
        self._gone: list[str] = []
        self.version = 0
        """Rises with every change of a status, life, incarnation or address, and when a member comes or goes."""
        self._active_others: list[Member] | None = None
        self._in_tag_order = [self._own]
        # Asked for with every packet, so they are kept and not looked for.
        self._suspected: dict[bytes, Member] = {}
        self._dead: dict[bytes, Member] = {}

    @property
    def own(self) -> Member:
        """This node itself; always ALIVE until it leaves."""
        return self._own

    def get(self, node_id: str) -> Member | None:
        """The member with this id."""
        return self._by_id.get(node_id)

    def by_tag(self, tag: bytes) -> Member | None:
        """The member with this wire tag."""
        return self._by_tag.get(tag)

    def all(self) -> list[Member]:
        """Every known member, sorted by node id."""
        return sorted(self._by_id.values(), key=lambda member: member.node_id)

    def alive(self) -> list[Member]:
        """The ALIVE members, this node included, sorted by node id."""
        return [member for member in self.all() if member.status is Status.ALIVE]

    def in_tag_order(self) -> list[Member]:
        """Every known member, sorted by wire tag, which is the order of digests. Not to be modified."""
        return self._in_tag_order

    def active_others(self) -> list[Member]:
        """ALIVE and SUSPECT members but this node, in a fixed order. Not to be modified."""
        if self._active_others is None:
            self._active_others = [m for m in self._by_id.values() if m.active and m is not self._own]
        return self._active_others

    def successors(self, count: int) -> list[Member]:
        """The ALIVE and SUSPECT members next after this node in tag order, which is a ring; all of them when few."""
        ring = self._in_tag_order
        start = bisect_left(ring, self._own.tag, key=_tag) + 1
        found: list[Member] = []
        for member in chain(ring[start:], ring[: start - 1]):
            if len(found) >= count:
                break
            if member.active:
                found.append(member)
        return found

    def size(self) -> int:
        """Members that are not gone, this node included: the `n` of all formulas."""
        return len(self.active_others()) + 1

    def protocol_with(self, member: Member) -> int | None:
        """The protocol version that we use with a member; None when its release and ours have none in common."""
        return common(self._own.speaks, member.speaks)

    def protocol_of_all(self) -> int:
        """The newest protocol version that every member understands, the silent included; LEFT ones do not count.

        What all must take part in begins when this has reached its version: after the last member was upgraded.
        """
        return min(member.speaks.newest for member in self._by_id.values() if member.status is not Status.LEFT)

    def suspected(self) -> Collection[Member]:
        """Members under suspicion, those longest so first."""
        return self._suspected.values()

    def dead(self) -> Iterable[Member]:
        """DEAD members, those longest so first."""
        return self._dead.values()

    def replace_own(self, record: MemberRecord, now: float) -> None:
        """Put our own new record in place; nobody else may write it."""
        assert record.node_id == self._own.node_id
        _overwrite(self._own, record)
        self.version += 1
        if record.body.left:
            self._set_status(self._own, Status.LEFT, now)

    def apply_record(self, record: MemberRecord, now: float) -> Change | None:
        """Take over another member's signed record if it is newer than what we hold."""
        assert record.tag != self._own.tag
        member = self._by_tag.get(record.tag)
        if member is None:
            return self._add(record, now)
        if record.life != member.life:
            return self._new_life(member, record, now) if record.life > member.life else None
        # A goodbye beats every incarnation of its life: it is the last thing that this life says of itself.
        if record.body.left:
            return self._leave(member, record, now)
        if member.status is Status.LEFT:
            self._raise_incarnation(member, record.body.incarnation)
            return None
        # Two processes of one life are a cloned disk. Any order will do, so long as all nodes choose the same one
        # and each clone comes to see the other's record.
        if (record.body.incarnation, record.body.process) <= (member.incarnation, member.process):
            return None
        return self._newer(member, record, now)

    def accuse(self, claim: Claim, accuser: str, now: float) -> Change | None:
        """Weigh a claim that names another member's current incarnation; park or drop it when it names another.

        A returned change is news. No claim makes a member DEAD by itself, but enough of them end the suspicion.
        """
        member = self._by_tag.get(claim.subject)
        if member is None or (claim.life, claim.incarnation) > (member.life, member.incarnation):
            self._park(claim)
            return None
        assert member is not self._own
        if (claim.life, claim.incarnation) != (member.life, member.incarnation) or not member.active:
            return None
        # The first accusation opens a suspicion. More of them are news only while they still shorten it, which also
        # bounds how often one member's trouble is passed on.
        before, news = member.status, False
        cause = claim.cause().label
        if accuser not in member.accusers and len(member.accusers) < ACCUSERS_MAX:
            member.accusers[accuser] = cause
        if member.suspicion is None:
            self._suspect(member, accuser, now)
            news = True
        else:
            news = member.suspicion.confirm(accuser)
        if claim.dead and accuser not in member.dead_claims and len(member.dead_claims) < self._profile.dead_accusers:
            member.dead_claims[accuser] = None
            news = True
            assert member.suspicion is not None
            member.suspicion.agreed = self._agreed_dead(member)
        if not news:
            return None
        return Change(member, before, member.status, cause, accuser, visible=before is not member.status)

    def declare_dead(self, member: Member, reason: Reason, accuser: str, now: float) -> Change:
        """End a suspicion with DEAD. `accuser` is who decided, normally this node."""
        assert member.status is Status.SUSPECT, member.status
        self._set_status(member, Status.DEAD, now)
        member.accusers.setdefault(accuser, reason.label)
        return Change(member, Status.SUSPECT, Status.DEAD, reason.label, accuser)

    def take_parked(self, member: Member) -> list[Claim]:
        """Claims that waited for exactly this incarnation of the member."""
        keys = [key for key in self._parked if key[:3] == (member.tag, member.life, member.incarnation)]
        return [self._parked.pop(key) for key in keys]

    def was_forgotten(self, record: MemberRecord) -> bool:
        """True when this record is no newer than the one its subject had when we pruned it.

        Such a record would bring back a ghost for ever, passed from one who forgot to the next.
        """
        last = self._forgotten.get(record.tag)
        return last is not None and (record.life, record.body.incarnation) <= (last.life, last.incarnation)

    def recall(self, record: MemberRecord, now: float) -> None:
        """Take back a member that was forgotten as DEAD and now speaks itself, by the record that it speaks with.

        It comes back as DEAD as it was, is told so, and refutes that: all who forgot it believe the record which it
        signs then. Without this, a cut that outlasts a pruning would keep a living member out until it starts again.
        """
        last = self._forgotten.get(record.tag)
        if last is None or last.has_left or record.body.left or record.life != last.life:
            return
        if self.was_forgotten(record) and self._make_room():
            del self._forgotten[record.tag]
            self._add(record, now)
            self._set_status(self._by_tag[record.tag], Status.DEAD, now)

    def prune(self, now: float) -> None:
        """Forget members that have been LEFT for long.

        A DEAD one may be on the far side of a cut, however long that lasts. If both sides forgot each other, neither
        would ever call again.
        """
        for member in list(self._by_id.values()):
            left = member is not self._own and member.status is Status.LEFT
            if left and now - member.status_since >= self._profile.forget_after_s:
                self._forget(member)

    def forget(self, node_id: str) -> bool:
        """Forget a member that is DEAD or LEFT, for good: an operator says that it will not come back as it was.

        False, with nothing changed, when it is active, ourselves or unknown. Only itself can bring it back.
        """
        member = self._by_id.get(node_id)
        if member is None or member.active or member is self._own:
            return False
        self._forget(member)
        return True

    def expel(self, member: Member) -> None:
        """Forget a member at once: its certificate is worth nothing any more."""
        assert member is not self._own
        self._forget(member)

    def take_forgotten(self) -> list[str]:
        """Node ids that left the table since the last call, for those who keep books by node id."""
        forgotten, self._gone = self._gone, []
        return forgotten

    def _add(self, record: MemberRecord, now: float) -> Change | None:
        if self.was_forgotten(record) or not self._make_room():
            return None
        member = _member(record, now)
        self._by_id[member.node_id] = member
        self._by_tag[member.tag] = member
        self._forgotten.pop(member.tag, None)
        insort(self._in_tag_order, member, key=_tag)
        if self._active_others is not None and member.active:
            self._active_others.append(member)
        self.version += 1
        return Change(member, None, member.status, "left" if record.body.left else "joined")

    def _new_life(self, member: Member, record: MemberRecord, now: float) -> Change:
        before = member.status
        _overwrite(member, record)
        member.last_heard = None  # of this life; the next probe then introduces us again
        after = Status.LEFT if record.body.left else Status.ALIVE
        self._set_status(member, after, now)
        return Change(member, before, after, "signed-leave" if record.body.left else "restarted")

    def _leave(self, member: Member, record: MemberRecord, now: float) -> Change | None:
        if member.status is Status.LEFT:
            return None
        before, incarnation = member.status, member.incarnation
        _overwrite(member, record)
        member.incarnation = max(incarnation, record.body.incarnation)
        self._set_status(member, Status.LEFT, now)
        return Change(member, before, Status.LEFT, "signed-leave")

    def _newer(self, member: Member, record: MemberRecord, now: float) -> Change:
        before, seen = member.status, _visible(member)
        installed = _installed(member)
        _overwrite(member, record)
        self.version += 1
        reason = "updated"
        if before is not Status.ALIVE:
            self._set_status(member, Status.ALIVE, now)
            reason = "refuted"
        elif seen == _visible(member) and installed != _installed(member):
            reason = INSTALLED
        is_visible = before is not Status.ALIVE or reason == INSTALLED or seen != _visible(member)
        return Change(member, before, Status.ALIVE, reason, visible=is_visible)

    def _suspect(self, member: Member, accuser: str, now: float) -> None:
        # Fixed at the start: a suspicion must not stretch or shrink because other members come and go.
        n = self.size()
        shortest = self._profile.dead_after_s(n)
        self._set_status(member, Status.SUSPECT, now)
        member.suspicion = Suspicion(
            started=now,
            shortest_s=shortest,
            longest_s=shortest * SUSPICION_MAX_FACTOR,
            refutable_s=self._profile.refutable_s(n),
            wanted=self._profile.confirmations_wanted(n),
            accusers={accuser: None},
        )

    def _agreed_dead(self, member: Member) -> bool:
        # Those who are gone themselves were perhaps on the far side of a cut, and speak for nobody here.
        live = [name for name in member.dead_claims if (accuser := self._by_id.get(name)) and accuser.active]
        return len(live) >= self._profile.dead_accusers

    def _raise_incarnation(self, member: Member, seen: int) -> None:
        if seen > member.incarnation:
            member.incarnation = seen
            self.version += 1

    def _set_status(self, member: Member, status: Status, now: float) -> None:
        member.status = status
        member.status_since = now
        member.suspicion = None
        member.dead_claims.clear()
        if status in (Status.ALIVE, Status.LEFT):
            member.accusers.clear()
        self._active_others = None
        self.version += 1
        self._suspected.pop(member.tag, None)
        self._dead.pop(member.tag, None)
        if status is Status.SUSPECT:
            self._suspected[member.tag] = member
        elif status is Status.DEAD:
            self._dead[member.tag] = member

    def _park(self, claim: Claim) -> None:
        key = (claim.subject, claim.life, claim.incarnation, claim.accuser)
        self._parked.pop(key, None)
        if len(self._parked) >= PARKED_MAX:
            del self._parked[next(iter(self._parked))]
        self._parked[key] = claim

    def _make_room(self) -> bool:
        if len(self._by_id) < self._profile.members_max:
            return True
        # The living are never given up for a newcomer: a flood of enrolled names must not push members out.
        gone = [member for member in self._by_id.values() if not member.active and member is not self._own]
        if not gone:
            return False
        self._forget(min(gone, key=lambda member: member.status_since))
        return True

    def _forget(self, member: Member) -> None:
        del self._by_id[member.node_id]
        del self._by_tag[member.tag]
        self._dead.pop(member.tag, None)
        self._suspected.pop(member.tag, None)
        del self._in_tag_order[bisect_left(self._in_tag_order, member.tag, key=_tag)]
        self._gone.append(member.node_id)
        if len(self._forgotten) >= FORGOTTEN_MAX:
            del self._forgotten[next(iter(self._forgotten))]
        self._forgotten[member.tag] = _Forgotten(member.life, member.incarnation, member.status is Status.LEFT)
        self._active_others = None
        self.version += 1


def _tag(member: Member) -> bytes:
    return member.tag


def _member(record: MemberRecord, now: float) -> Member:
    return Member(
        node_id=record.node_id,
        tag=record.tag,
        certificate=record.body.certificate,
        life=record.life,
        incarnation=record.body.incarnation,
        process=record.body.process,
        status=Status.LEFT if record.body.left else Status.ALIVE,
        address=record.address,
        rpc_address=record.rpc_address,
        store_failed=record.body.store_failed,
        speaks=record.body.speaks,
        ring=record.body.ring,
        revocations=record.body.revocations,
        authorities=record.body.authorities,
        record=record.raw,
        status_since=now,
    )


def _visible(member: Member) -> tuple[object, ...]:
    """What others than the protocol act on."""
    return member.address, member.rpc_address, member.store_failed


def _installed(member: Member) -> tuple[object, ...]:
    """What it has of the CA's word."""
    return member.ring, member.revocations, member.authorities, member.certificate


def _overwrite(member: Member, record: MemberRecord) -> None:
    member.certificate = record.body.certificate
    member.life = record.life
    member.incarnation = record.body.incarnation
    member.process = record.body.process
    member.address = record.address
    member.rpc_address = record.rpc_address
    member.store_failed = record.body.store_failed
    member.speaks = record.body.speaks
    member.ring = record.body.ring
    member.revocations = record.body.revocations
    member.authorities = record.body.authorities
    member.record = record.raw

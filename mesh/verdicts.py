"""What news about members leads to: who is told, what is passed on, who is suspected and who is given up.

Promises: every change of the table goes through `_apply`, so the freeze, the damped status and the outside see the same
sequence. DEAD is declared here and nowhere else, after a suspicion has ended and while no mass failure is frozen. An
accusation against this node is answered by a new incarnation, never believed.
"""

from __future__ import annotations

from mesh.dissemination import Dissemination
from mesh.effective import EffectiveState
from mesh.effects import MemberChanged, SelfConflict
from mesh.errors import RecordError
from mesh.freeze import MassFailureFreeze
from mesh.local_health import LocalHealth
from mesh.membership import RANK, Change, Member, Membership, Status
from mesh.messages import Claim, Reason, Rumor
from mesh.outbox import Outbox
from mesh.own_record import OwnRecord
from mesh.profiles import Profile
from mesh.records import MemberRecord, RecordVerifier


class Verdicts:
    """Applies records and claims, and judges suspicions."""

    def __init__(
        self,
        *,
        profile: Profile,
        members: Membership,
        own: OwnRecord,
        verifier: RecordVerifier,
        news: Dissemination,
        health: LocalHealth,
        effective: EffectiveState,
        outbox: Outbox,
    ) -> None:
        self._profile = profile
        self._members = members
        self._own = own
        self._tag = own.current.tag
        self._verifier = verifier
        self._news = news
        self._health = health
        self._effective = effective
        self._outbox = outbox
        self._conflicted = False
        self._refuted_at = float("-inf")
        self._doubt_until = float("-inf")
        self.freeze = MassFailureFreeze()
        self.records_refused = 0
        self.refutations = 0

    # --- Records ----------------------------------------------------------------------------------------------------

    def verified(self, raw: bytes) -> MemberRecord | None:
        """The record in these bytes; None, and counted, when it does not hold."""
        try:
            return self._verifier.verify(raw)
        except RecordError:
            self.records_refused += 1
            return None

    def learn(self, record: MemberRecord, now: float) -> bool:
        """Apply a verified record; True when it was news."""
        if record.tag == self._tag:
            self._hear_own_record(record, now)
            return False
        change = self._members.apply_record(record, now)
        if change is None:
            return False
        self._apply(change, now)
        # Claims overtake the records that they speak about; now they can be weighed.
        for claim in self._members.take_parked(change.member):
            accuser = self._members.by_tag(claim.accuser)
            if accuser is not None:
                self._weigh(claim, accuser, now)
        return True

    def introduce(self, record: MemberRecord, now: float) -> bool:
        """Apply a record that came outside a rumor, and spread it when it was news."""
        news = self.learn(record, now)
        if news:
            self._news.tell_record(record.raw, record.tag, now)
        return news

    def announce(self, record: MemberRecord, now: float) -> None:
        """Put our own new record in place and spread it."""
        self._members.replace_own(record, now)
        self._news.tell_record(record.raw, record.tag, now)

    def expel_revoked(self) -> None:
        """Drop every member whose certificate does not hold any more."""
        for member in self._members.all():
            if member is self._members.own or self._holds(member):
                continue
            self._members.expel(member)
            self._outbox.emit(MemberChanged(member.node_id, member.status.value, Status.LEFT.value, "revoked"))

    def _holds(self, member: Member) -> bool:
        try:
            self._verifier.authority.check(member.certificate)
        except RecordError:
            return False
        return True

    def _hear_own_record(self, record: MemberRecord, now: float) -> None:
        """Our own record from elsewhere: an old one is nothing, another process's is a cloned or restored disk."""
        name, boot = record.node_id, 0
        if record.body.certificate.enrolment > self._own.current.body.certificate.enrolment:
            enrolment = record.body.certificate.enrolment
            detail = f"enrolment {enrolment} of {name} is in use: start this node with it, or stop this node"
        elif record.life > self._own.life:
            boot = record.body.boot
            detail = (
                f"the mesh knows a later start of {name} (boot {boot}): if this disk was restored, or its database "
                "made anew, restart this node once; if another copy of it runs, stop one of them"
            )
        elif record.life == self._own.life and record.body.process != self._own.current.body.process:
            detail = f"another process runs as {name} at {record.address}: stop one, and restart the other"
        else:
            return
        self._outbox.emit(SelfConflict(detail, boot))
        if not self._conflicted:
            # Once only: so that the other process hears of us too, and no war of incarnations follows.
            self._conflicted = True
            self.refute(now)

    # --- Accusations ------------------------------------------------------------------------------------------------

    def hear_claim(self, claim: Claim, sender: Member, rumor: Rumor | None, now: float) -> None:
        """Weigh an accusation that `sender` passed on, as a rumor or directly."""
        if claim.subject == self._tag:
            # A claim about an incarnation above ours is forged, since we never signed one, and one below is answered
            # already. Chasing either would let anyone run our incarnation up to its end.
            if self._own.is_current(claim.life, claim.incarnation):
                self.refute(now, dead=claim.dead)
            return
        # An accuser whom nobody knows cannot be held to it; whoever passed it on can.
        accuser = self._members.by_tag(claim.accuser) or sender
        if not self._weigh(claim, accuser, now):
            return
        if rumor is not None:
            self._news.relay(rumor, now, claim.subject, claim.accuser)
        else:
            self._news.tell_claim(claim, now)

    def accuse(self, member: Member, reason: Reason, now: float) -> None:
        """Our own probe of this member failed."""
        claim = self._accusation(member, reason)
        change = self._members.accuse(claim, self._members.own.node_id, now)
        if change is not None:
            self._apply(change, now)
            self._news.tell_claim(claim, now)

    def hear_view_of_us(self, view: tuple[int, int, int] | None, now: float) -> None:
        """A digest said (life, incarnation, status rank) of us; refute it when it accuses what we are."""
        if view is None:
            return
        life, incarnation, rank = view
        if rank in (RANK[Status.SUSPECT], RANK[Status.DEAD]) and self._own.is_current(life, incarnation):
            self.refute(now, dead=rank == RANK[Status.DEAD])

    def refute(self, now: float, *, dead: bool = False) -> None:
        """Somebody doubts us: say that we live, louder than the doubt, and doubt our own health a little."""
        # What was signed less than a gossip tick ago nobody has had the time to doubt. So a flood of forged claims,
        # each naming the next incarnation, cannot run ours up to its end, nor make us sign all day.
        if self._own.left or now - self._refuted_at < self._profile.gossip_interval_s:
            return
        self._refuted_at = now
        if dead:
            # We were cut off, so what we held of others meanwhile is as wrong as what they held of us. Everyone whom
            # we call DEAD is called soon and answers for itself; spreading it would only make all suspect each other.
            self._doubt_until = now + self._profile.redial_interval_s
            self._news.forget_claims()
        self.refutations += 1
        self._health.worse()
        self.announce(self._own.refute(), now)

    def doubts_itself(self, now: float) -> bool:
        """True for a while after we learned that others held us DEAD: our claims are then not passed on."""
        return now < self._doubt_until

    def evidence(self, member: Member) -> Claim:
        """What is held against a member, in the name of who said it: passing on confirms nothing."""
        if member.suspicion is not None:
            first = self._members.get(next(iter(member.suspicion.accusers)))
            if first is not None:
                return Claim(member.tag, member.life, member.incarnation, first.tag, Reason.OTHER, False)
        return self._accusation(member, Reason.OTHER)

    def _weigh(self, claim: Claim, accuser: Member, now: float) -> bool:
        # Our own words come back to us, and nobody confirms a suspicion of himself.
        if accuser is self._members.own or accuser.tag == claim.subject:
            return False
        change = self._members.accuse(claim, accuser.node_id, now)
        if change is None:
            return False
        self._apply(change, now)
        return True

    def _accusation(self, member: Member, reason: Reason) -> Claim:
        dead = member.status is Status.DEAD
        return Claim(member.tag, member.life, member.incarnation, self._tag, reason, dead)

    # --- Judgement --------------------------------------------------------------------------------------------------

    def judge(self, now: float, heard_at: float) -> None:
        """End suspicions that ran out, unless so many fail at once that we are the likelier to be cut off.

        `heard_at` is when anybody at all was heard last.
        """
        expired = [m for m in self._members.suspected() if m.suspicion is not None and now >= m.suspicion.deadline()]
        if not expired:
            return
        dead_after_s = self._profile.dead_after_s(self._members.size())
        self._evaluate_freeze(now, deaf=now - heard_at >= dead_after_s)
        for member in expired:
            assert member.suspicion is not None
            if self.freeze.frozen(now):
                member.suspicion.held_until = self.freeze.until()
                continue
            reason = Reason.ACCUSERS if member.suspicion.agreed else Reason.SUSPICION_EXPIRED
            self._apply(self._members.declare_dead(member, reason, self._members.own.node_id, now), now)
            self._news.tell_claim(self._accusation(member, reason), now)

    def next_deadline(self) -> float:
        """When `judge` has something to do."""
        # Asked for with every packet, and nearly always nobody is suspected.
        if not (suspected := self._members.suspected()):
            return float("inf")
        return min(m.suspicion.deadline() for m in suspected if m.suspicion)

    def shift(self, seconds: float) -> None:
        """Forgive a pause of our own: nobody could refute to us meanwhile."""
        self.freeze.shift(seconds)
        for member in self._members.suspected():
            assert member.suspicion is not None
            member.suspicion.shift(seconds)

    def _evaluate_freeze(self, now: float, *, deaf: bool = False) -> None:
        others = self._members.active_others()
        for member in others:
            # Deaf, we counted everybody as failing. Whoever was heard since, suspected or not, can fail anew.
            if member.status is Status.ALIVE and (member.last_heard or 0.0) > self.freeze.until():
                self.freeze.on_recovered(member.node_id)
        active = [member.node_id for member in others]
        self.freeze.evaluate(active, self._profile.dead_after_s(self._members.size()), now, deaf=deaf)

    def _apply(self, change: Change, now: float) -> None:
        member = change.member
        if change.visible:
            before = change.before.value if change.before else None
            self._outbox.emit(MemberChanged(member.node_id, before, change.after.value, change.reason, change.accuser))
        self._effective.on_change(member.node_id, change.after, now)
        # Failing begins with the suspicion: counting only the DEAD would notice a mass failure one verdict too late.
        if change.after is Status.SUSPECT:
            self.freeze.on_suspect(member.node_id)
            self._evaluate_freeze(now)
        elif change.after is Status.DEAD:
            self.freeze.on_dead(member.node_id, now)
        else:
            self.freeze.on_recovered(member.node_id)

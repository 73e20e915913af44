"""The membership core of one node: datagrams and timer calls in, effects out.

Promises: nothing here blocks, reads a clock or touches a socket. A datagram that is refused changes nothing but a
counter. What only a member may say about itself (address, leave, refutation) is believed from its signature alone,
whoever delivered it; everything else that holders of the ring key can say raises suspicions at most, which the accused
refutes. The caller carries out the effects in order and calls `on_timer` at `next_deadline()`, after it has handed over
every datagram that was waiting: an answer that lies in the socket must be heard before its absence is judged.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mesh import codec, digests
from mesh.detector import Detector, PingDirect, PingIndirect, ProbeFailed
from mesh.dissemination import BODY_SPACE_BYTES, Dissemination
from mesh.effective import EffectiveState
from mesh.effects import (
    Effect,
    MemberChanged,
    PacketRefused,
    ProbeStream,
    RumorReceived,
    SelfConflict,
    SendDatagram,
    VectorDiffers,
)
from mesh.errors import LimitError, PacketError, RecordError
from mesh.freeze import MassFailureFreeze
from mesh.identity import Authority, Identity
from mesh.ids import Address
from mesh.local_health import LocalHealth
from mesh.membership import RANK, Change, Member, Membership, Status
from mesh.messages import (
    DIGEST_VECTOR_BYTES,
    NONCE_BITS,
    PUBLISH_BYTES_MAX,
    TOPIC_MAX,
    Ack,
    Claim,
    Digest,
    Item,
    Nack,
    Ping,
    PingRequest,
    Reason,
    Rumor,
    RumorKind,
    SignedRecord,
    VectorHint,
)
from mesh.own_record import OwnRecord
from mesh.profiles import Profile
from mesh.records import MemberRecord, RecordVerifier
from mesh.redial import Call, Redial
from mesh.relayed_probes import RelayedProbes
from mesh.replay_window import ReplayWindow
from mesh.sealing import PACKET_OVERHEAD_BYTES, PROCESS_BITS, KeyRing, SealedPacket, Sealer, receiver_tag
from mesh.vector_watch import VectorWatch

__all__ = ["PUBLISH_BYTES_MAX", "Gossip", "Statistics"]

STALL_S = 0.5  # a timer this late means that our process stood still, and that others' silence proves nothing
REPAIR_PACKETS_MAX = 3  # answered to one digest: nine records; whoever needs more asks again at once
LEAVE_CALLS_MAX = 10  # members told of our leave directly, and asked to acknowledge
LEAVE_WAIT_MIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the start, and levels now."""

    probes: int
    probe_failures: int
    local_health: int
    rumors_queued: int
    rumors_dropped: int
    rumors_ttl_exhausted: int
    records_refused: int
    refutations: int
    freezes: int
    stalls: int
    stall_s_longest: float


class Gossip:
    """One node's membership: who is there, who is not, and the news that members pass on.

    `entropy` gives secret random bytes; `rng` everything that may be replayed from a seed. `boot` counts the starts of
    this node and was persisted before. `seeds` may contain our own address. `known` are `Member.record`s of earlier
    runs; those members are called at once and judged only by the normal suspicion.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        ring: KeyRing,
        profile: Profile,
        rng: random.Random,
        entropy: Callable[[int], bytes],
        boot: int,
        address: Address,
        rpc_address: Address,
        seeds: Sequence[Address],
        known: Sequence[bytes] = (),
        effective: EffectiveState | None = None,
    ) -> None:
        process = int.from_bytes(entropy(4), "big") % (1 << PROCESS_BITS)
        authority = Authority(identity.ca_public_key)
        authority.check(identity.certificate)
        self.profile = profile
        self.effective = effective or EffectiveState()
        self._own = OwnRecord(identity, boot=boot, process=process, address=address, rpc_address=rpc_address)
        self.members = Membership(self._own.current, profile, now=0.0)
        self._tag = self._own.current.tag
        self._process = process
        self._receiver_tag = receiver_tag(self._tag, self._own.life)
        self._rng = rng
        self._known = list(known)
        self._verifier = RecordVerifier(authority)
        self._sealer = Sealer(
            ring=ring, cluster=authority.cluster, sender=self._tag, life=self._own.life, process=process
        )
        self._window = ReplayWindow()
        self._health = LocalHealth()
        self._detector = Detector(profile, self.members, self._health, rng)
        self._relays = RelayedProbes(profile)
        self._redial = Redial(profile, seeds, address)
        self._news = Dissemination(profile, self.members, rng)
        self._freeze = MassFailureFreeze()
        self._vectors = VectorWatch()
        self._effects: list[Effect] = []
        self._entered_at = 0.0
        self._heard_at = 0.0
        self._sync_at = float("inf")
        self._leave_calls: dict[int, None] = {}
        self._left_at: float | None = None
        self._conflicted = False
        self._records_refused = self._refutations = self._stalls = 0
        self._stall_s_longest = 0.0

    # --- What the caller does ---------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Begin: call seeds and remembered members."""
        self._entered_at = self._heard_at = now
        self.members.own.status_since = now
        self._redial.start(now)
        for raw in self._known:
            self._remember(raw, now)
        self._call_missing(now)
        # A remembered member may live its next life by now, so it is called like a seed: for whoever listens there.
        for member in self.members.active_others():
            self._call(Call(member.address, member, None), now)
        return self._take_effects()

    def on_datagram(self, data: bytes, source: Address, now: float) -> list[Effect]:
        """Take in one datagram. Whatever the bytes are, nothing is raised."""
        self._enter(now)
        try:
            self._receive(self._sealer.open(data), len(data), now)
        except PacketError as error:
            self._effects.append(PacketRefused(error.reason, source))
        return self._take_effects()

    def on_timer(self, now: float) -> list[Effect]:
        """Do what is due. Early calls are harmless; late ones are noticed and forgiven to the others."""
        self._enter(now)
        for relayed in self._relays.due(now):
            requester = self.members.get(relayed.requester)
            if requester is not None:
                self._send(requester, [Nack(relayed.their_nonce)])
        if not self._own.left:
            self._probe(now)
            self._judge(now)
            if now >= self._redial.next_deadline(self.members):
                self._call_missing(now)
        if now >= self._sync_deadline():
            self._synchronize(now)
        if now >= self._news.next_deadline():
            self._gossip(now)
        return self._take_effects()

    def next_deadline(self) -> float:
        """When to call `on_timer`, in the same seconds as `now`; infinite when there is nothing to wait for."""
        deadlines = [self._relays.next_deadline(), self._sync_deadline(), self._news.next_deadline()]
        if not self._own.left:
            deadlines += [self._detector.next_deadline(), self._redial.next_deadline(self.members)]
            deadlines += [member.suspicion.deadline() for member in self.members.suspected() if member.suspicion]
        return min(deadlines)

    def publish(self, topic: int, payload: bytes, now: float, *, subject: bytes | None = None) -> list[Effect]:
        """Spread another layer's news to all members, each of which gets it at most once (and usually does).

        At most `PUBLISH_BYTES_MAX` bytes, else LimitError. With a subject, it replaces what this node still spreads
        about the same topic and subject.
        """
        if len(payload) > PUBLISH_BYTES_MAX:
            raise LimitError(f"{len(payload)} bytes do not fit a rumor; at most {PUBLISH_BYTES_MAX} do")
        assert 0 <= topic <= TOPIC_MAX, topic
        self._enter(now)
        self._news.tell_topic(topic, payload, subject, now)
        return self._take_effects()

    def set_vector_digest(self, digest: bytes) -> None:
        """Say what our replica holds, in 8 bytes; probes carry it, and a peer that differs twice asks for a pull."""
        assert len(digest) == DIGEST_VECTOR_BYTES, len(digest)
        self._vectors.own = digest

    def hint(self, now: float) -> list[Effect]:
        """Our replica just changed by more than a rumor carries: tell some members at the next gossip tick."""
        self._enter(now)
        self._news.hint()
        return self._take_effects()

    def set_store_failed(self, failed: bool, now: float) -> list[Effect]:
        """Say in our record whether our database takes writes; while it does not, peers may take over our work."""
        self._enter(now)
        record = self._own.set_store_failed(failed)
        if record is not None:
            self._announce(record, now)
        return self._take_effects()

    def set_key_ring(self, ring: KeyRing) -> None:
        """Use another ring from the next packet on."""
        self._sealer.ring = ring

    def on_stream_probe(self, node_id: str, nonce: int, alive: bool, now: float) -> list[Effect]:
        """Report how a ProbeStream effect ended."""
        self._enter(now)
        member = self.members.get(node_id)
        if self._detector.on_stream(node_id, nonce, alive) and member is not None:
            member.last_heard = self._heard_at = now
        return self._take_effects()

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye, signed. Keep the datagrams and timers coming until `left_done`."""
        self._enter(now)
        if self._left_at is not None:
            return self._take_effects()
        self._left_at = now
        record = self._own.leave()
        self._announce(record, now)
        others = self.members.active_others()
        for member in self._rng.sample(others, min(LEAVE_CALLS_MAX, len(others))):
            nonce = self._nonce()
            self._leave_calls[nonce] = None
            self._send(member, [SignedRecord(record.raw), Ping(nonce, b"")])
        return self._take_effects()

    def left_done(self, now: float) -> bool:
        """True when everyone who was told has acknowledged our leave, or enough time and budget was spent."""
        if self._left_at is None:
            return False
        if not self._leave_calls or not self.members.active_others():
            return True
        return now - self._left_at >= LEAVE_WAIT_MIN_S and not self._news.spreading(self._tag)

    def may_reclaim(self, now: float) -> bool:
        """False while a mass failure is frozen: then nobody's work may be taken over."""
        return not self._freeze.frozen(now)

    def statistics(self) -> Statistics:
        """Counters for metrics."""
        return Statistics(
            probes=self._detector.probes,
            probe_failures=self._detector.failures,
            local_health=self._health.score,
            rumors_queued=self._news.queued,
            rumors_dropped=self._news.dropped,
            rumors_ttl_exhausted=self._news.ttl_exhausted,
            records_refused=self._records_refused,
            refutations=self._refutations,
            freezes=self._freeze.freezes,
            stalls=self._stalls,
            stall_s_longest=self._stall_s_longest,
        )

    # --- Time -------------------------------------------------------------------------------------------------------

    def _enter(self, now: float) -> None:
        """Notice that we stood still, before anything is judged by the clock."""
        late_s = now - max(self._entered_at, self.next_deadline())
        self._entered_at = now
        if late_s <= STALL_S:
            return
        self._stalls += 1
        self._stall_s_longest = max(self._stall_s_longest, late_s)
        self._health.worse()
        self._detector.shift(late_s)
        self._redial.shift(late_s)
        self._news.shift(late_s)
        self._freeze.shift(late_s)
        self._heard_at += late_s
        self._sync_at += late_s
        for member in self.members.suspected():
            assert member.suspicion is not None
            member.suspicion.shift(late_s)

    def _sync_deadline(self) -> float:
        return self._sync_at if self.members.active_others() else float("inf")

    def _probe(self, now: float) -> None:
        for step in self._detector.step(now):
            match step:
                case PingDirect(member, nonce):
                    self._ping(member, nonce)
                case PingIndirect(member, nonce, helpers):
                    for helper in helpers:
                        self._send(helper, [PingRequest(nonce, member.tag)])
                    self._effects.append(ProbeStream(member.node_id, member.rpc_address, nonce))
                case ProbeFailed(member):
                    self._accuse(member, Reason.PROBE_TIMEOUT, now)

    def _judge(self, now: float) -> None:
        """End suspicions that ran out, unless so many fail at once that we are the likelier to be cut off."""
        expired = [m for m in self.members.suspected() if m.suspicion is not None and now >= m.suspicion.deadline()]
        if not expired:
            return
        dead_after_s = self.profile.dead_after_s(self.members.size())
        self._evaluate_freeze(now, deaf=now - self._heard_at >= dead_after_s)
        for member in expired:
            assert member.suspicion is not None
            if self._freeze.frozen(now):
                member.suspicion.held_until = self._freeze.until()
                continue
            reason = Reason.ACCUSERS if member.suspicion.agreed else Reason.SUSPICION_EXPIRED
            self._apply(self.members.declare_dead(member, reason, self.members.own.node_id, now), now)
            self._news.tell_claim(self._accusation(member, reason), now)

    def _evaluate_freeze(self, now: float, *, deaf: bool = False) -> None:
        active = [member.node_id for member in self.members.active_others()]
        self._freeze.evaluate(active, self.profile.dead_after_s(self.members.size()), now, deaf=deaf)

    def _call_missing(self, now: float) -> None:
        for call in self._redial.due(self.members, now):
            self._call(call, now)
        self._forget_pruned(now)

    def _synchronize(self, now: float) -> None:
        every_s = self.profile.sync_every_s(self.members.size())
        self._sync_at = now + every_s * (1 + self._rng.random() / 4)
        alive = [member for member in self.members.active_others() if member.status is Status.ALIVE]
        if alive:
            self._send(self._rng.choice(alive), [self._digest(BODY_SPACE_BYTES)])
        self._forget_pruned(now)

    def _gossip(self, now: float) -> None:
        receivers, plan = self._news.tick(self._vectors.own, now)
        bodies = [codec.join_items(packet) for packet in plan.packets]
        for member in receivers:
            for body in bodies:
                self._seal(member.address, receiver_tag(member.tag, member.life), body)

    def _forget_pruned(self, now: float) -> None:
        self.members.prune(now)
        for node_id in self.members.take_forgotten():
            self._freeze.on_recovered(node_id)
            self.effective.forget(node_id)
            self._vectors.forget(node_id)

    # --- What packets do --------------------------------------------------------------------------------------------

    def _receive(self, packet: SealedPacket, size: int, now: float) -> None:
        if packet.receiver not in (0, self._receiver_tag):
            raise PacketError("wrong-receiver")
        member = self.members.by_tag(packet.sender)
        if member is not None and packet.life < member.life:
            raise PacketError("stale-life")
        if packet.sender == self._tag and packet.life == self._own.life and packet.process == self._process:
            self._receive_own(packet)
        if not self._window.accept(packet.sender, packet.life, packet.process, packet.sequence):
            raise PacketError("replayed")
        items = codec.decode(packet.body)
        reply_to: Address | None = None
        for item in items:
            if isinstance(item, SignedRecord):
                reply_to = self._introduced(item.record, packet, now) or reply_to
        if packet.sender == self._tag:
            raise PacketError("self")
        member = self.members.by_tag(packet.sender)
        if member is None or member.life != packet.life:
            raise PacketError("unknown-sender")
        member.last_heard = self._heard_at = now
        for item in items:
            self._handle(item, member, reply_to or member.address, packet, size, now)

    def _receive_own(self, packet: SealedPacket) -> None:
        """Our own call has come back: one of the seeds is ourselves."""
        for item in codec.decode(packet.body):
            if isinstance(item, Ping) and self._redial.on_own_call(item.nonce):
                return
        raise PacketError("self")

    def _introduced(self, raw: bytes, packet: SealedPacket, now: float) -> Address | None:
        """Apply a record outside a rumor; the address to answer to when it is the sender's own."""
        record = self._verified(raw)
        if record is None:
            return None
        if self._learn(record, now):
            self._news.tell_record(record.raw, record.tag, now)
            if record.tag != packet.sender:
                # A repair: there may be more where it came from, and waiting a whole period for it would be slow.
                self._sync_at = min(self._sync_at, now + 2 * self.profile.gossip_interval_s)
        own_word = record.tag == packet.sender and record.life == packet.life
        return record.address if own_word else None

    def _handle(
        self, item: Item, sender: Member, reply_to: Address, packet: SealedPacket, size: int, now: float
    ) -> None:
        match item:
            case Ping():
                self._answer(item, sender, reply_to, packet, size)
                self._compare_vector(sender, item.vector)
            case Ack():
                self._acknowledged(item, sender, now)
                self._compare_vector(sender, item.vector)
            case PingRequest():
                self._ping_for(item, sender, now)
            case Nack():
                self._detector.on_nack(sender, item.nonce)
            case Claim():
                self._hear_claim(item, sender, None, now)
            case Digest():
                self._hear_digest(item, sender, packet, now)
            case VectorHint():
                if self._vectors.on_hint(item.vector):
                    self._effects.append(VectorDiffers(sender.node_id))
            case Rumor():
                self._hear_rumor(item, sender, now)
            case SignedRecord():
                pass  # applied before everything else in the packet

    def _answer(self, ping: Ping, sender: Member, reply_to: Address, packet: SealedPacket, size: int) -> None:
        tag = receiver_tag(sender.tag, packet.life)
        items: list[Item] = [Ack(ping.nonce, self._vectors.own if ping.vector else b"")]
        if sender.status in (Status.SUSPECT, Status.DEAD):
            items.append(self._evidence(sender))
        if packet.receiver:
            self._send_to(reply_to, tag, items)
            return
        # A call to whoever listens here. The source is not proven to be the caller, so that the answer must not be
        # larger than the call but for our own record: otherwise we could be used to flood somebody else.
        items.insert(0, SignedRecord(self._own.current.raw))
        if sender.process != packet.process:
            items.insert(1, SignedRecord(sender.record))  # a clone must see whose record won
        space = size - PACKET_OVERHEAD_BYTES + len(codec.encode_item(items[0]))
        encoded, left = _fitting(items, min(BODY_SPACE_BYTES, space))
        if left >= digests.DIGEST_OVERHEAD_BYTES + digests.ENTRY_BYTES:
            encoded.append(codec.encode_item(self._digest(left)))
        self._seal(reply_to, tag, codec.join_items(encoded))

    def _acknowledged(self, ack: Ack, sender: Member, now: float) -> None:
        self._leave_calls.pop(ack.nonce, None)
        self._detector.on_ack(sender, ack.nonce, now)
        relayed = self._relays.on_ack(ack.nonce)
        if relayed is not None and (requester := self.members.get(relayed.requester)) is not None:
            self._send(requester, [Ack(relayed.their_nonce, b"")])
        if self._redial.on_answer(ack.nonce, sender.node_id) and not self._own.left:
            self._send(sender, [self._digest(BODY_SPACE_BYTES)])

    def _ping_for(self, request: PingRequest, requester: Member, now: float) -> None:
        target = self.members.by_tag(request.target)
        nonce = self._nonce()
        if target is None or not self._relays.begin(requester.node_id, request.nonce, nonce, now):
            self._send(requester, [Nack(request.nonce)])
        elif target is self.members.own:
            self._send(requester, [Ack(request.nonce, b"")])
        else:
            self._ping(target, nonce)

    def _compare_vector(self, sender: Member, vector: bytes) -> None:
        if self._vectors.on_exchange(sender.node_id, vector):
            self._effects.append(VectorDiffers(sender.node_id))

    def _hear_rumor(self, rumor: Rumor, sender: Member, now: float) -> None:
        if not self._news.is_new(rumor, now):
            return
        if rumor.kind == RumorKind.RECORD:
            record = self._verified(rumor.payload)
            if record is not None and self._learn(record, now):
                self._news.relay(rumor, record.tag)
        elif rumor.kind == RumorKind.CLAIM:
            self._hear_claim(codec.decode_claim(rumor.payload), sender, rumor, now)
        elif rumor.kind == RumorKind.TOPIC and len(rumor.payload) <= PUBLISH_BYTES_MAX:
            self._news.relay(rumor)
            self._effects.append(RumorReceived(rumor.topic, rumor.payload, sender.node_id))

    def _hear_claim(self, claim: Claim, sender: Member, rumor: Rumor | None, now: float) -> None:
        if claim.subject == self._tag:
            if self._own.is_accused(claim):
                self._refute(now)
            return
        # An accuser whom nobody knows cannot be held to it; whoever passed it on can.
        accuser = self.members.by_tag(claim.accuser) or sender
        if accuser.node_id == self.members.own.node_id or accuser.tag == claim.subject:
            return
        change = self.members.accuse(claim, accuser.node_id, now)
        if change is None:
            return
        self._apply(change, now)
        if rumor is not None:
            self._news.relay(rumor, claim.subject, claim.accuser)
        else:
            self._news.tell_claim(claim, now)

    def _hear_digest(self, digest: Digest, sender: Member, packet: SealedPacket, now: float) -> None:
        difference = digests.compare(self.members.in_tag_order(), digest, self.members.own)
        if difference.of_us is not None:
            life, incarnation, rank = difference.of_us
            accused = rank in (RANK[Status.SUSPECT], RANK[Status.DEAD])
            if accused and self._own.is_current(life, incarnation):
                self._refute(now)
        if packet.receiver == 0:
            return  # answered with our own digest, which the caller answers under our receiver tag
        self._repair(sender, difference.ours_newer)
        if difference.theirs_newer and not digest.answer:
            self._send(sender, [self._digest(BODY_SPACE_BYTES, digest)])

    def _repair(self, receiver: Member, newer: list[Member]) -> None:
        """Send what the receiver lacks, as far as a few packets carry it."""
        packets: list[list[bytes]] = [[]]
        left = BODY_SPACE_BYTES
        for member in newer:
            items: list[Item] = [SignedRecord(member.record)]
            if member.status in (Status.SUSPECT, Status.DEAD):
                items.append(self._evidence(member))
            encoded = [codec.encode_item(item) for item in items]
            size = sum(map(len, encoded))
            if size > left:
                if len(packets) >= REPAIR_PACKETS_MAX:
                    break
                packets.append([])
                left = BODY_SPACE_BYTES
            packets[-1] += encoded
            left -= size
        for packet in packets:
            if packet:
                self._seal(receiver.address, receiver_tag(receiver.tag, receiver.life), codec.join_items(packet))

    # --- What news does ---------------------------------------------------------------------------------------------

    def _verified(self, raw: bytes) -> MemberRecord | None:
        try:
            return self._verifier.verify(raw)
        except RecordError:
            self._records_refused += 1
            return None

    def _remember(self, raw: bytes, now: float) -> None:
        record = self._verified(raw)
        if record is not None and record.tag != self._tag and not record.body.left:
            self._learn(record, now)

    def _learn(self, record: MemberRecord, now: float) -> bool:
        """Apply a verified record; True when it was news."""
        if record.tag == self._tag:
            return self._hear_own_record(record, now)
        change = self.members.apply_record(record, now)
        if change is None:
            return False
        self._apply(change, now)
        if change.before is None:
            self._detector.probe_soon(record.node_id)
        for claim in self.members.take_parked(change.member):
            accuser = self.members.by_tag(claim.accuser)
            if accuser is not None and accuser is not change.member and accuser is not self.members.own:
                suspicion = self.members.accuse(claim, accuser.node_id, now)
                if suspicion is not None:
                    self._apply(suspicion, now)
        return True

    def _hear_own_record(self, record: MemberRecord, now: float) -> bool:
        """Our own record from elsewhere: an old one is nothing, another process's is a cloned disk."""
        if record.life > self._own.life:
            self._conflict(f"a later start of {record.node_id} (boot {record.body.boot}) is known to the mesh")
        elif record.life == self._own.life and record.body.process != self._process:
            self._conflict(f"another process runs as {record.node_id} at {record.address}")
            if not self._conflicted:
                self._conflicted = True
                self._refute(now)  # once: so the other process hears of us too, and no war of incarnations follows
        return False

    def _conflict(self, detail: str) -> None:
        self._effects.append(SelfConflict(detail))

    def _apply(self, change: Change, now: float) -> None:
        """Tell everyone inside and outside who follows a member's status."""
        member = change.member
        if change.visible:
            self._effects.append(
                MemberChanged(
                    member.node_id,
                    change.before.value if change.before else None,
                    change.after.value,
                    change.reason,
                    change.accuser,
                )
            )
        self.effective.on_change(member.node_id, change.after, now)
        if change.after is Status.SUSPECT:
            self._freeze.on_suspect(member.node_id)
            self._evaluate_freeze(now)
        elif change.after is Status.DEAD:
            self._freeze.on_dead(member.node_id, now)
        else:
            self._freeze.on_recovered(member.node_id)
        if change.after is Status.ALIVE and change.before in (None, Status.DEAD, Status.LEFT):
            self._detector.wake(now)
            if self._sync_at == float("inf"):
                self._sync_at = now + self.profile.sync_interval_s * self._rng.random()

    def _accuse(self, member: Member, reason: Reason, now: float) -> None:
        claim = self._accusation(member, reason)
        change = self.members.accuse(claim, self.members.own.node_id, now)
        if change is not None:
            self._apply(change, now)
            self._news.tell_claim(claim, now)

    def _refute(self, now: float) -> None:
        """Somebody doubts us: say that we live, louder than the doubt, and doubt our own health a little."""
        if self._own.left:
            return
        self._refutations += 1
        self._health.worse()
        self._announce(self._own.refute(), now)

    def _announce(self, record: MemberRecord, now: float) -> None:
        self.members.replace_own(record, now)
        self._news.tell_record(record.raw, record.tag, now)

    # --- What goes out ----------------------------------------------------------------------------------------------

    def _ping(self, member: Member, nonce: int) -> None:
        items: list[Item] = []
        if member.last_heard is None or member.status is not Status.ALIVE:
            items.append(SignedRecord(self._own.current.raw))  # it may not know us, and then could not answer
        if member.status in (Status.SUSPECT, Status.DEAD):
            items.append(self._evidence(member))  # the accused must hear it first, to refute it
        self._send(member, [*items, Ping(nonce, self._vectors.own)])

    def _call(self, call: Call, now: float) -> None:
        nonce = self._nonce()
        self._redial.called(call, nonce)
        items: list[Item] = [SignedRecord(self._own.current.raw)]
        if call.member is not None and call.member.status is Status.DEAD:
            items.append(self._evidence(call.member))
        items.append(Ping(nonce, self._vectors.own))
        items.append(self._digest(BODY_SPACE_BYTES - sum(len(codec.encode_item(item)) for item in items)))
        self._send_to(call.address, 0, items)

    def _accusation(self, member: Member, reason: Reason) -> Claim:
        """Our own word against a member."""
        dead = member.status is Status.DEAD
        return Claim(member.tag, member.life, member.incarnation, self._tag, reason, dead)

    def _evidence(self, member: Member) -> Claim:
        """What is held against a member, in the name of who said it: passing on confirms nothing."""
        if member.suspicion is not None:
            first = self.members.get(next(iter(member.suspicion.accusers)))
            if first is not None:
                return Claim(member.tag, member.life, member.incarnation, first.tag, Reason.OTHER, False)
        return self._accusation(member, Reason.OTHER)

    def _digest(self, space: int, answered: Digest | None = None) -> Digest:
        low, high = (answered.low, answered.high) if answered is not None else digests.full_range(self._rng)
        members = self.members.in_tag_order()
        return digests.make_digest(members, low=low, high=high, space=space, answer=answered is not None)

    def _nonce(self) -> int:
        return self._rng.getrandbits(NONCE_BITS)

    def _send(self, member: Member, items: Sequence[Item]) -> None:
        self._send_to(member.address, receiver_tag(member.tag, member.life), items)

    def _send_to(self, address: Address, tag: int, items: Sequence[Item]) -> None:
        self._seal(address, tag, codec.encode(items))

    def _seal(self, address: Address, tag: int, body: bytes) -> None:
        self._effects.append(SendDatagram(address, self._sealer.seal(body, tag)))

    def _take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects


def _fitting(items: Sequence[Item], space: int) -> tuple[list[bytes], int]:
    """The leading items that fit, encoded, and the space left."""
    encoded: list[bytes] = []
    for item in items:
        data = codec.encode_item(item)
        if len(data) > space:
            break
        encoded.append(data)
        space -= len(data)
    return encoded, space

"""The membership core of one node: datagrams and timer calls in, effects out.

Promises: nothing here blocks, reads a clock or touches a socket. A datagram that is refused changes nothing but a
counter. What only a member may say about itself (address, leave, refutation) is believed from its signature alone,
whoever delivered it; everything else that holders of the ring key can say raises suspicions at most, which the accused
refutes. The caller carries out the effects in order and calls `on_timer` at `next_deadline()`, after it has handed over
every datagram that was waiting: an answer that lies in the socket must be heard before its absence is judged.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mesh import codec
from mesh.conversation import Conversation
from mesh.detector import Detector, PingDirect, PingIndirect, ProbeFailed
from mesh.dissemination import Dissemination
from mesh.effective import EffectiveState
from mesh.effects import Effect, PacketRefused, ProbeStream
from mesh.errors import LimitError, PacketError
from mesh.identity import Authority, Identity
from mesh.ids import Address, node_tag
from mesh.local_health import LocalHealth
from mesh.membership import Member, Membership, Status
from mesh.messages import (
    DIGEST_VECTOR_BYTES,
    PUBLISH_BYTES_MAX,
    TOPIC_MAX,
    Item,
    Nack,
    Ping,
    PingRequest,
    Reason,
    SignedRecord,
)
from mesh.outbox import ANYONE, Outbox
from mesh.own_record import OwnRecord
from mesh.profiles import Profile
from mesh.protocol import Speaks
from mesh.records import RecordVerifier
from mesh.redial import Call, Redial
from mesh.relayed_probes import RelayedProbes
from mesh.replay_window import ReplayWindow
from mesh.sealing import PROCESS_BITS, KeyRing, PacketKeys, SealedPacket, Sealer, receiver_tag
from mesh.vector_watch import VectorWatch
from mesh.verdicts import Verdicts

__all__ = ["PUBLISH_BYTES_MAX", "Gossip", "Statistics"]

STALL_S = 0.5  # a timer this late means that our process stood still, and that others' silence proves nothing
REMEMBERED_CALLS_MAX = 16  # at the start; a mesh of 1,000 that restarts would otherwise send a million calls at once
LEAVE_CALLS_MAX = 10  # members told of our leave directly, and asked to acknowledge
LEAVE_WAIT_MIN_S = 1.0  # without all acknowledgements; some are lost, and some members are gone


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the start, and levels now."""

    probes: int
    probe_failures: int
    local_health: int
    relayed_probes: int
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
    runs; some of those members are called at once, and all judged only by the normal suspicion. `verifier` and
    `packet_keys` are for many engines of one mesh in one process: what one has worked out, the others need not. The
    verifier's authority also knows who was revoked, by the list with the number `revocations`, and which CAs are
    trusted, by the statement `authorities`. Our record says that we understand what `speaks` says: by default, what
    this release does.
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
        encrypt: bool = True,
        verifier: RecordVerifier | None = None,
        packet_keys: PacketKeys | None = None,
        speaks: Speaks | None = None,
        revocations: int = 0,
        authorities: int = 0,
    ) -> None:
        # The random process number tells two starts of one cloned disk apart: in nonces, replay windows and the record.
        process = int.from_bytes(entropy(4), "big") % (1 << PROCESS_BITS)
        verifier = verifier or RecordVerifier(Authority(identity.ca_public_key))
        self.authority = verifier.authority
        """Whom we trust. After its refusals have changed, `install_trust` drops whom it refuses."""
        self.authority.check(identity.certificate)
        self.profile = profile
        self.effective = effective or EffectiveState()
        self._own = OwnRecord(
            identity,
            boot=boot,
            process=process,
            address=address,
            rpc_address=rpc_address,
            speaks=speaks,
            ring=ring.number,
            revocations=revocations,
            authorities=authorities,
        )
        self.members = Membership(self._own.current, profile, now=0.0)
        self._tag = self._own.current.tag
        self._process = process
        self._receiver_tag = receiver_tag(self._tag, self._own.life)
        self._rng = rng
        self._known = list(known)
        self._sealer = Sealer(
            ring=ring,
            cluster=self.authority.cluster,
            sender=self._tag,
            life=self._own.life,
            process=process,
            encrypt=encrypt,
            keys=packet_keys,
        )
        self._window = ReplayWindow()
        self._health = LocalHealth()
        self._outbox = Outbox(self._sealer)
        self._detector = Detector(profile, self.members, self._health, rng)
        self._relays = RelayedProbes(profile)
        self._redial = Redial(profile, seeds, address)
        self._news = Dissemination(profile, self.members, rng)
        self._vectors = VectorWatch()
        self._verdicts = Verdicts(
            profile=profile,
            members=self.members,
            own=self._own,
            verifier=verifier,
            news=self._news,
            health=self._health,
            effective=self.effective,
            outbox=self._outbox,
        )
        self._conversation = Conversation(
            members=self.members,
            own=self._own,
            detector=self._detector,
            relays=self._relays,
            redial=self._redial,
            news=self._news,
            verdicts=self._verdicts,
            vectors=self._vectors,
            outbox=self._outbox,
            rng=rng,
        )
        self._entered_at = self._heard_at = self._sync_at = 0.0
        self._called_back: dict[str, float] = {}
        """When a member may be called again for speaking to an earlier life of ours."""
        self._left_at: float | None = None
        self._stalls = 0
        self._stall_s_longest = 0.0

    # --- What the caller does ---------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Begin: call seeds and remembered members."""
        self._entered_at = self._heard_at = now
        self.members.own.status_since = now
        self._redial.start(now)
        self._sync_at = now
        # Remembered members are ALIVE until the normal suspicion says otherwise: a node that starts inside a cut must
        # not take over work on the strength of a file.
        for raw in self._known:
            record = self._verdicts.verified(raw)
            if record is not None and not record.body.left:
                self._verdicts.learn(record, now)
        self._call_missing(now)
        # A remembered member may live its next life by now, so it is called like a seed: for whoever listens there. A
        # few that answer tell of the others.
        remembered = self.members.active_others()
        for member in self._rng.sample(remembered, min(REMEMBERED_CALLS_MAX, len(remembered))):
            self._conversation.call(Call(member.address, member, None))
        return self._outbox.take()

    def on_datagram(self, data: bytes, source: Address, now: float) -> list[Effect]:
        """Take in one datagram. Whatever the bytes are, nothing is raised."""
        self._enter(now)
        try:
            self._receive(self._sealer.open(data), len(data), source, now)
        except PacketError as error:
            self._outbox.emit(PacketRefused(error.reason, source, error.detail))
        return self._outbox.take()

    def on_timer(self, now: float) -> list[Effect]:
        """Do what is due. Early calls are harmless; late ones are noticed and forgiven to the others."""
        self._enter(now)
        for relayed in self._relays.due(now):
            requester = self.members.get(relayed.requester)
            if requester is not None:
                self._outbox.send(requester, [Nack(relayed.their_nonce)])
        # A node that said goodbye still answers and spreads its goodbye, but judges nobody any more.
        if not self._own.left:
            self._probe(now)
            self._verdicts.judge(now, self._heard_at)
            if now >= self._redial.next_deadline(self.members):
                self._call_missing(now)
        if now >= self._sync_deadline():
            self._synchronize(now)
        # Last, so that whatever was decided above leaves with this very tick.
        if now >= self._news.next_deadline():
            self._gossip(now)
        return self._outbox.take()

    def next_deadline(self) -> float:
        """When to call `on_timer`, in the same seconds as `now`; infinite when there is nothing to wait for."""
        deadlines = [self._relays.next_deadline(), self._sync_deadline(), self._news.next_deadline()]
        if not self._own.left:
            deadlines += [self._detector.next_deadline(), self._redial.next_deadline(self.members)]
            deadlines.append(self._verdicts.next_deadline())
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
        return self._outbox.take()

    def set_spread(self, *, fanout: int, hop_ttl: int | None) -> None:
        """Tell so many members in a tick, and let new rumors take so many hops, from now on; None as by default."""
        self.profile = dataclasses.replace(self.profile, fanout=fanout, hop_ttl_override=hop_ttl)
        self._news.retune(self.profile)

    def set_vector_digest(self, digest: bytes) -> None:
        """Say what our replica holds, in 8 bytes; probes carry it, and a peer that differs twice asks for a pull."""
        assert len(digest) == DIGEST_VECTOR_BYTES, len(digest)
        self._vectors.own = digest

    def hint(self, now: float) -> list[Effect]:
        """Our replica just changed by more than a rumor carries: tell some members at the next gossip tick."""
        self._enter(now)
        self._news.hint()
        return self._outbox.take()

    def set_store_failed(self, failed: bool, now: float) -> list[Effect]:
        """Say in our record whether our database takes writes; while it does not, peers may take over our work."""
        self._enter(now)
        # A goodbye is the last word: one signed after it would never win over the first.
        record = None if self._own.left else self._own.set_store_failed(failed)
        if record is not None:
            self._verdicts.announce(record, now)
        return self._outbox.take()

    def forget(self, node_id: str, now: float) -> bool:
        """Forget a member that is DEAD or LEFT: nobody calls it any more. False when it is active, or unknown."""
        self._enter(now)
        forgotten = self.members.forget(node_id)
        self._forget_pruned(now)
        return forgotten

    def install_trust(
        self, ring: KeyRing, revocations: int, now: float, *, authorities: int = 0, renewed: Identity | None = None
    ) -> list[Effect]:
        """Seal with this ring from now on, drop whom our authority refuses by now, and say in our record what we have.

        Ring, revocations and authorities must be durable before: peers act on the record. `renewed` is our identity by
        a certificate of another CA, see `OwnRecord.set_installed`.
        """
        self._enter(now)
        former, self._sealer.ring = self._sealer.ring, ring
        self._verdicts.expel_revoked()
        self._forget_pruned(now)
        record = None
        if not self._own.left:
            record = self._own.set_installed(
                ring=ring.number, revocations=revocations, authorities=authorities, renewed=renewed
            )
        if record is not None:
            self._verdicts.announce(record, now)
        if former.primary.key_id != ring.primary.key_id and not self._own.left:
            # Whoever could not open what we said under the former key is told again, and at once.
            self._call_missing(now)
            unheard = [member for member in self.members.active_others() if member.last_heard is None]
            for member in unheard[:REMEMBERED_CALLS_MAX]:
                self._conversation.call(Call(member.address, member, None))
        return self._outbox.take()

    def adopt(self, identity: Identity, now: float) -> list[Effect]:
        """Go on under a later enrolment of this node: a new life, of which each member hears by a call."""
        self._enter(now)
        if self._own.left:
            return self._outbox.take()
        self.authority.check(identity.certificate)
        record = self._own.adopt(identity)
        self._sealer.begin_life(record.life)
        self._receiver_tag = receiver_tag(self._tag, record.life)
        self._verdicts.announce(record, now)
        for member in self.members.active_others():
            member.last_heard = None  # of our new life: until it answers, every probe introduces us
            self._conversation.call(Call(member.address, member, None))
        return self._outbox.take()

    def on_stream_probe(self, node_id: str, nonce: int, alive: bool, now: float) -> list[Effect]:
        """Report how a ProbeStream effect ended."""
        self._enter(now)
        member = self.members.get(node_id)
        if self._detector.on_stream(node_id, nonce, alive) and member is not None:
            member.last_heard = self._heard_at = now
        return self._outbox.take()

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye, signed. Keep the datagrams and timers coming until `left_done`."""
        self._enter(now)
        if self._left_at is not None:
            return self._outbox.take()
        self._left_at = now
        self._verdicts.announce(self._own.leave(), now)
        others = self.members.active_others()
        self._conversation.say_goodbye(self._rng.sample(others, min(LEAVE_CALLS_MAX, len(others))))
        return self._outbox.take()

    def left_done(self, now: float) -> bool:
        """True when everyone who was told has acknowledged our leave, or enough time and budget was spent."""
        if self._left_at is None:
            return False
        if self._conversation.goodbye_heard() or not self.members.active_others():
            return True
        return now - self._left_at >= LEAVE_WAIT_MIN_S and not self._news.spreading(self._tag)

    def may_reclaim(self, now: float) -> bool:
        """False while a mass failure is frozen: then nobody's work may be taken over."""
        return not self._verdicts.freeze.frozen(now)

    def statistics(self) -> Statistics:
        """Counters for metrics."""
        return Statistics(
            probes=self._detector.probes,
            probe_failures=self._detector.failures,
            local_health=self._health.score,
            relayed_probes=len(self._relays),
            rumors_queued=self._news.queued,
            rumors_dropped=self._news.dropped,
            rumors_ttl_exhausted=self._news.ttl_exhausted,
            records_refused=self._verdicts.records_refused,
            refutations=self._verdicts.refutations,
            freezes=self._verdicts.freeze.freezes,
            stalls=self._stalls,
            stall_s_longest=self._stall_s_longest,
        )

    # --- Time -------------------------------------------------------------------------------------------------------

    def _enter(self, now: float) -> None:
        """Notice that we stood still, before anything is judged by the clock."""
        # A deadline may lie before the call that created it (news after a quiet time is due at once), and then the
        # time since that call is what we are late by.
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
        self._verdicts.shift(late_s)
        self._heard_at += late_s  # our own pause is not the others' silence
        self._sync_at += late_s

    def _sync_deadline(self) -> float:
        return self._sync_at if self.members.active_others() else float("inf")

    def _probe(self, now: float) -> None:
        for step in self._detector.step(now):
            match step:
                case PingDirect(member, nonce):
                    self._conversation.ping(member, nonce)
                case PingIndirect(member, nonce, helpers):
                    # The stream goes a different way through the host (TCP, other buffers, other firewall rules), so
                    # it is tried in parallel: heavy datagram loss alone must not kill anybody.
                    for helper in helpers:
                        self._outbox.send(helper, [PingRequest(nonce, member.tag)])
                    self._outbox.emit(ProbeStream(member.node_id, member.rpc_address, nonce))
                case ProbeFailed(member):
                    self._verdicts.accuse(member, Reason.PROBE_TIMEOUT, now)

    def _call_missing(self, now: float) -> None:
        for call in self._redial.due(self.members, now):
            self._conversation.call(call)
        self._forget_pruned(now)

    def _synchronize(self, now: float) -> None:
        # Jitter keeps members that started together from synchronizing in step for ever.
        self._sync_at = now + self.profile.sync_interval_s * (1 + self._rng.random() / 4)
        alive = [member for member in self.members.active_others() if member.status is Status.ALIVE]
        if alive:
            self._conversation.offer_outline(self._rng.choice(alive))
        self._forget_pruned(now)

    def _gossip(self, now: float) -> None:
        receivers, plan = self._news.tick(self._vectors.own, now)
        # All receivers hear the same, so it is encoded once; only the seal differs.
        bodies = [codec.join_items(packet) for packet in plan.packets]
        for member in receivers:
            for body in bodies:
                self._outbox.send_body(member, body)

    def _forget_pruned(self, now: float) -> None:
        self.members.prune(now)
        for node_id in self.members.take_forgotten():
            self._verdicts.freeze.on_recovered(node_id)
            self.effective.forget(node_id)
            self._vectors.forget(node_id)
            self._called_back.pop(node_id, None)
            self._news.forget(node_tag(node_id))

    # --- Packets ----------------------------------------------------------------------------------------------------

    def _receive(self, packet: SealedPacket, size: int, source: Address, now: float) -> None:
        if packet.receiver not in (ANYONE, self._receiver_tag):
            self._call_back(packet, now)
            raise PacketError("wrong-receiver")
        if packet.sender == self._tag and packet.life == self._own.life and packet.process == self._process:
            self._receive_own(packet)
            return
        # Marked as seen before anything is acted upon: from here on a copy of this packet can do nothing.
        if not self._window.accept(packet.sender, packet.life, packet.process, packet.sequence):
            self._hear_proofs(packet, now)
            raise PacketError("replayed")
        items = codec.decode(packet.body)
        known = self.members.by_tag(packet.sender)
        if known is not None and packet.life < known.life:
            self._correct_stale(items, packet, known)
            raise PacketError("stale-life")
        # Records first: they may introduce the sender, and are believed whoever sent them.
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
        # A clone's packets carry its twin's name, so the address of that name may not be where they came from.
        address = member.address if packet.process == member.process else source
        for item in items:
            self._conversation.hear(item, member, reply_to or address, packet, size, now)

    def _call_back(self, packet: SealedPacket, now: float) -> None:
        """Introduce ourselves to a member that speaks to an earlier life of ours.

        Two nodes that start again while a cut is between them know each other's last lives only: neither could tell
        the other of its new one, and probes over streams would hold both ALIVE. It is called where its own record says,
        and seldom: the packet itself may be a replay.
        """
        sender = self.members.by_tag(packet.sender)
        if sender is not None and sender.active and now >= self._called_back.get(sender.node_id, 0.0):
            self._called_back[sender.node_id] = now + self.profile.redial_interval_s
            self._conversation.call(Call(sender.address, sender, None))

    def _hear_proofs(self, packet: SealedPacket, now: float) -> None:
        """Take what proves itself from a packet that the replay window refuses. A true replay has nothing of it left.

        Any holder of the ring key can run a member's window ahead, after which all that the member says looks replayed.
        That must cost it no more than news: its life is still proven, and its refutations are still heard.
        """
        sender = self.members.by_tag(packet.sender)
        if sender is None or sender.life != packet.life:
            return
        for item in codec.decode(packet.body):
            if isinstance(item, SignedRecord):
                self._introduced(item.record, packet, now)
            elif self._conversation.hear_proof(item, sender, now):
                sender.last_heard = self._heard_at = now

    def _receive_own(self, packet: SealedPacket) -> None:
        """A packet of this very process: when it is a call, one of the seeds is ourselves."""
        for item in codec.decode(packet.body):
            if isinstance(item, Ping) and self._redial.on_own_call(item.nonce):
                return
        raise PacketError("self")

    def _correct_stale(self, items: list[Item], packet: SealedPacket, known: Member) -> None:
        """Tell a node that calls with an earlier life than its last (a restored disk) what the mesh knows of it."""
        for item in items:
            record = self._verdicts.verified(item.record) if isinstance(item, SignedRecord) else None
            own_word = record is not None and record.tag == packet.sender and record.life == packet.life
            if record is not None and own_word and packet.receiver == ANYONE:
                self._conversation.correct(record, known)

    def _introduced(self, raw: bytes, packet: SealedPacket, now: float) -> Address | None:
        """Apply a record outside a rumor; the address to answer to when it is the sender's own."""
        record = self._verdicts.verified(raw)
        if record is None:
            return None
        own_word = record.tag == packet.sender and record.life == packet.life
        if own_word:
            self.members.recall(record, now)
        if self._verdicts.introduce(record, now) and record.tag != packet.sender:
            # A repair: there may be more where it came from, and waiting a whole period for it would be slow.
            self._sync_at = min(self._sync_at, now + 2 * self.profile.gossip_interval_s)
        return record.address if own_word else None

"""What members say to each other, item by item: probes and their answers, calls, rumors, digests and repairs.

Promises: an answer to a call (a packet for whoever listens) is never larger than the call but for our own record. An
outline is answered by at most `OUTLINE_DIGESTS_MAX` digests, a digest by at most `REPAIR_PACKETS_MAX` packets of what
its sender lacks and at most one digest, and an answering digest by none. What is told about members goes through
`mesh.verdicts`; nothing here changes the table.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mesh import codec, digests
from mesh.detector import Detector
from mesh.dissemination import BODY_SPACE_BYTES, Dissemination
from mesh.effects import RumorReceived, VectorDiffers
from mesh.ids import Address
from mesh.membership import Member, Membership, Status
from mesh.messages import (
    NONCE_BITS,
    PUBLISH_BYTES_MAX,
    Ack,
    Claim,
    Digest,
    Item,
    Nack,
    Outline,
    Ping,
    PingRequest,
    Rumor,
    RumorKind,
    SignedRecord,
    VectorHint,
)
from mesh.outbox import ANYONE, Outbox
from mesh.outlines import Outlines
from mesh.own_record import OwnRecord
from mesh.records import MemberRecord
from mesh.redial import Call, Redial
from mesh.relayed_probes import RelayedProbes
from mesh.sealing import PACKET_OVERHEAD_BYTES, SealedPacket, receiver_tag
from mesh.vector_watch import VectorWatch
from mesh.verdicts import Verdicts

OUTLINE_DIGESTS_MAX = 3  # answered to one outline; views that differ in more ranges meet again soon
REPAIR_PACKETS_MAX = 6  # answered to one digest: two dozen records; whoever needs more asks again at once


class Conversation:
    """Answers items of opened packets, and phrases what this node says unasked."""

    def __init__(
        self,
        *,
        members: Membership,
        own: OwnRecord,
        detector: Detector,
        relays: RelayedProbes,
        redial: Redial,
        news: Dissemination,
        verdicts: Verdicts,
        vectors: VectorWatch,
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._members = members
        self._own = own
        self._detector = detector
        self._relays = relays
        self._redial = redial
        self._news = news
        self._verdicts = verdicts
        self._vectors = vectors
        self._outbox = outbox
        self._rng = rng
        self._outlines = Outlines(members)
        self._leave_calls: dict[int, None] = {}

    # --- Unasked ----------------------------------------------------------------------------------------------------

    def ping(self, member: Member, nonce: int) -> None:
        """Probe a member."""
        items: list[Item] = []
        if member.last_heard is None or member.status is not Status.ALIVE:
            items.append(SignedRecord(self._own.current.raw))  # it may not know us, and then could not answer
        if member.status in (Status.SUSPECT, Status.DEAD):
            items.append(self._verdicts.evidence(member))  # the accused must hear it first, to refute it
        self._outbox.send(member, [*items, Ping(nonce, self._vectors.own)])

    def call(self, call: Call) -> None:
        """Introduce ourselves to whoever listens at an address, with all that is needed to be answered."""
        # The nonce ties the answer to the address: that is how a seed's address comes to stand for a member.
        nonce = self._nonce()
        self._redial.called(call, nonce)
        items: list[Item] = [SignedRecord(self._own.current.raw)]
        # After a cut each side holds the other DEAD. Telling so is what makes the other refute, in one round trip.
        if call.member is not None and call.member.status is Status.DEAD:
            items.append(self._verdicts.evidence(call.member))
        items.append(Ping(nonce, self._vectors.own))
        encoded, left = _fitting(items, BODY_SPACE_BYTES)
        self._outbox.seal(call.address, ANYONE, codec.join_items(encoded + self._whole_view(left)))

    def offer_outline(self, member: Member) -> None:
        """Begin an anti-entropy exchange."""
        self._outbox.send(member, [self._outlines.own()])

    def correct(self, stale: MemberRecord, known: Member) -> None:
        """Show a caller the record of its own later life, with ours so that it knows who speaks."""
        items = [SignedRecord(self._own.current.raw), SignedRecord(known.record)]
        self._outbox.seal(stale.address, receiver_tag(stale.tag, stale.life), codec.encode(items))

    def say_goodbye(self, members: Sequence[Member]) -> None:
        """Send our LEFT record to these members, and wait for their answers."""
        for member in members:
            nonce = self._nonce()
            self._leave_calls[nonce] = None
            self._outbox.send(member, [SignedRecord(self._own.current.raw), Ping(nonce, b"")])

    def goodbye_heard(self) -> bool:
        """True when everyone to whom we said goodbye has answered."""
        return not self._leave_calls

    # --- Answers ----------------------------------------------------------------------------------------------------

    def hear(self, item: Item, sender: Member, reply_to: Address, packet: SealedPacket, size: int, now: float) -> None:
        """Take in one item of a packet of `size` bytes from a known member."""
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
                self._verdicts.hear_claim(item, sender, None, now)
            case Digest():
                self._hear_digest(item, sender, packet, now)
            case Outline():
                self._hear_outline(item, sender)
            case VectorHint():
                if self._vectors.on_hint(item.vector):
                    self._outbox.emit(VectorDiffers(sender.node_id))
            case Rumor():
                self._hear_rumor(item, sender, now)
            case SignedRecord():
                pass  # applied before everything else in the packet

    def _answer(self, ping: Ping, sender: Member, reply_to: Address, packet: SealedPacket, size: int) -> None:
        receiver = receiver_tag(sender.tag, packet.life)
        items: list[Item] = [Ack(ping.nonce, self._vectors.own if ping.vector else b"")]
        if sender.status in (Status.SUSPECT, Status.DEAD):
            items.append(self._verdicts.evidence(sender))
        if sender.process != packet.process:
            items.insert(1, SignedRecord(sender.record))  # a clone must see whose record won
        if packet.receiver != ANYONE:
            self._outbox.seal(reply_to, receiver, codec.encode(items))
            return
        # The source of a call is not proven to be the caller, so the answer must not be larger than the call but for
        # our own record: otherwise we could be used to flood somebody else.
        items.insert(0, SignedRecord(self._own.current.raw))
        space = size - PACKET_OVERHEAD_BYTES + len(codec.encode_item(items[0]))
        encoded, left = _fitting(items, min(BODY_SPACE_BYTES, space))
        self._outbox.seal(reply_to, receiver, codec.join_items(encoded + self._whole_view(left)))

    def hear_proof(self, item: Item, sender: Member, now: float) -> bool:
        """Take in an item that needs no replay window; True when it proves that its sender is there now.

        An answer to a nonce of ours that is still open is fresh, a record is signed, and a claim about ourselves is
        answered at most once.
        """
        if isinstance(item, Ack) and self._acknowledged(item, sender, now):
            self._compare_vector(sender, item.vector)
            return True
        if isinstance(item, Rumor) and item.kind == RumorKind.RECORD:
            self._hear_rumor(item, sender, now)
        elif isinstance(item, Claim) and item.subject == self._members.own.tag:
            self._verdicts.hear_claim(item, sender, None, now)
        return False

    def _acknowledged(self, ack: Ack, sender: Member, now: float) -> bool:
        """True when this answers a ping of ours."""
        # A nonce belongs to at most one of these; they are 63 random bits, so none needs to know of the others.
        said_goodbye = ack.nonce in self._leave_calls
        self._leave_calls.pop(ack.nonce, None)
        probed = self._detector.on_ack(sender, ack.nonce, now)
        relayed = self._relays.on_ack(ack.nonce)
        if relayed is not None and (requester := self._members.get(relayed.requester)) is not None:
            self._outbox.send(requester, [Ack(relayed.their_nonce, b"")])
        called = self._redial.on_answer(ack.nonce, sender.node_id)
        # Now that the receiver's life is known, the exchange that a call may not carry can begin.
        if called and not self._own.left:
            self.offer_outline(sender)
        return said_goodbye or probed or relayed is not None or called

    def _ping_for(self, request: PingRequest, requester: Member, now: float) -> None:
        # A helper that cannot even try says so at once: the requester should not take silence for its own deafness.
        target = self._members.by_tag(request.target)
        nonce = self._nonce()
        if target is None or not self._relays.begin(requester.node_id, request.nonce, nonce, now):
            self._outbox.send(requester, [Nack(request.nonce)])
        else:
            self.ping(target, nonce)

    def _compare_vector(self, sender: Member, vector: bytes) -> None:
        if self._vectors.on_exchange(sender.node_id, vector):
            self._outbox.emit(VectorDiffers(sender.node_id))

    def _hear_rumor(self, rumor: Rumor, sender: Member, now: float) -> None:
        # Copies end here, before any signature is checked: most of what arrives is a copy.
        if not self._news.is_new(rumor, now):
            return
        # Records and claims are passed on only when they changed our table: news that changed nothing here is old,
        # or was beaten, and dies out instead of going round. Topics, and kinds of a newer release, mean
        # nothing to us, so every new one goes on.
        if rumor.kind == RumorKind.RECORD:
            record = self._verdicts.verified(rumor.payload)
            if record is not None and self._verdicts.learn(record, now):
                self._news.relay(rumor, now, record.tag)
        elif rumor.kind == RumorKind.CLAIM:
            self._verdicts.hear_claim(codec.decode_claim(rumor.payload), sender, rumor, now)
        elif len(rumor.payload) <= PUBLISH_BYTES_MAX:
            self._news.relay(rumor, now)
            if rumor.kind == RumorKind.TOPIC:
                self._outbox.emit(RumorReceived(rumor.topic, rumor.payload, sender.node_id))

    def _hear_outline(self, outline: Outline, sender: Member) -> None:
        """Show the sender our view of those ranges in which its own is another one; it answers with what we lack."""
        differing = self._outlines.differing(outline)
        for low, high in self._rng.sample(differing, min(OUTLINE_DIGESTS_MAX, len(differing))):
            members = self._members.in_tag_order()
            low = digests.part_that_fits(members, low, high, BODY_SPACE_BYTES, self._rng)
            self._outbox.send(sender, [self._digest_of(low, high, answer=False)])

    def _hear_digest(self, digest: Digest, sender: Member, packet: SealedPacket, now: float) -> None:
        if packet.receiver == ANYONE:
            # A call: answered with our own digest, which the caller answers under our receiver tag.
            self._verdicts.hear_view_of_us(digests.view_of(digest, self._members.own), now)
            return
        difference = digests.compare(self._members.in_tag_order(), digest, self._members.own)
        self._verdicts.hear_view_of_us(difference.of_us, now)
        # In any order: whoever lacks most of them asks many, and should not be sent the same few by all.
        self._rng.shuffle(difference.ours_newer)
        self._repair(sender, difference.ours_newer, now)
        if difference.theirs_newer and not digest.answer:
            self._outbox.send(sender, [self._digest_of(digest.low, digest.high, answer=True)])

    def _repair(self, receiver: Member, newer: list[Member], now: float) -> None:
        """Send what the receiver lacks, as far as a few packets carry it."""
        # A record and the claim about it travel together: the claim alone would be parked, the record alone would
        # show a dead member as alive until the next exchange.
        packets: list[list[bytes]] = [[]]
        left = BODY_SPACE_BYTES
        for member in newer:
            items: list[Item] = [SignedRecord(member.record)]
            if member.status in (Status.SUSPECT, Status.DEAD) and not self._verdicts.doubts_itself(now):
                items.append(self._verdicts.evidence(member))
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
                self._outbox.send_body(receiver, codec.join_items(packet))

    def _whole_view(self, space: int) -> list[bytes]:
        """Our view of all members, encoded, if that fits; when it does not, the outline that follows finds the rest."""
        digest = digests.whole_digest(self._members.in_tag_order(), space)
        return [] if digest is None else [codec.encode_item(digest)]

    def _digest_of(self, low: bytes, high: bytes, *, answer: bool) -> Digest:
        members = self._members.in_tag_order()
        return digests.make_digest(members, low=low, high=high, space=BODY_SPACE_BYTES, answer=answer)

    def _nonce(self) -> int:
        return self._rng.getrandbits(NONCE_BITS)


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

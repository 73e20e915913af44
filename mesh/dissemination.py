"""Spreading news: numbers new rumors, relays those that were news, and plans what each gossip tick says.

Promises: a rumor leaves this node at most `rumor_sends(n)` times and travels at most `hop_ttl(n)` hops. Without news
there is no tick and nothing is sent. The first news after a quiet interval is due at once; more wait for the next tick.
"""

from __future__ import annotations

import math
import random

from mesh.codec import BODY_OVERHEAD_BYTES, ITEMS_MAX, encode_claim, encode_item
from mesh.membership import Member, Membership
from mesh.messages import Claim, Rumor, RumorKind, VectorHint
from mesh.profiles import Profile
from mesh.rumors import RumorDedup, RumorQueue, TickPlan, plan_tick
from mesh.sealing import BODY_BYTES_MAX

TOPIC_AGE_MAX_S = 10.0
"""Anti-entropy has brought rows to everybody by then. Far below the dedup window, in which a copy is known as one."""

BODY_SPACE_BYTES = BODY_BYTES_MAX - BODY_OVERHEAD_BYTES


class Dissemination:
    """The rumor queues of one node and the clock of its gossip ticks."""

    def __init__(self, profile: Profile, members: Membership, rng: random.Random) -> None:
        self._profile = profile
        self._members = members
        self._rng = rng
        self._membership = RumorQueue()
        self._topics = RumorQueue()
        self._dedup = RumorDedup(profile.dedup_entries, profile.dedup_window_s)
        # Numbers start at random: two clones of one disk must not shadow each other's rumors.
        self._number = rng.getrandbits(62)
        self._ticked_at = float("-inf")
        self._hint = False
        self._turn = 0
        self.ttl_exhausted = 0

    def retune(self, profile: Profile) -> None:
        """Spread by the fanout and hop cap of this profile from now on."""
        self._profile = profile

    def is_new(self, rumor: Rumor, now: float) -> bool:
        """True the first time this rumor is heard; its copies are dropped. Our own come back as copies too."""
        return self._dedup.is_new((rumor.origin, rumor.life, rumor.number), now)

    def tell_record(self, record: bytes, subject: bytes, now: float) -> None:
        """Begin to spread a signed record; whatever was queued about its subject is older."""
        self._push(self._new(RumorKind.RECORD, record, 0, now), subject, b"", now)

    def tell_claim(self, claim: Claim, now: float) -> None:
        """Begin to spread an accusation."""
        self._push(self._new(RumorKind.CLAIM, encode_claim(claim), 0, now), claim.subject, claim.accuser, now)

    def tell_topic(self, topic: int, payload: bytes, subject: bytes | None, now: float) -> None:
        """Begin to spread another layer's news; with a subject, it replaces what was queued about that subject."""
        rumor = self._new(RumorKind.TOPIC, payload, topic, now)
        self._push(rumor, _topic_subject(topic, subject, rumor), b"", now)

    def relay(self, rumor: Rumor, now: float, subject: bytes = b"", variant: bytes = b"") -> None:
        """Pass a rumor on that was news here, unless it has no hops left."""
        if rumor.ttl <= 1:
            self.ttl_exhausted += 1
            return
        # A forged rumor may claim more hops than anyone gives; it gets no more than one of ours.
        ttl = min(rumor.ttl, self._profile.hop_ttl(self._members.size())) - 1
        passed = Rumor(rumor.origin, rumor.life, rumor.number, ttl, rumor.kind, rumor.topic, rumor.payload)
        self._push(passed, subject or _topic_subject(rumor.topic, None, rumor), variant, now)

    def hint(self) -> None:
        """Say at the next tick that our replica has changed; several hints become one."""
        self._hint = True

    def next_deadline(self) -> float:
        """When the next tick is due; never without news."""
        if not (self._hint or len(self._membership) or len(self._topics)) or not self._members.active_others():
            return float("inf")
        return self._ticked_at + self._profile.gossip_interval_s

    def tick(self, vector: bytes, now: float) -> tuple[list[Member], TickPlan]:
        """Choose receivers and what each of them is told, and account for it."""
        self._topics.expire(before=now - TOPIC_AGE_MAX_S)
        receivers = self._receivers()
        first = [encode_item(VectorHint(vector))] if self._hint and vector else []
        plan = plan_tick(first, self._membership, self._topics, space=BODY_SPACE_BYTES, items_max=ITEMS_MAX)
        budget = self._profile.rumor_sends(self._members.size())
        self._membership.sent(plan.membership, len(receivers), budget)
        self._topics.sent(plan.topics, len(receivers), budget)
        self._ticked_at, self._hint = now, False
        return receivers, plan

    def _receivers(self) -> list[Member]:
        """One random member; the others are next neighbours on the ring of tags, in turn.

        Randomness alone leaves somebody out now and then, however often all send: at 20 % loss one in a hundred rumors
        missed one of 100 members. So that nobody depends on luck, each member is told by those before it on the ring.
        """
        others = self._members.active_others()
        fanout = min(self._profile.fanout, len(others))
        neighbours = max(0, fanout - 1)
        # As many as a rumor is told in all its ticks: each of them hears it once from us.
        ticks = math.ceil(self._profile.rumor_sends(len(others) + 1) / max(1, fanout))
        ring = self._members.successors(neighbours * ticks)
        chosen = [ring[(self._turn + index) % len(ring)] for index in range(neighbours)]
        self._turn += neighbours
        spare = self._rng.sample(others, fanout)
        return chosen + [member for member in spare if member not in chosen][: fanout - neighbours]

    def spreading(self, subject: bytes) -> bool:
        """True while news about this member still has budget here."""
        return self._membership.has(subject)

    def forget(self, subject: bytes) -> None:
        """Stop spreading news about a member that was pruned."""
        self._membership.drop(subject)

    def forget_claims(self) -> None:
        """Stop spreading accusations."""
        self._membership.drop_variants()

    def shift(self, seconds: float) -> None:
        """Forgive a pause of our own."""
        self._ticked_at += seconds

    @property
    def queued(self) -> int:
        """Rumors with budget left."""
        return len(self._membership) + len(self._topics)

    @property
    def dropped(self) -> int:
        """Rumors that were given up before their budget was spent: the queue was full, or they were old."""
        return self._membership.dropped + self._topics.dropped + self._topics.expired

    def _new(self, kind: RumorKind, payload: bytes, topic: int, now: float) -> Rumor:
        self._number += 1
        own = self._members.own
        ttl = self._profile.hop_ttl(self._members.size())
        rumor = Rumor(own.tag, own.life, self._number, ttl, kind, topic, payload)
        self.is_new(rumor, now)
        return rumor

    def _push(self, rumor: Rumor, subject: bytes, variant: bytes, now: float) -> None:
        queue = self._membership if rumor.kind in (RumorKind.RECORD, RumorKind.CLAIM) else self._topics
        # A signed record settles every claim about what came before it.
        queue.push(encode_item(rumor), subject, variant, now=now, clears=rumor.kind == RumorKind.RECORD)


def _topic_subject(topic: int, subject: bytes | None, rumor: Rumor) -> bytes:
    if subject is not None:
        return bytes((topic,)) + subject
    return b"%b%d.%d" % (rumor.origin, rumor.life, rumor.number)

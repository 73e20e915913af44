"""What members say to each other inside a sealed packet: a list of items, each of one kind.

Promises: every field that comes off the wire is bounded here, so a decoded message can be used as it is. Item kinds
and rumor kinds are numbers that never change their meaning; unknown ones are skipped by older nodes, which is what
makes a rolling upgrade possible. A new kind of item may be sent to everybody if nothing is lost when it is skipped, and
else only to members whose record says that they understand it (`Member.speaks`).
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

NONCE_BITS = 63  # msgpack's signed range, which every decoder reads
INCARNATION_MAX = (1 << 32) - 1  # four bytes in a digest entry; one refutation a second lasts 136 years
DIGEST_VECTOR_BYTES = 8
RANGE_BYTES = 8  # the first bytes of a node tag, which order members in digests
OUTLINE_HASH_BYTES = 8
OUTLINE_RANGES_MAX = 64
RECORD_BYTES_MAX = 512  # a signed record: certificate and signatures 250, name 32, two host names of 100
CLAIM_BYTES_MAX = 128  # 54 now; the rest is for a newer release
PUBLISH_BYTES_MAX = 900  # payload of a published topic; leaves 200 bytes of a packet for probes and claims
TOPIC_MAX = 255

Tag = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
RangeEnd = Annotated[bytes, msgspec.Meta(min_length=RANGE_BYTES, max_length=RANGE_BYTES)]
VectorDigest = Annotated[bytes, msgspec.Meta(max_length=DIGEST_VECTOR_BYTES)]
Nonce = Annotated[int, msgspec.Meta(ge=0, le=(1 << NONCE_BITS) - 1)]
LifeNumber = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Incarnation = Annotated[int, msgspec.Meta(ge=0, le=INCARNATION_MAX)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class Reason(enum.IntEnum):
    """Why a member was accused. Sent as a number; unknown numbers read as `OTHER`."""

    OTHER = 0
    PROBE_TIMEOUT = 1
    """Neither it nor any helper answered, nor did its stream."""
    SUSPICION_EXPIRED = 2
    """It was suspected and did not refute in time."""
    ACCUSERS = 3
    """Enough live members declared it DEAD."""

    @property
    def label(self) -> str:
        """The text shown to people, such as `probe-timeout`."""
        return self.name.lower().replace("_", "-")


class Ping(msgspec.Struct, frozen=True, array_like=True):
    """Answer this nonce. An empty digest says nothing about the sender's replica."""

    nonce: Nonce
    vector: VectorDigest


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """The echo of a ping's nonce; from a helper, of the ping request's."""

    nonce: Nonce
    vector: VectorDigest


class PingRequest(msgspec.Struct, frozen=True, array_like=True):
    """Please ping this member, and pass its answer on under my nonce."""

    nonce: Nonce
    target: Tag


class Nack(msgspec.Struct, frozen=True, array_like=True):
    """The helper heard the request but not the target: so the requester is not deaf."""

    nonce: Nonce


class SignedRecord(msgspec.Struct, frozen=True, array_like=True):
    """A member's record as signed by it (see `mesh.records`), outside any rumor: an introduction or a repair."""

    record: Annotated[bytes, msgspec.Meta(max_length=RECORD_BYTES_MAX)]


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """An unsigned accusation: `accuser` holds that this incarnation of `subject` is SUSPECT, or DEAD."""

    subject: Tag
    life: LifeNumber
    incarnation: Incarnation
    accuser: Tag
    reason: Byte
    dead: bool

    def cause(self) -> Reason:
        """The reason, as far as this version knows it."""
        return Reason(self.reason) if self.reason in Reason.__members__.values() else Reason.OTHER


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """The sender's view of all members whose tags lie in a range (which may wrap round), see `mesh.digests`."""

    low: RangeEnd
    high: RangeEnd
    answer: bool
    """This digest answers another one: it is not to be answered by a third."""
    entries: Annotated[bytes, msgspec.Meta(max_length=1_200)]


class Outline(msgspec.Struct, frozen=True, array_like=True):
    """The sender's view of all members, as one hash per range of tags, see `mesh.outlines`."""

    hashes: Annotated[
        bytes, msgspec.Meta(min_length=OUTLINE_HASH_BYTES, max_length=OUTLINE_HASH_BYTES * OUTLINE_RANGES_MAX)
    ]


class VectorHint(msgspec.Struct, frozen=True, array_like=True):
    """My replica has just changed by more than rumors carry; its digest is now this."""

    vector: VectorDigest


class RumorKind(enum.IntEnum):
    """What a rumor's payload is. Rumors of other kinds are a newer release's: passed on unread, as topics are."""

    RECORD = 1
    CLAIM = 2
    TOPIC = 3


class Rumor(msgspec.Struct, frozen=True, array_like=True):
    """News that is passed on. (origin, life, number) names it; `ttl` hops are left."""

    origin: Tag
    life: LifeNumber
    number: Nonce
    ttl: Byte
    kind: Byte
    topic: Byte
    """Meaning of a TOPIC rumor; 0 otherwise."""
    payload: Annotated[bytes, msgspec.Meta(max_length=1_200)]


Item = Ping | Ack | PingRequest | Nack | SignedRecord | Claim | Digest | VectorHint | Rumor | Outline

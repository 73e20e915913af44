"""Everything the membership core may ask the outside world to do: a sealed set of values.

The shell carries effects out in the order given. An effect that fails outside (a full socket buffer, a refused stream)
is the network's business: the core already counts on loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.ids import Address


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send these bytes, at most 1,200 of them, to this address."""

    address: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class ProbeStream:
    """Ask this node over its TLS stream whether it lives; report to `Gossip.on_stream_probe`."""

    node_id: str
    rpc_address: Address
    nonce: int


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """A member's protocol status, life, address or flags changed. `before` is None for a new member.

    `status` values are those of `mesh.membership.Status`.
    """

    node_id: str
    before: str | None
    after: str
    reason: str
    """A short cause, such as `probe-timeout`, `refuted`, `signed-leave`, `joined`."""
    accuser: str | None = None


@dataclass(frozen=True, slots=True)
class RumorReceived:
    """News of a topic that the core itself does not read, seen for the first time. Already queued for relay."""

    topic: int
    payload: bytes
    via: str
    """The node id of the peer it came from, which is not always where it began."""


@dataclass(frozen=True, slots=True)
class VectorDiffers:
    """A peer announced another state of its replica than ours: a pull from it may bring news."""

    node_id: str


@dataclass(frozen=True, slots=True)
class PacketRefused:
    """A datagram was dropped. `reason` comes from `mesh.sealing.REASONS`, a fixed set; `detail` is for people."""

    reason: str
    source: Address
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SelfConflict:
    """The mesh knows a later life or another process of our node id: a restored or cloned disk. Refuse new work."""

    detail: str
    boot: int = 0
    """The latest start of this enrolment that the mesh knows of. The next start must be a later one."""


Effect = SendDatagram | ProbeStream | MemberChanged | RumorReceived | VectorDiffers | PacketRefused | SelfConflict

"""Effects in the order in which they were decided, and the sealing of what goes out.

Promises: `take` hands over every effect once, in order. Every datagram is addressed to one life of one member, or to
whoever listens at an address.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh import codec
from mesh.effects import Effect, SendDatagram
from mesh.ids import Address
from mesh.membership import Member
from mesh.messages import Item
from mesh.sealing import Sealer, receiver_tag

ANYONE = 0  # the receiver tag of a packet for whoever listens there


class Outbox:
    """Collects the effects of one call into the core."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self._effects: list[Effect] = []

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self._effects.append(effect)

    def send(self, member: Member, items: Sequence[Item]) -> None:
        """Send items to the current life of a member."""
        self.send_body(member, codec.encode(items))

    def send_body(self, member: Member, body: bytes) -> None:
        """Send an encoded body to the current life of a member."""
        self.seal(member.address, receiver_tag(member.tag, member.life), body)

    def seal(self, address: Address, receiver: int, body: bytes) -> None:
        """Send an encoded body to an address, for this receiver tag only."""
        self._effects.append(SendDatagram(address, self._sealer.seal(body, receiver)))

    def take(self) -> list[Effect]:
        """Hand over what was collected."""
        effects, self._effects = self._effects, []
        return effects

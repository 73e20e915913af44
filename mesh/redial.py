"""Whom to call again although nobody there is a member now: seeds, and members that are DEAD. For ever.

Promises: a seed is called until a member answers at it, and again once that member is gone; an address that turns out
to be our own is never called again. Soon after the start calls come faster, doubling up to the profile's period: a
mesh that boots together should not wait a whole period for whoever was a moment late. This is what heals a partition
after which each side holds the other DEAD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.ids import Address
from mesh.membership import Member, Membership
from mesh.profiles import Profile

CALLS_MAX = 16  # per pass; with more gone members a pass takes its turn among them
SEEDS_MAX = 256
CALLS_REMEMBERED_MAX = 1_024  # calls outside of a pass, of which each member gets one a period
FIRST_PERIOD_S = 0.5


@dataclass(slots=True)
class Seed:
    """An address given by the operator, and what was found there."""

    address: Address
    node_id: str | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """Call this address: a seed, or a member that may have come back."""

    address: Address
    member: Member | None
    seed: Seed | None


class Redial:
    """Keeps the time of redials and the memory of seeds."""

    def __init__(self, profile: Profile, seeds: Sequence[Address], own: Address) -> None:
        self._period_s = profile.redial_interval_s
        self._pause_s = min(FIRST_PERIOD_S, profile.redial_interval_s)
        self._seeds = [Seed(address) for address in dict.fromkeys(seeds) if address != own][:SEEDS_MAX]
        self._calls: dict[int, Seed | None] = {}  # nonces of the running pass, and of calls since
        self._turn = 0
        self._at = float("inf")
        self._missing_now: list[Call] = []
        self._missing_at_version = -1

    def start(self, now: float) -> None:
        """Make the first pass due."""
        self._at = now

    def next_deadline(self, members: Membership) -> float:
        """When `due` should be called; never while everybody is there."""
        return self._at if self._missing(members) else float("inf")

    def due(self, members: Membership, now: float) -> list[Call]:
        """The calls of one pass."""
        missing = self._missing(members)
        self._calls.clear()
        self._at = now + self._pause_s
        self._pause_s = min(self._period_s, 2 * self._pause_s)
        if len(missing) > CALLS_MAX:
            self._turn = (self._turn + CALLS_MAX) % len(missing)
            missing = (missing + missing)[self._turn : self._turn + CALLS_MAX]
        return missing

    def called(self, call: Call, nonce: int) -> None:
        """A call went out under this nonce."""
        if len(self._calls) >= CALLS_REMEMBERED_MAX:
            del self._calls[next(iter(self._calls))]
        self._calls[nonce] = call.seed

    def on_answer(self, nonce: int, node_id: str) -> bool:
        """True when this answers a call of the running pass; a seed's address then stands for that member."""
        if nonce not in self._calls:
            return False
        seed = self._calls.pop(nonce)
        if seed is not None:
            seed.node_id = node_id
            self._missing_at_version = -1
        return True

    def on_own_call(self, nonce: int) -> bool:
        """True when we have called ourselves; that seed is dropped."""
        seed = self._calls.pop(nonce, None)
        if seed is None:
            return False
        seed.ours = True
        self._missing_at_version = -1
        return True

    def shift(self, seconds: float) -> None:
        """Forgive a pause of our own."""
        self._at += seconds

    def _missing(self, members: Membership) -> list[Call]:
        # Asked with every packet, computed when the table or a seed has changed.
        if self._missing_at_version != members.version:
            self._missing_now, self._missing_at_version = self._find_missing(members), members.version
        return self._missing_now

    def _find_missing(self, members: Membership) -> list[Call]:
        calls: dict[Address, Call] = {}
        for seed in self._seeds:
            if not seed.ours and not _is_there(seed, members):
                member = members.get(seed.node_id) if seed.node_id is not None else None
                calls[seed.address] = Call(seed.address, member, seed)
        for member in members.dead():
            if member.address not in calls:
                calls[member.address] = Call(member.address, member, None)
        return list(calls.values())


def _is_there(seed: Seed, members: Membership) -> bool:
    """Whether a member that was found at this address, or that says it is there, is active."""
    member = members.get(seed.node_id) if seed.node_id is not None else None
    if member is not None and member.active:
        return True
    return any(member.address == seed.address for member in members.active_others())

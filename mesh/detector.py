"""The failure detector: SWIM probes in shuffled round robin, helpers, a stream probe, Lifeguard's patience.

Promises: one probe is in flight at a time; every active member is probed once per round; a probe fails only after the
direct ping, up to `indirect_probes` helpers and the stream all stayed silent until its end. The detector sends nothing
itself: it returns what is to be done, in order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from mesh.local_health import LocalHealth
from mesh.membership import Member, Membership
from mesh.messages import NONCE_BITS
from mesh.profiles import Profile


@dataclass(frozen=True, slots=True)
class PingDirect:
    """Ping this member under this nonce."""

    member: Member
    nonce: int


@dataclass(frozen=True, slots=True)
class PingIndirect:
    """Ask the helpers to ping the member, and try its stream, all under the same nonce."""

    member: Member
    nonce: int
    helpers: list[Member]


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """The member stayed silent; a suspicion is due."""

    member: Member


ProbeStep = PingDirect | PingIndirect | ProbeFailed


@dataclass(slots=True)
class _Probe:
    member: Member
    life: int  # a verdict about one life says nothing about the next
    nonce: int
    answer_by: float
    ends: float
    helpers: list[Member] = field(default_factory=list)
    nacks: dict[str, None] = field(default_factory=dict)
    asked: bool = False


class Detector:
    """Decides whom to probe when, and when a probe has failed."""

    def __init__(self, profile: Profile, members: Membership, health: LocalHealth, rng: random.Random) -> None:
        self._profile = profile
        self._members = members
        self._health = health
        self._rng = rng
        self._round: list[str] = []
        self._probe: _Probe | None = None
        self._next_at = 0.0
        self.probes = 0
        self.failures = 0

    def next_deadline(self) -> float:
        """When `step` has something to do."""
        probe = self._probe
        if probe is None:
            return self._next_at if self._members.active_others() else float("inf")
        return probe.ends if probe.asked else min(probe.answer_by, probe.ends)

    def step(self, now: float) -> list[ProbeStep]:
        """Do what is due: end or widen the running probe, begin the next."""
        steps: list[ProbeStep] = []
        probe = self._probe
        if probe is not None and now >= probe.ends:
            steps += self._end(probe)
        elif probe is not None and not probe.asked and now >= probe.answer_by:
            steps.append(self._widen(probe))
        if self._probe is None and now >= self._next_at:
            steps += self._begin(now)
        return steps

    def on_ack(self, sender: Member, nonce: int, now: float) -> bool:
        """The target answered, or a helper passed its answer on; True when this ended the running probe well."""
        probe = self._probe
        if probe is None or probe.nonce != nonce or (sender is not probe.member and sender not in probe.helpers):
            return False
        # A late answer proves life but no health of our own.
        if now <= probe.answer_by:
            self._health.better()
        self._probe = None
        return True

    def on_nack(self, sender: Member, nonce: int) -> None:
        """A helper heard us but not the target: we are not deaf."""
        probe = self._probe
        if probe is not None and probe.nonce == nonce and sender in probe.helpers:
            probe.nacks[sender.node_id] = None

    def on_stream(self, node_id: str, nonce: int, alive: bool) -> bool:
        """The stream probe ended. Its silence adds nothing: the probe ends at its own time."""
        probe = self._probe
        if not alive or probe is None or probe.nonce != nonce or probe.member.node_id != node_id:
            return False
        self._probe = None
        return True

    def shift(self, seconds: float) -> None:
        """Forgive a pause of our own."""
        self._next_at += seconds
        if self._probe is not None:
            self._probe.answer_by += seconds
            self._probe.ends += seconds

    def _begin(self, now: float) -> list[ProbeStep]:
        member = self._next_target()
        stretch = self._health.stretch
        # Interval and timeout stretch together: a longer timeout alone would run into the next probe.
        self._next_at = now + self._profile.probe_interval_s * stretch
        if member is None:
            return []
        self._probe = _Probe(
            member,
            member.life,
            self._rng.getrandbits(NONCE_BITS),
            answer_by=now + self._profile.probe_timeout_s * stretch,
            ends=now + self._profile.probe_fails_after_s() * stretch,
        )
        self.probes += 1
        return [PingDirect(member, self._probe.nonce)]

    def _widen(self, probe: _Probe) -> ProbeStep:
        probe.asked = True
        # A suspected helper would likely stay silent, and its silence would count against us.
        candidates = [m for m in self._members.active_others() if m is not probe.member and m.suspicion is None]
        probe.helpers = self._rng.sample(candidates, min(self._profile.indirect_probes, len(candidates)))
        return PingIndirect(probe.member, probe.nonce, probe.helpers)

    def _end(self, probe: _Probe) -> list[ProbeStep]:
        self._probe = None
        # Helpers that did not even refuse speak against us, not against the target. Without helpers nobody can tell.
        self._health.worse(len(probe.helpers) - len(probe.nacks))
        # The member may have left, died or begun another life while we waited.
        if probe.life != probe.member.life or not probe.member.active:
            return []
        self.failures += 1
        return [ProbeFailed(probe.member)]

    def _next_target(self) -> Member | None:
        # Shuffled rounds bound the time to the first probe of a dead member, which random targets do not.
        for _ in range(2):
            while self._round:
                member = self._members.get(self._round.pop())
                if member is not None and member.active and member is not self._members.own:
                    return member
            self._round = [member.node_id for member in self._members.active_others()]
            self._rng.shuffle(self._round)
        return None

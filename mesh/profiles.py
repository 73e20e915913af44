"""The timing of a mesh, in one frozen value: `LOCAL` for one host, `LAN` for one site, `WAN` for distant ones.

Promises: everything that depends on the size of the mesh is computed here, from the number of members `n` that are not
known to be gone, this node included. All members should run one profile; the protocol stays correct when they do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# A rumor needs retransmissions that grow with log N. Below 12 some members are missed at 20-30 % packet loss
# (400 simulated runs per cell: 0.5-7.5 % of rumors with 8, at most 0.5 % with 12); anti-entropy does the rest.
RUMOR_SENDS_MIN = 12
_RUMOR_SENDS_PER_DECADE = 4

# The cap only stops a rumor that would go round for ever. It must not stop one before: an idle node relays at once, so
# the first wave makes its hops in milliseconds, and with 8 of them up to 29 of 100 members could pass nothing on.
_HOP_TTL_SMALL = 12
_HOP_TTL_LARGE = 16
_LARGE_MESH = 300

# An unconfirmed suspicion waits this many times longer than a confirmed one (Lifeguard): the suspecting node may be
# the sick one, and then nobody confirms.
SUSPICION_MAX_FACTOR = 6

# A rumor reaches everyone, and the answer comes back, in at most 1 s each at 100 members of the `lan` profile.
REFUTE_PROBE_INTERVALS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Periods, fanouts and limits. Change single values with `dataclasses.replace`."""

    name: str
    probe_interval_s: float
    """One member is probed per interval."""
    probe_timeout_s: float
    """Wait this long for a direct answer before asking helpers."""
    indirect_probes: int
    """Helpers asked for one probe."""
    gossip_interval_s: float
    fanout: int
    """Members told per gossip tick."""
    suspicion_mult: int
    """Shortest suspicion, in probe intervals (times log10 of the mesh's size)."""
    sync_interval_s: float
    """Period of membership anti-entropy with one random member, before jitter."""
    redial_interval_s: float
    """Period in which seeds without a member, and DEAD members, are tried again, for ever."""
    suspect_after_s: float | None = None
    """Overrides the direct probe timeout plus helpers' time: a probe fails after this. None: one probe interval."""
    dead_after_s_override: float | None = None
    """Overrides the shortest suspicion. None: computed from `suspicion_mult`."""
    hop_ttl_override: int | None = None
    """Overrides the hop cap of rumors. None: 12, and 16 above 300 members."""
    dead_accusers: int = 3
    """When this many distinct live members say DEAD, only the time to refute is waited for."""
    dedup_entries: int = 4_096
    dedup_window_s: float = 60.0
    members_max: int = 2_000
    """Known members, gone ones included."""
    forget_after_s: float = 86_400.0
    """LEFT members are listed this long. DEAD ones are called for ever, so they stay until the table is full."""

    def dead_after_s(self, n: int) -> float:
        """One dead time: the shortest a silent member stays SUSPECT before it is DEAD."""
        if self.dead_after_s_override is not None:
            return self.dead_after_s_override
        return self.suspicion_mult * max(1.0, math.log10(max(n, 1))) * self.probe_interval_s

    def refutable_s(self, n: int) -> float:
        """However many accuse a member, it has this long to refute."""
        return min(REFUTE_PROBE_INTERVALS * self.probe_interval_s, self.dead_after_s(n))

    def confirmations_wanted(self, n: int) -> int:
        """Independent accusers after which a suspicion is as short as it gets; 0 when the mesh has too few members."""
        wanted = self.suspicion_mult - 2
        return wanted if n - 2 >= wanted else 0

    def probe_fails_after_s(self) -> float:
        """Seconds from the first ping to the verdict, in good local health."""
        return self.suspect_after_s or self.probe_interval_s

    def rumor_sends(self, n: int) -> int:
        """How often one node sends one rumor, counted per receiver."""
        return max(RUMOR_SENDS_MIN, _RUMOR_SENDS_PER_DECADE * math.ceil(math.log10(n + 1)))

    def hop_ttl(self, n: int) -> int:
        """Hops that a new rumor may take."""
        if self.hop_ttl_override is not None:
            return self.hop_ttl_override
        return _HOP_TTL_LARGE if n > _LARGE_MESH else _HOP_TTL_SMALL


LOCAL = Profile(
    name="local",
    probe_interval_s=0.5,
    probe_timeout_s=0.25,
    indirect_probes=3,
    gossip_interval_s=0.1,
    fanout=3,
    suspicion_mult=5,
    sync_interval_s=2.0,
    redial_interval_s=5.0,
)

LAN = Profile(
    name="lan",
    probe_interval_s=1.0,
    probe_timeout_s=0.5,
    indirect_probes=3,
    gossip_interval_s=0.2,
    fanout=3,
    suspicion_mult=4,
    sync_interval_s=5.0,
    redial_interval_s=5.0,
)

WAN = Profile(
    name="wan",
    probe_interval_s=5.0,
    probe_timeout_s=3.0,
    indirect_probes=3,
    gossip_interval_s=0.5,
    fanout=4,
    suspicion_mult=6,
    sync_interval_s=15.0,
    redial_interval_s=30.0,
)

PROFILES = {profile.name: profile for profile in (LOCAL, LAN, WAN)}

"""Every kind of fault there is: what it does, whom it can hit, its options with their limits, and where it works.

The one list that scenario files are checked against, that random schedules are drawn from, and that `relaymesh chaos
list` prints. Worlds look up kinds by these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chaos.scenario import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A number between two limits, or one of some words. The default's type is the option's type."""

    default: Value
    about: str
    lowest: float | None = None
    highest: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """One entry of the menu."""

    about: str
    hits: str
    """`lines`: some nodes' lines, or all; `sides`: two or more groups; `towards`: nodes as senders, one group as
    receivers; `node`: exactly one; `nodes`: one or more; `mesh`: no target."""
    weight: float
    """How often random schedules draw it, relative to the others; 0: only by name."""
    longest_s: float
    """The longest that random schedules draw; 0 for what happens in a moment."""
    options: Mapping[str, Option]
    scales: tuple[str, ...] = ("node",)
    """Worlds that play it: `node`, `protocol`, `real` (by one driver of real processes at least)."""
    pending: str = ""
    """The defence against it that is not built yet, if so: a scenario with it is marked pending, and never drawn."""


def _share(about: str, default: float = 0.2) -> Mapping[str, Option]:
    return {"share": Option(default=default, about=about, lowest=0.0, highest=1.0)}


_EVERYWHERE = ("node", "protocol", "real")
_SIMULATED = ("node", "protocol")

MENU: Mapping[str, FaultKind] = {
    # --- the network ---
    "loss": FaultKind(
        about="packets are lost",
        hits="lines",
        weight=3,
        longest_s=20,
        options=_share("chance of each packet"),
        scales=_EVERYWHERE,
    ),
    "duplicate": FaultKind(
        about="packets arrive twice",
        hits="lines",
        weight=1,
        longest_s=20,
        options=_share("chance of each packet"),
        scales=_EVERYWHERE,
    ),
    "reorder": FaultKind(
        about="packets are overtaken by later ones",
        hits="lines",
        weight=1,
        longest_s=20,
        options=_share("chance of each packet"),
        scales=_EVERYWHERE,
    ),
    "mutate": FaultKind(
        about="a bit of the packet flips on the way; streams break, as TLS would notice",
        hits="lines",
        weight=1,
        longest_s=20,
        options=_share("chance of each packet", 0.1),
        scales=_EVERYWHERE,
    ),
    "delay": FaultKind(
        about="packets take longer",
        hits="lines",
        weight=2,
        longest_s=20,
        scales=_EVERYWHERE,
        options={
            "delay_ms": Option(default=50.0, about="added to every packet", lowest=0, highest=10_000),
            "jitter_ms": Option(default=50.0, about="mean of a random addition", lowest=0, highest=10_000),
        },
    ),
    "bandwidth": FaultKind(
        about="lines are narrow: packets queue",
        hits="lines",
        weight=1,
        longest_s=20,
        options={"bytes_s": Option(default=20_000.0, about="bytes a second", lowest=100, highest=1e9)},
        scales=_EVERYWHERE,
    ),
    "clog": FaultKind(
        about="lines hold everything, and deliver it when the clog ends",
        hits="lines",
        weight=2,
        longest_s=8,
        options={},
        scales=_EVERYWHERE,
    ),
    "partition": FaultKind(
        about="the mesh is cut into sides that do not hear each other",
        hits="sides",
        weight=5,
        longest_s=25,
        options={},
        scales=_EVERYWHERE,
    ),
    "one-way": FaultKind(
        about="some nodes are not heard by others, but hear them",
        hits="towards",
        weight=4,
        longest_s=20,
        options={},
        scales=_EVERYWHERE,
    ),
    "isolate": FaultKind(
        about="a node is cut off from all others",
        hits="node",
        weight=3,
        longest_s=25,
        options={},
        scales=_EVERYWHERE,
    ),
    "flap": FaultKind(
        about="a node's lines go down and come back, again and again",
        hits="node",
        weight=2,
        longest_s=20,
        options={
            "period_s": Option(default=2.0, about="one down and one up take this long", lowest=0.1, highest=600),
            "down_share": Option(default=0.5, about="share of the period without lines", lowest=0.05, highest=0.95),
        },
        scales=_EVERYWHERE,
    ),
    "replay-packets": FaultKind(
        about="an attacker sends recorded packets again, to whomever",
        hits="mesh",
        weight=1,
        longest_s=20,
        options={"rate": Option(default=20.0, about="packets a second", lowest=0.1, highest=1_000)},
        scales=_SIMULATED,
    ),
    "forge-packets": FaultKind(
        about="an attacker sends random bytes, altered packets and packets of another mesh",
        hits="mesh",
        weight=1,
        longest_s=20,
        options={"rate": Option(default=20.0, about="packets a second", lowest=0.1, highest=1_000)},
        scales=_SIMULATED,
    ),
    # --- processes ---
    "kill": FaultKind(
        about="the process is killed; it starts again when the fault ends",
        hits="nodes",
        weight=6,
        longest_s=15,
        options={},
        scales=_EVERYWHERE,
    ),
    "stop": FaultKind(
        about="the node is stopped in order; it starts again when the fault ends",
        hits="nodes",
        weight=2,
        longest_s=15,
        options={},
        scales=_EVERYWHERE,
    ),
    "pause": FaultKind(
        about="the process stands still and then goes on as if nothing had happened",
        hits="nodes",
        weight=4,
        longest_s=15,
        options={},
        scales=_EVERYWHERE,
    ),
    "starve": FaultKind(
        about="the process gets the CPU only now and then",
        hits="nodes",
        weight=2,
        longest_s=15,
        options={
            "share": Option(default=0.1, about="share of the time that it runs", lowest=0.01, highest=0.9),
            "slice_s": Option(default=0.5, about="one run and one wait take this long", lowest=0.01, highest=10),
        },
        scales=_EVERYWHERE,
    ),
    "power-cut": FaultKind(
        about="the host loses power: what was not synced is lost; it starts again when the fault ends",
        hits="nodes",
        weight=5,
        longest_s=15,
        options={
            "image": Option(
                default="subset",
                about="what the drive keeps of unsynced writes: none, any sectors, or a prefix with the last one torn",
                choices=("drop", "subset", "torn"),
            )
        },
    ),
    "power-cut-at-write": FaultKind(
        about="the host loses power in the middle of its n-th write from now, and starts again when the fault ends",
        hits="node",
        weight=2,
        longest_s=15,
        options={
            "nth": Option(default=3, about="which write", lowest=1, highest=10_000),
            "image": Option(default="torn", about="as of power-cut", choices=("drop", "subset", "torn")),
        },
    ),
    "settings": FaultKind(
        about="the process is restarted with other settings",
        hits="nodes",
        weight=1,
        longest_s=0,
        options={
            "fanout": Option(default=2, about="gossipFanout", lowest=1, highest=10),
            "ttl": Option(default=6, about="gossipPacketTtl", lowest=2, highest=20),
        },
        scales=("node", "real"),
    ),
    "upgrade": FaultKind(
        about="the node runs the next release for a while, then its database is led back to this one",
        hits="node",
        weight=0,
        longest_s=30,
        options={},
    ),
    # --- disks ---
    "lying-sync": FaultKind(
        about="syncs return at once and make nothing durable; the fault ends in a power cut",
        hits="node",
        weight=1,
        longest_s=10,
        options={},
    ),
    "sync-error": FaultKind(
        about="the next syncs fail, and what they should have made durable may be lost",
        hits="node",
        weight=1,
        longest_s=0,
        options={"count": Option(default=1, about="how many", lowest=1, highest=100)},
    ),
    "io-error": FaultKind(
        about="reads and writes of the disk fail now and then",
        hits="node",
        weight=1,
        longest_s=10,
        options=_share("chance of each operation", 0.05),
    ),
    "disk-full": FaultKind(
        about="the disk takes no more bytes, until somebody frees some",
        hits="node",
        weight=2,
        longest_s=15,
        options={"free_kib": Option(default=0, about="what is still free", lowest=0, highest=1 << 20)},
        scales=("node", "real"),
    ),
    "read-only": FaultKind(
        about="the disk is remounted read-only under a living node",
        hits="node",
        weight=1,
        longest_s=15,
        options={},
    ),
    "slow-disk": FaultKind(
        about="every database call takes longer",
        hits="node",
        weight=2,
        longest_s=20,
        options={"latency_ms": Option(default=200.0, about="added to each call", lowest=1, highest=60_000)},
    ),
    "bit-flip": FaultKind(
        about="the node is killed, bits of its database flip, and it starts again",
        hits="node",
        weight=0,
        longest_s=5,
        options={"bits": Option(default=1, about="how many", lowest=1, highest=10_000)},
    ),
    "stale-image": FaultKind(
        about="the host is rolled back to the image that its disk had when the fault began",
        hits="node",
        weight=2,
        longest_s=20,
        options={},
    ),
    "wipe": FaultKind(
        about="the host's disk is replaced by an empty one, and the node enrolled anew",
        hits="node",
        weight=1,
        longest_s=10,
        options={},
    ),
    "clone": FaultKind(
        about="a copy of the disk runs on a second host at the same time",
        hits="node",
        weight=1,
        longest_s=20,
        options={},
    ),
    # --- clocks ---
    "clock-skew": FaultKind(
        about="the date is wrong for a while",
        hits="node",
        weight=2,
        longest_s=30,
        options={"skew_s": Option(default=30.0, about="how far, either way", lowest=-1e9, highest=1e9)},
    ),
    "clock-jump": FaultKind(
        about="the date jumps and stays; the process restarts under it",
        hits="node",
        weight=1,
        longest_s=0,
        options={"jump_s": Option(default=-3_600.0, about="how far, either way", lowest=-1e9, highest=1e9)},
    ),
    "clock-drift": FaultKind(
        about="all clocks of the host run too fast or too slow",
        hits="node",
        weight=1,
        longest_s=30,
        options={"ppm": Option(default=500.0, about="parts per million", lowest=-200_000, highest=200_000)},
    ),
    "clock-freeze": FaultKind(
        about="the date stands still",
        hits="node",
        weight=1,
        longest_s=20,
        options={},
    ),
    "no-clock": FaultKind(
        about="the host restarts without a clock chip: its date begins in 1970",
        hits="node",
        weight=1,
        longest_s=10,
        options={},
    ),
    # --- operators and rows ---
    "epoch-bump": FaultKind(
        about="an operator raises the cluster epoch",
        hits="node",
        weight=1,
        longest_s=0,
        options={},
        scales=("node", "real"),
    ),
    "poison-row": FaultKind(
        about="a member spreads a row that no release could have written",
        hits="node",
        weight=1,
        longest_s=0,
        options={
            "what": Option(
                default="status", about="what is wrong with it", choices=("status", "future-stamp", "rank", "garbage")
            )
        },
    ),
    "key-rotation": FaultKind(
        about="an operator rotates the gossip key through a node: adds one, promotes it, and takes the former one away",
        hits="node",
        weight=2,
        longest_s=0,
        options={"rotations": Option(default=1, about="one after another", lowest=1, highest=10)},
    ),
    "settings-reload": FaultKind(
        about="a node is given a bad settings file, which it refuses, and then other settings, without a restart",
        hits="nodes",
        weight=1,
        longest_s=0,
        options={
            "fanout": Option(default=2, about="gossipFanout", lowest=1, highest=10),
            "ttl": Option(default=6, about="gossipPacketTtl", lowest=2, highest=20),
        },
    ),
    "ca-rotation": FaultKind(
        about="an operator rotates the mesh's CA through a node: adds one, promotes it, and retires the former one",
        hits="node",
        weight=2,
        longest_s=0,
        options={"rotations": Option(default=1, about="one after another", lowest=1, highest=10)},
    ),
    # --- what later defences answer to ---
    "long-absence": FaultKind(
        about="a node returns after its peers deleted what had ended, gave it up, and forgot both",
        hits="node",
        weight=0,
        longest_s=3_600,
        options={},
    ),
}

RESTARTS = ("kill", "stop", "power-cut", "wipe", "no-clock", "bit-flip")
"""Kinds with a length that may be 0: the process ends, and starts again at once. All other kinds would do nothing."""

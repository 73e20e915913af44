"""A scenario: a mesh, its work, and what goes wrong when. Everything that a run does follows from this and a seed.

`scenario_file` reads and writes these as TOML, `swarm` draws them at random, the worlds play them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = float | int | str | bool

SCALES = ("node", "protocol")
"""`node`: whole nodes with disks and work, 3 to 50 of them. `protocol`: bare membership engines, up to 1,000."""

SHORT_DWELL: Mapping[str, Value] = {"suspectRecoverMinMs": 0, "deadRecoverMinMs": 0}
"""With the usual 30 s, and longer for flapping nodes, most of a short run would pass in waiting."""

NODES_MIN, NODES_MAX = 2, {"node": 50, "protocol": 1_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong. `fault_menu.MENU[kind]` says what it does, whom it hits and which options it has."""

    kind: str
    at_s: float
    for_s: float = 0.0
    """How long it lasts; for a crash, how long the host stays down. 0 for what happens in a moment."""
    nodes: tuple[str, ...] = ()
    """The hosts that it happens to; of a one-way cut, the senders. Empty: all of them, where the menu allows that."""
    groups: tuple[tuple[str, ...], ...] = ()
    """The sides of a cut; of a one-way cut, one group of receivers."""
    options: Mapping[str, Value] = field(default_factory=dict)
    """All options of the kind, defaults filled in."""

    @property
    def until_s(self) -> float:
        """When it ends."""
        return self.at_s + self.for_s


@dataclass(frozen=True, slots=True, kw_only=True)
class NetSpec:
    """The network without faults."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay_min_ms: float = 0.2
    delay_mean_ms: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSpec:
    """How wrong hosts' clocks are from the start; each host draws its own within these."""

    skew_s: float = 0.0
    drift_ppm: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """How long a database call takes: each draws between nothing and twice this."""

    latency_ms: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """What clients do until `duration_s`. Shares are of all requests; the rest are plain submits and looks."""

    clients: int = 3
    rate: float = 4.0
    """Requests a second, of all clients together. 0: no work at all."""
    fail_share: float = 0.1
    """Of runs, that fail and are tried again."""
    run_s: float = 0.5
    """Mean length of a run; some are ten times longer."""
    diamond_share: float = 0.2
    """Of submits, that are workflows of four steps."""
    twice_share: float = 0.1
    """Of submits, that go to two nodes at once under one key."""
    cancel_share: float = 0.05
    replay_share: float = 0.05
    replicas: int = 0
    """A share of submits asks for this many replicas before they are acknowledged."""
    purge_share: float = 0.0
    """Of what clients do: delete tasks that ended a few seconds ago."""
    poison_share: float = 0.0
    """Of submits, whose agent kills the whole host process that runs it."""
    wait_share: float = 0.0
    """Of submits, whose steps must never run in two places at once (`onPartition = wait`)."""
    continue_share: float = 0.0
    """Of workflows, whose last step runs even when others fail (`onFailure = continue`)."""
    handler_share: float = 0.0
    """Of steps, whose handlers keep checkpoints, snooze, or cancel themselves."""
    wide_replay_share: float = 0.0
    """Of replays, that begin a step and all below it anew, or all that failed of many tasks."""
    schedules: int = 0
    """How many schedules are stored at the start, each with a slot every minute, all of which are made up for."""
    timed_share: float = 0.0
    """Of submits, whose steps have delays and expiries."""
    holds_every_s: float = 0.0
    """Mean time between two pauses or drains, each of a few seconds. 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomFaults:
    """Faults to be drawn: `swarm.expand` turns them into an explicit list, which is what is played and saved."""

    faults: int
    menu: Mapping[str, float] = field(default_factory=dict)
    """Weights by kind; empty takes every kind's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All of a run but its seed. Times are seconds from the moment when the mesh was whole."""

    name: str
    about: str = ""
    scale: str = "node"
    nodes: int = 5
    duration_s: float = 60.0
    """Faults and clients end here; then everything is mended."""
    settle_s: float = 120.0
    """How long the mended mesh may take until all work has ended and all agree. The liveness bound."""
    seed: int = 1
    profile: str = "local"
    net: NetSpec = NetSpec()
    clock: ClockSpec = ClockSpec()
    disk: DiskSpec = DiskSpec()
    workload: WorkloadSpec = WorkloadSpec()
    settings: Mapping[str, Value] = field(default_factory=lambda: dict(SHORT_DWELL))
    """Node settings, by the names of the settings file. The default gives returned nodes new work at once."""
    faults: tuple[Fault, ...] = ()
    random: RandomFaults | None = None
    expect: tuple[str, ...] = ()
    """Names of `coverage` points that must be reached, else the run proved nothing."""
    pending: str = ""
    """Why this scenario cannot hold yet: the defence that is not built. Runs say so and judge nothing."""

    def node_names(self) -> tuple[str, ...]:
        """The hosts: n0, n1, …"""
        return tuple(f"n{index}" for index in range(self.nodes))

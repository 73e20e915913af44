"""Random scenarios, each from one seed: the size, the conditions, the work, and a schedule of faults.

Swarm testing: each scenario draws from a random part of the menu only. With everything on all the time, faults that
need a quiet spell to grow never do, and each run is like every other. What is drawn is an explicit scenario, so that a
failure can be saved, shrunk and played again. Every fault has a stream of its own: one less does not re-roll the rest.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from chaos.fault_menu import MENU, FaultKind, Option
from chaos.scenario import (
    SHORT_DWELL,
    ClockSpec,
    DiskSpec,
    Fault,
    NetSpec,
    RandomFaults,
    Scenario,
    Value,
    WorkloadSpec,
)
from chaos.simulation.seeds import stream

NODES = (3, 6)
FAULTS = (2, 12)
DURATION_S = (20.0, 45.0)
SETTLE_S = 150.0
MENU_SHARE = (0.15, 0.6)
"""How much of the menu one scenario draws from."""
SHORTEST_S = 0.3
WAIT_SHARES = (0.0, 0.0, 0.3, 0.8)
"""Of submits that ask for `onPartition = wait`: in half of the scenarios none."""
CONTINUE_SHARES = (0.0, 0.5)
HANDLER_SHARES = (0.0, 0.0, 0.3, 0.8)
"""Of steps whose handlers do more than to succeed or fail: in half of the scenarios none."""
WIDE_REPLAY_SHARES = (0.0, 0.0, 0.3)
TIMED_SHARES = (0.0, 0.0, 0.4)
HOLDS_EVERY_S = (0.0, 0.0, 5.0)
"""Delays, expiries and holds: in a third of the scenarios each."""
CALM_S = 2.0
"""Between two faults of one process or disk: a host has time to come back."""

_APART: Mapping[str, float] = {"key-rotation": 0.3, "ca-rotation": 0.1, "settings-reload": 0.15}
"""Kinds that are drawn apart from the sample, with this chance: seeds that do not draw them are as if they were not."""

_LOSES_DATA = frozenset({"lying-sync", "stale-image", "wipe"})
_OF_A_PROCESS = (
    "long-absence",
    "kill",
    "stop",
    "pause",
    "starve",
    "power-cut",
    "power-cut-at-write",
    "settings",
    "no-clock",
)
_OF_A_DISK = ("lying-sync", "sync-error", "io-error", "disk-full", "read-only", "stale-image", "wipe", "clone")
_OF_A_HOST = frozenset({*_OF_A_PROCESS, *_OF_A_DISK})
_DRAWN: Mapping[tuple[str, str], tuple[float, float]] = {
    # Far ahead of the mesh, what a host says of itself would wait at the others for longer than a run settles.
    ("clock-skew", "skew_s"): (-3_600.0, 50.0),
    ("clock-jump", "jump_s"): (-3_600.0, 80.0),
    ("clock-drift", "ppm"): (-20_000.0, 20_000.0),
    ("delay", "delay_ms"): (0.0, 300.0),
    ("delay", "jitter_ms"): (0.0, 300.0),
    ("loss", "share"): (0.05, 0.6),
    ("io-error", "share"): (0.01, 0.3),
    ("bandwidth", "bytes_s"): (3_000.0, 100_000.0),
    ("replay-packets", "rate"): (1.0, 60.0),
    ("forge-packets", "rate"): (1.0, 60.0),
    ("flap", "period_s"): (0.5, 8.0),
    ("slow-disk", "latency_ms"): (20.0, 1_500.0),
    ("power-cut-at-write", "nth"): (1, 60),
    ("sync-error", "count"): (1, 3),
    ("key-rotation", "rotations"): (1, 2),
    ("ca-rotation", "rotations"): (1, 2),
    ("disk-full", "free_kib"): (0, 64),
    ("starve", "slice_s"): (0.1, 2.0),
}
"""Limits for drawing where those of the menu are wider than a short run can show."""


SNAPSHOTS: Sequence[Mapping[str, int]] = ({"bootstrapRowsMin": 100}, {"bootstrapRowsMin": 10}, {})
"""How much a node must lack to be filled by a snapshot: as always, or little enough for a short run."""
LONG_SHARE = 0.05
"""Of scenarios that take as long as several others."""
LONG_DURATION_S = (120.0, 240.0)
ABSENCE_S = (40.0, 90.0)
PURGE_SHARES = (0.0, 0.0, 0.03, 0.1)
GARBAGE_INTERVAL_MS = 1_000


def draw(seed: int, *, nodes: tuple[int, int] = NODES) -> Scenario:
    """The scenario of a seed, all of it explicit, with at least `nodes[0]` and at most `nodes[1]` hosts."""
    draws = stream(seed, "swarm")
    kinds = [
        kind
        for kind, entry in MENU.items()
        if entry.weight and not entry.pending and "node" in entry.scales and kind not in _APART
    ]
    part = draws.sample(kinds, max(2, round(len(kinds) * draws.uniform(*MENU_SHARE))))
    part += [kind for kind, share in _APART.items() if stream(seed, f"swarm {kind}").random() < share]
    scenario = Scenario(
        name=f"swarm-{seed}",
        about="Drawn at random.",
        nodes=draws.randint(*nodes),
        duration_s=round(draws.uniform(*DURATION_S), 1),
        settle_s=SETTLE_S,
        seed=seed,
        profile=draws.choice(["local", "local", "local", "lan"]),
        net=NetSpec(
            loss=draws.choice([0.0, 0.0, 0.01, 0.05, 0.1]),
            duplicate=draws.choice([0.0, 0.0, 0.02]),
            reorder=draws.choice([0.0, 0.0, 0.05]),
            delay_mean_ms=draws.choice([1.0, 1.0, 5.0, 20.0]),
        ),
        clock=ClockSpec(skew_s=draws.choice([0.0, 0.5, 20.0]), drift_ppm=draws.choice([0.0, 100.0, 500.0])),
        disk=DiskSpec(latency_ms=draws.choice([0.2, 1.0, 3.0])),
        workload=replace(
            _workload(draws),
            purge_share=stream(seed, "purges").choice(PURGE_SHARES),
            wait_share=stream(seed, "wait").choice(WAIT_SHARES),
            continue_share=stream(seed, "continue").choice(CONTINUE_SHARES),
            handler_share=stream(seed, "handlers").choice(HANDLER_SHARES),
            wide_replay_share=stream(seed, "wide replays").choice(WIDE_REPLAY_SHARES),
            timed_share=stream(seed, "times").choice(TIMED_SHARES),
            holds_every_s=stream(seed, "holds").choice(HOLDS_EVERY_S),
        ),
        settings={
            **draws.choice([SHORT_DWELL, SHORT_DWELL, {"suspectRecoverMinMs": 200, "deadRecoverMinMs": 5_000}]),
            "garbageIntervalMs": GARBAGE_INTERVAL_MS,
            **stream(seed, "snapshots").choice(SNAPSHOTS),
        },
        random=RandomFaults(faults=draws.randint(*FAULTS), menu={kind: MENU[kind].weight for kind in sorted(part)}),
    )
    return expand(_long(scenario) if stream(seed, "long").random() < LONG_SHARE else scenario, seed)


def _long(scenario: Scenario) -> Scenario:
    """The same mesh for a long time with little work, of which all is deleted again and again, and a member given up.

    What takes years in a mesh takes minutes here: retention, the horizon after which a member is pruned, and the rounds
    that forget are as much shorter.
    """
    draws = stream(scenario.seed, "long life")
    duration_s = round(draws.uniform(*LONG_DURATION_S), 1)
    absence_s = round(draws.uniform(*ABSENCE_S), 1)
    absence = Fault(
        kind="long-absence",
        at_s=round(draws.uniform(1.0, duration_s - absence_s - 1.0), 1),
        for_s=absence_s,
        nodes=(draws.choice(scenario.node_names()),),
        options={},
    )
    assert scenario.random is not None
    return replace(
        scenario,
        duration_s=duration_s,
        workload=replace(scenario.workload, rate=draws.choice([0.3, 1.0]), purge_share=draws.choice([0.05, 0.15])),
        faults=(absence,),
        random=replace(scenario.random, faults=scenario.random.faults + draws.randint(*FAULTS)),
    )


def _workload(draws: random.Random) -> WorkloadSpec:
    return WorkloadSpec(
        clients=draws.randint(2, 4),
        rate=draws.choice([1.0, 3.0, 5.0]),
        fail_share=draws.choice([0.0, 0.1, 0.3]),
        run_s=draws.choice([0.05, 0.5, 1.0]),
        diamond_share=draws.choice([0.0, 0.2, 0.5]),
        twice_share=draws.choice([0.0, 0.1, 0.3]),
        cancel_share=draws.choice([0.0, 0.05, 0.1]),
        replay_share=draws.choice([0.0, 0.05, 0.1]),
        replicas=draws.choice([0, 0, 1, 2]),
        poison_share=draws.choice([0.0, 0.0, 0.0, 0.02]),
    )


def expand(scenario: Scenario, seed: int) -> Scenario:
    """The scenario with its random faults drawn and listed beside those it has already."""
    if scenario.random is None:
        return scenario
    menu = scenario.random.menu or {kind: entry.weight for kind, entry in MENU.items() if entry.weight}
    menu = {
        kind: weight
        for kind, weight in menu.items()
        if weight and scenario.scale in MENU[kind].scales and not MENU[kind].pending
    }
    schedule = _Schedule(scenario)
    for number in range(scenario.random.faults if menu else 0):
        schedule.add(stream(seed, f"fault {number}"), menu)
    faults = sorted(schedule.faults, key=lambda fault: fault.at_s)
    return replace(scenario, faults=tuple(faults), random=None)


@dataclass(slots=True)
class _Schedule:
    """Faults so far, and what may still be added to them."""

    scenario: Scenario
    faults: list[Fault]

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.faults = list(scenario.faults)

    def add(self, draws: random.Random, menu: Mapping[str, float]) -> None:
        """Draw one fault, and leave it out where it would leave nothing of the mesh, or fall onto another one."""
        kind = draws.choices(list(menu), list(menu.values()))[0]
        entry = MENU[kind]
        names = self.scenario.node_names()
        shuffled = draws.sample(names, len(names))
        length = round(draws.uniform(SHORTEST_S, max(SHORTEST_S, entry.longest_s)), 2) if entry.longest_s else 0.0
        length = min(length, round(self.scenario.duration_s / 2, 2))
        at = round(draws.uniform(0.5, self.scenario.duration_s - length - 0.5), 2)
        nodes, groups = _targets(entry, shuffled, draws)
        options = {name: _value(kind, name, option, draws) for name, option in entry.options.items()}
        fault = Fault(kind=kind, at_s=at, for_s=length, nodes=nodes, groups=groups, options=options)
        if self._fits(fault):
            self.faults.append(fault)

    def _fits(self, fault: Fault) -> bool:
        if fault.kind in _OF_A_HOST:
            for other in self.faults:
                near = other.at_s - CALM_S < fault.until_s and fault.at_s - CALM_S < other.until_s
                if near and other.kind in _OF_A_HOST and set(other.nodes) & set(fault.nodes):
                    return False
        if fault.kind in _LOSES_DATA:
            # With most disks lost nothing is left to judge: what was acknowledged may then be gone by right.
            lossy = {name for other in self.faults if other.kind in _LOSES_DATA for name in other.nodes}
            return len(lossy | set(fault.nodes)) <= (self.scenario.nodes - 1) // 2
        return True


def _targets(
    entry: FaultKind, shuffled: Sequence[str], draws: random.Random
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Nodes and groups, in the order of their names."""
    count = len(shuffled)
    match entry.hits:
        case "node":
            return tuple(shuffled[:1]), ()
        case "nodes":
            # Mostly one; now and then several at once, and rarely all.
            return _sorted(shuffled[: min(count, draws.choice([1, 1, 1, 2, count]))]), ()
        case "lines":
            return _sorted(shuffled[: draws.choice([0, 1, 2])]), ()
        case "sides":
            sides = 3 if count > 3 and draws.random() < 0.25 else 2
            cuts = sorted(draws.sample(range(1, count), sides - 1))
            edges = [0, *cuts, count]
            return (), tuple(_sorted(shuffled[a:b]) for a, b in itertools.pairwise(edges))
        case "towards":
            split = draws.randint(1, count - 1)
            return _sorted(shuffled[:split]), (_sorted(shuffled[split:]),)
        case _:
            return (), ()


def _sorted(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _value(kind: str, name: str, option: Option, draws: random.Random) -> Value:
    if option.choices:
        return draws.choice(option.choices)
    limits = _DRAWN.get((kind, name), (option.lowest, option.highest))
    lowest, highest = limits
    assert lowest is not None
    assert highest is not None
    if isinstance(option.default, int):
        return draws.randint(int(lowest), int(highest))
    return round(draws.uniform(lowest, highest), 3)

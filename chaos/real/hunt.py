"""Random scenarios on real processes: `python -m chaos.real.hunt` plays many, and exits 1 when one found something.

A hunt that found nothing leaves nothing. Of the others the directory stays, with databases, logs and journals.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from chaos.real import firewall
from chaos.real.driver import play_real
from chaos.real.trouble import describe
from chaos.runs import RunResult
from chaos.scenario import Fault, Scenario, WorkloadSpec
from chaos.simulation import seeds

_WEIGHTS = {"kill": 10, "blackout": 1, "pause": 8, "stop": 4, "partition": 8, "one-way": 6, "epoch-bump": 2}
_LASTS_S = {
    "kill": (0.1, 6.0),
    "blackout": (0.1, 2.0),
    "pause": (1.0, 8.0),
    "stop": (1.0, 6.0),
    "partition": (1.0, 10.0),
    "one-way": (1.0, 8.0),
    "epoch-bump": (0.0, 0.0),
}
_CUTS = ("partition", "one-way")
CUTS_MAX = 2
"""Lines broken at a time. More would leave little to hunt: every node alone."""
SETTLE_S = 120.0
WORKLOAD = WorkloadSpec(
    clients=6,
    rate=40,
    run_s=0.35,
    fail_share=0.3,
    twice_share=0.2,
    diamond_share=0.25,
    cancel_share=0.07,
    replay_share=0.07,
)
# Short dwell windows, so that a node that came back gets work again within a hunt.
SETTINGS = {"suspectRecoverMinMs": 200, "deadRecoverMinMs": 500, "baseBackoffMs": 100, "maxBackoffMs": 1_000}


def draw(seed: int, *, seconds: float, nodes: int | None = None, cuts: bool = True) -> Scenario:
    """The scenario of a seed: three to five nodes if not told otherwise; without `cuts`, lines stay whole."""
    draws = seeds.stream(seed, "hunt")
    count = draws.randint(3, 5)
    scenario = Scenario(
        name=f"hunt-{seed}",
        seed=seed,
        nodes=nodes or count,
        duration_s=seconds,
        settle_s=SETTLE_S,
        workload=WORKLOAD,
        settings=SETTINGS,
    )
    faults = schedule(draws, scenario.node_names(), seconds, every_s=draws.uniform(0.4, 1.5))
    return dataclasses.replace(scenario, faults=tuple(fault for fault in faults if cuts or fault.kind not in _CUTS))


def schedule(draws: random.Random, nodes: Sequence[str], seconds: float, *, every_s: float) -> list[Fault]:
    """Faults at random times, one in `every_s` or so. A node has one at a time; but for blackouts, one node runs."""
    faults: list[Fault] = []
    at_s = 1.0
    while (at_s := at_s + draws.expovariate(1 / every_s)) < seconds:
        (kind,) = draws.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        for_s = min(seconds - at_s, draws.uniform(*_LASTS_S[kind]))
        now = [fault for fault in faults if fault.until_s > at_s - 0.5 and fault.kind != "epoch-bump"]
        busy = {node for fault in now if fault.kind not in _CUTS for node in fault.nodes}
        free = [node for node in nodes if node not in busy]
        if kind in _CUTS:
            if sum(fault.kind in _CUTS for fault in now) < CUTS_MAX:
                faults.append(_cut(draws, kind, nodes, at_s, for_s))
        elif kind == "epoch-bump":
            faults.append(Fault(kind=kind, at_s=at_s, nodes=(draws.choice(nodes),)))
        elif kind == "blackout":
            if len(free) == len(nodes):
                faults.append(Fault(kind="kill", at_s=at_s, for_s=for_s, nodes=tuple(nodes)))
        elif len(free) > 1:
            faults.append(Fault(kind=kind, at_s=at_s, for_s=for_s, nodes=(draws.choice(free),)))
    return faults


def _cut(draws: random.Random, kind: str, nodes: Sequence[str], at_s: float, for_s: float) -> Fault:
    shuffled = tuple(draws.sample(nodes, len(nodes)))
    if kind == "one-way":
        return Fault(kind=kind, at_s=at_s, for_s=for_s, nodes=shuffled[:1], groups=(shuffled[1:2],))
    size = draws.randint(1, len(nodes) - 1)
    return Fault(kind=kind, at_s=at_s, for_s=for_s, groups=(shuffled[:size], shuffled[size:]))


def hunt(directory: Path, *, seed: int, seconds: float, nodes: int | None = None) -> RunResult:
    """Play the scenario of one seed in a new directory, without cuts where no firewall may be changed."""
    scenario = draw(seed, seconds=seconds, nodes=nodes, cuts=firewall.available() is None)
    return play_real(scenario, driver="loopback", directory=directory)


def main(arguments: list[str] | None = None) -> int:
    """Run the hunts that the command line asks for, and print what each found."""
    parser = argparse.ArgumentParser(prog="python -m chaos.real.hunt", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed (1)")
    parser.add_argument("--hunts", type=int, default=1, help="how many seeds from there on (1)")
    parser.add_argument("--seconds", type=float, default=25.0, help="how long faults and clients go on (25)")
    parser.add_argument("--nodes", type=int, default=None, help="nodes in the mesh (three to five, by seed)")
    parser.add_argument("--directory", type=Path, default=None, help="where meshes live (the system's own for that)")
    asked = parser.parse_args(arguments)
    found = 0
    for seed in range(asked.seed, asked.seed + asked.hunts):
        directory = Path(tempfile.mkdtemp(prefix=f"hunt-{seed}-", dir=asked.directory))
        result = hunt(directory, seed=seed, seconds=asked.seconds, nodes=asked.nodes)
        if result.facts.get("interrupted"):
            shutil.rmtree(directory)
            break
        found += bool(result.violations)
        _say(_summary(seed, result))
        if result.violations:
            _say(f"  kept in {directory}")
            for fault in result.scenario.faults:
                _say(f"  {fault.at_s:6.2f} s  {describe(fault)}")
            for violation in result.violations:
                _say(f"  {violation}")
        else:
            shutil.rmtree(directory)
    return 1 if found else 0


def _summary(seed: int, result: RunResult) -> str:
    settled_ms = result.settled_ms
    rest = "never quiet" if settled_ms is None else f"quiet after {(settled_ms - result.healed_ms) / 1000:.1f} s"
    facts = result.facts
    return f"seed {seed}: {facts['accepted']} tasks, {facts['runs']} runs, {rest}, {len(result.violations)} violations"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

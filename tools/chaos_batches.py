"""`relaymesh chaos`, part two: many runs at once, and figures."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.errors import ConfigError
from tools.chaos_view import plural, show_hunt, show_verified
from tools.output import print_json
from tools.progress import Progress
from tools.ranges import parse_range
from tools.session import EXIT_INTERRUPTED, EXIT_NEGATIVE, EXIT_OK, Command, Session, command

if TYPE_CHECKING:
    from chaos.hunting import HuntResult
    from chaos.mutants import Mutant

NODES_LOWEST, NODES_HIGHEST = 3, 50
MUTANT_SEEDS = 40
"""A mutant that survives so many seeds is not caught."""

JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", metavar="J", min=1, max=256, help="Processes at the same time. [default: one a core]"),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, body in _COMMANDS.items():
        command(app, name, panel="Many runs")(body)


def _hunt(
    session: Session,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="A-B", help="The first and the last seed, like 1000-1999.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="M", min=0.01, help="Begin seeds nobody tried for so long.")
    ] = None,
    jobs: JobsOption = None,
    nodes: Annotated[str, typer.Option("--nodes", metavar="A-B", help="The fewest and the most of a mesh.")] = "3-7",
    mutant: Annotated[
        str | None, typer.Option("--mutant", metavar="NAME", help="Put this deliberate fault into the product first.")
    ] = None,
    shrink: Annotated[
        bool, typer.Option("--shrink/--no-shrink", help="Shrink the first three failures to what still fails.")
    ] = True,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Each seed that broke something gets a folder in DIR.")
    ] = Path("out"),
) -> int:
    """Play random scenarios, one a seed.

    Every seed draws a mesh, its work and its faults. One seed in 20 is played twice, under another hash seed, and must
    be the same run. From 100 seeds on, every required point of coverage must have been met. Exit 0 when nothing broke,
    1 when something did, 130 when Ctrl-C ended it before anything did; what was found is printed and kept each time.

    \b
    Examples:
      relaymesh chaos hunt --seeds 1000-1999 --jobs 2
      relaymesh chaos hunt --minutes 10 --nodes 3-5
    """
    from chaos.hunting import SHRINK_FIRST, Plan, hunt

    if (seeds is None) == (minutes is None):
        raise ConfigError("give either --seeds A-B, such as 1000-1999, or --minutes M")
    plan = Plan(nodes=_sizes(nodes), mutant=_known_mutant(mutant), out=out)
    chosen = _fresh_seeds() if seeds is None else parse_range(seeds, option="--seeds")
    total = None if seeds is None else len(chosen)  # type: ignore[arg-type]  # a range, see above
    with Progress(sys.stderr) as progress:
        result = hunt(
            chosen,
            plan,
            jobs=jobs or _cores(),
            minutes=minutes,
            shrink_first=SHRINK_FIRST if shrink else 0,
            progress=lambda state: progress.show(_hunt_line(state, total, minutes)),
        )
    show_hunt(result, json=session.json)
    if not result.is_ok:
        return EXIT_NEGATIVE
    return EXIT_INTERRUPTED if result.interrupted else EXIT_OK


def _fresh_seeds() -> Iterable[int]:
    """Seeds from one that depends on the time: a hunt by the clock shall not try the same ones every night."""
    return itertools.count(int(time.time()) * 1000)


def _hunt_line(state: HuntResult, total: int | None, minutes: float | None) -> str:
    of_all = f" of {total:,}" if total is not None else f", {state.wall_s / 60:.1f} of {minutes:g} minutes"
    rate = state.seeds / state.wall_s if state.wall_s else 0.0
    left = ""
    if total is not None and rate and state.seeds < total:
        left = f", {(total - state.seeds) / rate / 60:.1f} minutes left"
    shrinking = f", shrinking {state.shrinking}" if state.shrinking else ""
    return f"{plural(state.seeds, 'seed')}{of_all}, {rate:.1f} seeds/s{left}, {len(state.found)} violated{shrinking}"


def _sizes(text: str) -> tuple[int, int]:
    sizes = parse_range(text, option="--nodes", lowest=NODES_LOWEST, highest=NODES_HIGHEST)
    return sizes[0], sizes[-1]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _known_mutant(name: str | None) -> str | None:
    if name is not None:
        from chaos.mutants import MUTANTS

        if name not in MUTANTS:
            raise ConfigError(f"--mutant {name}: choose one of {', '.join(MUTANTS)}")
    return name


def _mutants(
    session: Session,
    catch: Annotated[
        bool, typer.Option("--catch", help=f"Really hunt each, for at most {MUTANT_SEEDS} seeds; takes a while.")
    ] = False,
    jobs: JobsOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Reports of --catch go here.")] = Path(
        "out/mutants"
    ),
) -> int:
    """List deliberate faults and who catches them.

    With --catch each is put into the product and hunted; exit 1 when one was not caught by an invariant that should
    catch it. That is the test of the tests: an invariant that catches nothing proves nothing.

    \b
    Examples:
      relaymesh chaos mutants
      relaymesh chaos mutants --catch --jobs 2 --json
    """
    from chaos.mutants import MUTANTS

    rows: list[dict[str, Any]] = []
    uncaught: list[str] = []
    with Progress(sys.stderr) as progress:
        for number, (name, mutant) in enumerate(MUTANTS.items(), 1):
            row: dict[str, Any] = {"name": name, "breaks": mutant.breaks, "caughtBy": list(mutant.caught_by)}
            if catch and mutant.scenario:
                row["caught"] = _caught_by_scenario(name, mutant)
                if row["caught"] is None:
                    uncaught.append(name)
            elif catch:
                result = _catch(name, mutant, jobs or _cores(), out, progress, f"{number} of {len(MUTANTS)}")
                row["caught"] = _catcher(result, mutant)
                if row["caught"] is None:
                    uncaught.append(name)
                if result.interrupted:
                    return EXIT_INTERRUPTED
            rows.append(row)
    if session.json:
        print_json(rows)
    else:
        session.show([row | {"breaks": row.pop("breaks")} for row in rows])
        if uncaught:
            print(f"\nnot caught within {MUTANT_SEEDS} seeds, or by their scenario: {', '.join(uncaught)}")
    return EXIT_NEGATIVE if uncaught else EXIT_OK


def _caught_by_scenario(name: str, mutant: Mutant) -> dict[str, Any] | None:
    """The first invariant of the mutant's own that spoke up in its scenario."""
    from chaos import playing

    result = playing.play_at_scale(playing.ready(playing.find(mutant.scenario)), mutant=name)
    for violation in result.violations:
        if violation.invariant in mutant.caught_by:
            return {"scenario": mutant.scenario, "invariant": violation.invariant}
    return None


def _catch(name: str, mutant: Mutant, jobs: int, out: Path, progress: Progress, place: str) -> HuntResult:
    from chaos.hunting import Plan, hunt

    return hunt(
        range(1, MUTANT_SEEDS + 1),
        Plan(mutant=name, out=out / name),
        jobs=jobs,
        shrink_first=0,
        enough=lambda state: _catcher(state, mutant) is not None,
        progress=lambda state: progress.show(f"mutant {place}, {name}: {plural(state.seeds, 'seed')}"),
    )


def _catcher(result: HuntResult, mutant: Mutant) -> dict[str, Any] | None:
    """The first seed that an invariant of the mutant's own spoke up for."""
    for found in result.found:
        for invariant in found.invariants:
            if invariant in mutant.caught_by:
                return {"seed": found.seed, "invariant": invariant, "seedsTried": result.seeds}
    return None


def _verify_determinism(
    session: Session,
    seeds: Annotated[str, typer.Option("--seeds", metavar="A-B", help="Of random scenarios.")] = "1-3",
    scenario: Annotated[
        str | None, typer.Option("--scenario", metavar="NAME|FILE", help="This scenario instead of random ones.")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=2, max=100, help="Processes for each seed.")] = 10,
    jobs: JobsOption = None,
) -> int:
    """Check that a seed is one run everywhere.

    Plays each seed in fresh processes under different hash seeds of Python, and compares hashes over every step of
    every task, every packet and every commit. Where they differ, prints the first step that does. Exit 1 then.

    \b
    Examples:
      relaymesh chaos verify-determinism
      relaymesh chaos verify-determinism --scenario split-brain --seeds 7 --runs 4
    """
    from chaos import playing, swarm
    from chaos.determinism import verify

    chosen = parse_range(seeds, option="--seeds")
    if scenario is None:
        scenarios = [playing.ready(swarm.draw(seed), seed=seed) for seed in chosen]
    else:
        found = playing.find(scenario)
        scenarios = [playing.ready(found, seed=seed) for seed in chosen]
    total = len(scenarios) * runs
    with Progress(sys.stderr) as progress:
        verified = verify(
            scenarios,
            runs=runs,
            jobs=jobs or _cores(),
            progress=lambda ended: progress.show(f"{ended} of {plural(total, 'run')} played"),
        )
    show_verified(verified, json=session.json)
    return EXIT_OK if all(each.is_equal for each in verified) else EXIT_NEGATIVE


def _bench(session: Session) -> int:
    """Measure how fast simulated time passes.

    Simulated seconds of a node per second of CPU: whole nodes at 5 and 50, bare protocol engines at 500. One core,
    about a minute in all.

    \b
    Example:
      relaymesh chaos bench --json
    """
    from chaos.bench import SIZES, measure

    rows: list[dict[str, Any]] = []
    with Progress(sys.stderr) as progress:
        for size in SIZES:
            progress.show(f"{size.nodes} nodes, {size.scale} scale")
            speed = measure(size)
            rows.append(
                {
                    "nodes": size.nodes,
                    "scale": size.scale,
                    "simulatedSeconds": speed.result.simulated_s,
                    "cpuSeconds": speed.result.cpu_s,
                    "nodeSecondsPerCpuSecond": round(speed.node_s_per_cpu_s),
                }
            )
    session.show(rows)
    return EXIT_OK


def _matrix(
    session: Session,
    seed: Annotated[int, typer.Option("--seed", min=0, help="All chance comes from it.")] = 1,
) -> int:
    """Play the four checks of the chaos matrix.

    node_crash_recovery, packet_loss_partition_heal, clock_skew_recovery_guard and disk_pressure_guard, each as named
    scenarios in the simulator. Exit 1 when one does not pass.

    \b
    Example:
      relaymesh chaos matrix --seed 7
    """
    from chaos.matrix import MATRIX, play_matrix

    checks = []
    with Progress(sys.stderr) as progress:
        progress.show(f"{next(iter(MATRIX))}, 1 of {len(MATRIX)}")
        for check in play_matrix(seed):
            checks.append({"scenario": check.name, "pass": check.passed, "detail": check.detail})
            progress.show(f"{check.name}: {'passed' if check.passed else 'failed'}, {len(checks)} of {len(MATRIX)}")
    passed = all(check["pass"] for check in checks)
    if session.json:
        print_json({"scenarios": checks, "passed": passed})
    else:
        session.show(checks)
    return EXIT_OK if passed else EXIT_NEGATIVE


def _figures(
    session: Session,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer seeds and shorter watches: minutes, not half an hour.")
    ] = False,
) -> int:
    """Measure the membership protocol.

    How long until a crash is known everywhere, how fast rumors spread, how often a healthy member is declared DEAD at
    loss, what an idle mesh sends, how long views need to agree after a cut. Exit 1 when a figure is worse than it must
    be.

    \b
    Example:
      relaymesh chaos figures --quick
    """
    from chaos.protocol import figures

    rows = []
    with Progress(sys.stderr) as progress:
        for figure in figures.measure(figures.QUICK if quick else figures.FULL):
            progress.show(figure.what)
            rows.append({**dataclasses.asdict(figure), "held": figure.held})
    session.show(rows)
    return EXIT_OK if all(row["held"] for row in rows) else EXIT_NEGATIVE


_COMMANDS: dict[str, Command] = {
    "hunt": _hunt,
    "mutants": _mutants,
    "verify-determinism": _verify_determinism,
    "bench": _bench,
    "matrix": _matrix,
    "figures": _figures,
}

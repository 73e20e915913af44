"""`relaymesh chaos`, part one: playing one scenario, again, smaller, or on real processes; and what there is to play.

`chaos_batches` has the commands that play many. Everything of `chaos` is imported when a command runs: the rest of
`relaymesh` does not wait for a simulator.
"""

from __future__ import annotations

import json as json_text
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mesh.errors import ConfigError
from tools import chaos_batches
from tools.chaos_view import show_run
from tools.durations import parse_duration_ms
from tools.output import print_answer, print_json
from tools.progress import Progress
from tools.ranges import SEED_MAX
from tools.session import EXIT_INTERRUPTED, EXIT_NEGATIVE, EXIT_OK, Session, command

if TYPE_CHECKING:
    from chaos.runs import RunResult
    from chaos.scenario import Scenario

STEPS_PER_LOOK = 2_000
"""How often a run shows where it is: about ten times a second."""

chaos_app = typer.Typer(
    no_args_is_help=False,
    rich_markup_mode=None,
    help="Play faults on a mesh and judge its promises.\n\nOn whole nodes in a simulator, or on real processes.",
)

ScenarioOption = Annotated[
    str, typer.Option("--scenario", metavar="NAME|FILE", help="A named scenario, see `chaos list`, or a TOML file.")
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=SEED_MAX, help="All chance comes from it. [default: the scenario's own]"),
]
NodesOption = Annotated[int | None, typer.Option("--nodes", help="Another size of the mesh.")]
DurationOption = Annotated[
    str | None, typer.Option("--duration", metavar="TIME", help="Another length of the trouble, like 120s.")
]
OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The report goes into a folder in DIR, named by scenario and seed.")
]
MutantOption = Annotated[
    str | None, typer.Option("--mutant", metavar="NAME", help="Put this deliberate fault into the product first.")
]
FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A scenario as TOML, such as a report's repro.toml.")
]


def _run(
    session: Session,
    scenario: ScenarioOption,
    seed: SeedOption = None,
    nodes: NodesOption = None,
    duration: DurationOption = None,
    out: OutOption = Path("out"),
) -> int:
    """Play a scenario in the simulator and judge it.

    The same scenario, seed and version make the same run, step by step. Exit 0 when every promise was kept, 1 when one
    was broken, 130 after Ctrl-C; a report is left each time. A pending scenario, one whose defence is not built yet, is
    played but not judged: exit 0, and `pending` says why.

    \b
    Examples:
      relaymesh chaos run --scenario split-brain --seed 42 --nodes 9
      relaymesh chaos run --scenario mine.toml --seed 7 --duration 120s --json
    """
    from chaos import playing

    duration_s = None if duration is None else parse_duration_ms(duration, option="--duration") / 1000
    ready = playing.ready(playing.find(scenario), seed=seed, nodes=nodes, duration_s=duration_s)
    return _play_and_report(session, ready, out)


def _replay(
    session: Session,
    file: FileArgument,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="End there, to look at what came before it.")
    ] = None,
    mutant: MutantOption = None,
    out: OutOption = Path("out/replays"),
) -> int:
    """Play a recorded run again.

    Says whether it was the same run as recorded, if a report lies beside FILE: another version of the product may well
    play another one. Exit codes are those of `run`; a run that --until ends is not judged at rest.

    \b
    Examples:
      relaymesh chaos replay out/swarm-1234/repro.toml
      relaymesh chaos replay out/swarm-1234/repro.toml --until 31.2s
    """
    from chaos import playing

    ready = playing.ready(playing.find(_as_file(file)))
    until_s = None if until is None else parse_duration_ms(until, option="--until") / 1000
    return _play_and_report(session, ready, out, until_s=until_s, mutant=mutant, recorded=_recorded_hash(file))


def _play_and_report(
    session: Session,
    scenario: Scenario,
    out: Path,
    *,
    until_s: float | None = None,
    mutant: str | None = None,
    recorded: str | None = None,
) -> int:
    from chaos import playing

    with Progress(sys.stderr) as progress:
        result = playing.play_at_scale(scenario, mutant=mutant, until_s=until_s, tell=_teller(scenario, progress))
    extra: dict[str, Any] = {}
    if recorded is not None and until_s is None:
        extra["sameAsRecorded"] = recorded == result.trace_hash
    code = _report(session, result, out, mutant=mutant, extra=extra)
    if extra and not session.json:
        print("the same run as recorded" if extra["sameAsRecorded"] else "another run than recorded: versions differ")
    return code


def _teller(scenario: Scenario, progress: Progress) -> Callable[[str], None] | None:
    """Shows the simulated second from time to time, if anybody watches."""
    if not sys.stderr.isatty():
        return None
    steps = 0
    end_s = scenario.duration_s + scenario.settle_s

    def tell(line: str) -> None:
        nonlocal steps
        steps += 1
        if steps % STEPS_PER_LOOK == 0:
            second = float(line.split(" ", 1)[0])
            progress.show(f"{scenario.name}, seed {scenario.seed}: {second:.1f} s of at most {end_s:.0f} s simulated")

    return tell


def _report(session: Session, result: RunResult, out: Path, *, mutant: str | None, extra: dict[str, Any]) -> int:
    """Write the folder, print the verdict, and give the exit code."""
    from chaos.playing import INTERRUPTED
    from chaos.report import folder_name, write

    folder = out / folder_name(result)
    replay = f"relaymesh chaos replay {folder / 'repro.toml'}" + ("" if mutant is None else f" --mutant {mutant}")
    try:
        write(result, folder, replay_command=replay)
    except OSError as error:
        raise ConfigError(f"--out {out}: the report cannot be written there: {error}") from error
    show_run(result, folder, replay, json=session.json, extra=extra)
    if result.violations:
        return EXIT_NEGATIVE
    return EXIT_INTERRUPTED if result.facts.get(INTERRUPTED) else EXIT_OK


def _as_file(file: Path) -> str:
    # A file of any name and place is a file here, never one of the named scenarios.
    return str(file if file.suffix == ".toml" else file / "repro.toml")


def _recorded_hash(file: Path) -> str | None:
    verdict = (file.parent if file.suffix == ".toml" else file) / "verdict.json"
    try:
        recorded = json_text.loads(verdict.read_text())["traceHash"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no report lies there: nothing to compare with
    return recorded if isinstance(recorded, str) else None


def _shrink(
    session: Session,
    file: FileArgument,
    mutant: MutantOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to. [default: smallest.toml beside FILE]")
    ] = None,
) -> int:
    """Find a smaller scenario that fails alike.

    Drops faults, then nodes, time and work, as long as the first broken promise stays broken. Takes some minutes.

    \b
    Example:
      relaymesh chaos shrink out/swarm-1234/repro.toml
    """
    from chaos import playing, scenario_file, shrink
    from chaos.hunting import breaks, size

    drawn = playing.ready(playing.find(_as_file(file)))
    with Progress(sys.stderr) as progress:
        progress.say(f"playing {size(drawn)}")
        violations = playing.play_at_scale(drawn, mutant=mutant).violations
        if not violations:
            raise ConfigError(
                f"{file} breaks nothing here, so there is nothing to shrink; `chaos replay` shows the run"
            )
        invariant = violations[0].invariant
        smallest = shrink.shrink(drawn, breaks(invariant, mutant=mutant), progress=progress.say)
    target = out or Path(_as_file(file)).with_name("smallest.toml")
    try:
        target.write_text(scenario_file.dump(smallest))
    except OSError as error:
        raise ConfigError(f"--out {target} cannot be written: {error}") from error
    session.show({"invariant": invariant, "before": size(drawn), "after": size(smallest), "file": str(target)})
    return EXIT_OK


def _report_command(
    session: Session,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A report's folder, as `run` or `hunt` left it.")],
) -> int:
    """Print the verdict of a report again.

    Exit 0 for ok, 1 for violated. `timeline.html` in the same folder shows the run.

    \b
    Example:
      relaymesh chaos report out/split-brain-42
    """
    try:
        verdict = json_text.loads((folder / "verdict.json").read_text())
        text = (folder / "verdict.txt").read_text()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} holds no report: name a folder with verdict.json in it ({error})") from error
    if session.json:
        print_json(verdict)
    else:
        print(text, end="")
    return EXIT_OK if verdict.get("verdict") == "ok" else EXIT_NEGATIVE


def _real(
    session: Session,
    scenario: ScenarioOption,
    driver: Annotated[
        Literal["loopback", "tun"],
        typer.Option("--driver", help="Cut by firewall rules on loopback, or by our own switch between namespaces."),
    ] = "loopback",
    seed: SeedOption = None,
    nodes: NodesOption = None,
    duration: DurationOption = None,
    out: OutOption = Path("out/real"),
) -> int:
    """Play a scenario on real processes, in real time.

    The same files, black-box checks only: what clients were told, what runs wrote, what databases hold in the end. The
    seed fixes what is tried and when; processes answer in their own time, so no two runs are the same. Cuts need root,
    or a user namespace of your own (`unshare -rnm`); what is missing is said before anything starts.

    \b
    Examples:
      relaymesh chaos real --scenario node-crash
      sudo relaymesh chaos real --scenario split-brain --driver tun
    """
    from chaos import playing
    from chaos.real.driver import check, notes_on, play_real

    duration_s = None if duration is None else parse_duration_ms(duration, option="--duration") / 1000
    ready = playing.ready(playing.find(scenario), seed=seed, nodes=nodes, duration_s=duration_s)
    check(ready, driver)
    with Progress(sys.stderr) as progress:
        for note in notes_on(ready, driver):
            progress.say(f"note: {note}")
        directory = Path(tempfile.mkdtemp(prefix=f"relaymesh-chaos-{ready.name}-"))
        result = play_real(ready, driver=driver, directory=directory, progress=progress.say)
        progress.say(f"databases, logs and journals: {directory}")
    return _report(session, result, out, mutant=None, extra={"driver": driver, "directory": str(directory)})


def _list(
    session: Session,
    what: Annotated[
        Literal["scenarios", "faults", "invariants", "coverage"] | None,
        typer.Argument(metavar="[WHAT]", help="scenarios, faults, invariants or coverage. [default: all]"),
    ] = None,
) -> int:
    """Show what there is to play and to judge.

    Scenarios, faults, promises, and what must happen in a batch. A scenario is pending when the defence that it tries
    is not built yet.

    \b
    Example:
      relaymesh chaos list scenarios
    """
    from chaos.catalogue import catalogue

    everything = catalogue()
    chosen: Any = everything if what is None else everything[what]
    if session.json:
        print_json(chosen)
    elif what is None:
        for name, rows in everything.items():
            print(f"{name}:")
            print_answer(rows)
            print()
    else:
        print_answer(chosen)
    return EXIT_OK


command(chaos_app, "run", panel="One run")(_run)
command(chaos_app, "replay", panel="One run")(_replay)
command(chaos_app, "shrink", panel="One run")(_shrink)
command(chaos_app, "report", panel="One run")(_report_command)
command(chaos_app, "real", panel="One run")(_real)
command(chaos_app, "list", panel="What there is")(_list)
chaos_batches.register(chaos_app)

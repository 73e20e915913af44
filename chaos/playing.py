"""Makes a scenario ready to be played, and plays it at its own scale: the one way from a scenario to a result.

Simulators are imported when they are needed: whoever only wants a scenario checked does not wait for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from chaos import scenario_file, swarm
from chaos.fault_menu import MENU
from chaos.runs import RunResult, Violation
from chaos.scenario import Scenario
from mesh.errors import ConfigError

MUTANT = "mutant"
PENDING = "pending"
UNJUDGED = "unjudged"
INTERRUPTED = "interrupted"
UNTIL = "untilSeconds"
"""Facts of a result: the mutant it was played with; why it was not judged, and what was seen then; what ended it early,
Ctrl-C or the time that was asked for.
"""


def find(name: str) -> Scenario:
    """The scenario that a person means: a file when it ends in `.toml` or is a path, else one of the named ones.

    Raises ConfigError, with the line for a file and with the known names for a name.
    """
    if name.endswith(".toml") or "/" in name:
        return scenario_file.load(Path(name))
    return scenario_file.named(name)


def ready(
    scenario: Scenario, *, seed: int | None = None, nodes: int | None = None, duration_s: float | None = None
) -> Scenario:
    """The scenario as it is going to be played: with what was asked for, all faults explicit, and checked as a file is.

    Raises ConfigError when its faults do not fit another size or length.
    """
    seed = scenario.seed if seed is None else seed
    changed = replace(
        scenario,
        seed=seed,
        nodes=scenario.nodes if nodes is None else nodes,
        duration_s=scenario.duration_s if duration_s is None else duration_s,
    )
    if nodes is not None or duration_s is not None:
        try:
            scenario_file.parse(scenario_file.dump(changed), changed.name)
        except ConfigError as error:
            raise ConfigError(
                f"{scenario.name} does not fit {changed.nodes} nodes and {changed.duration_s:g} s: {error}"
            ) from error
    return replace(swarm.expand(changed, seed), seed=seed)


def play_at_scale(
    scenario: Scenario,
    *,
    mutant: str | None = None,
    until_s: float | None = None,
    tell: Callable[[str], None] | None = None,
) -> RunResult:
    """Play what `ready` made. A pending scenario is played, where its faults can be, and not judged.

    `until_s` ends it at that time. `tell` hears every step of whole nodes, as a line that begins with the second.
    `mutant` puts a deliberate fault into the product. A run that was ended early is not asked what it should have met.
    """
    assert scenario.random is None, "`ready` draws random faults"
    if scenario.pending and (missing := _unplayable(scenario)):
        return _not_played(scenario, missing)
    with contextlib.ExitStack() as stack:
        if mutant is not None:
            from chaos.mutants import mutated

            stack.enter_context(mutated(mutant))
        result = _play(scenario, until_s, tell)
    facts = dict(result.facts)
    facts |= {} if mutant is None else {MUTANT: mutant}
    facts |= {} if until_s is None else {UNTIL: until_s}
    if not scenario.pending:
        missed = [] if UNTIL in facts or INTERRUPTED in facts else _missed(result)
        return replace(result, facts=facts, violations=[*result.violations, *missed])
    facts |= {PENDING: scenario.pending, UNJUDGED: [str(violation) for violation in result.violations]}
    return replace(result, facts=facts, violations=())


def _play(scenario: Scenario, until_s: float | None, tell: Callable[[str], None] | None) -> RunResult:
    if scenario.scale == "protocol":
        from chaos.protocol.scenarios import run_protocol

        return run_protocol(scenario, scenario.seed)
    from chaos.simulation.played import play

    return play(scenario, until_s=until_s, tell=tell)


def _missed(result: RunResult) -> list[Violation]:
    return [
        Violation("coverage", result.simulated_s * 1000, f"the run never met what it is about: {point}")
        for point in result.scenario.expect
        if not result.coverage.get(point)
    ]


def _unplayable(scenario: Scenario) -> list[str]:
    """Kinds of faults that no world can play yet."""
    if scenario.scale != "node":
        return []
    from chaos.simulation.faulting import PLAYERS

    return [kind for kind in MENU if kind not in PLAYERS and any(fault.kind == kind for fault in scenario.faults)]


def _not_played(scenario: Scenario, kinds: list[str]) -> RunResult:
    return RunResult(
        scenario=scenario,
        violations=(),
        coverage={},
        trace_hash="",
        simulated_s=0.0,
        cpu_s=0.0,
        facts={PENDING: scenario.pending, UNJUDGED: [f"not played: no world knows {', '.join(kinds)} yet"]},
    )

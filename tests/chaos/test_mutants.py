"""Deliberate faults: each still finds its place in the product, and those tried here are caught."""

from __future__ import annotations

import pytest

from chaos import scenario_file, swarm
from chaos.invariants import ALL
from chaos.mutants import MUTANTS, mutated
from chaos.mutants.edits import Edit, edited, find
from chaos.simulation.played import play
from mesh.takeover import LostLease, is_poison

AT_SEED = {
    "acknowledged-before-sync": 1,
    "normal-sync": 1,
    "lease-heartbeat-as-row-write": 1,
    "epoch-not-bumped-at-claim": 1,
    "start-not-counted": 1,
    "gate-removed": 1,
    "quarantine-of-lifecycle-rows": 3,
    "refutation-without-incarnation": 3,
    "dead-letter-too-early": 1,
    "hold-of-a-node-ignored": 11,
}
"""What an early seed of the swarm catches: a sample for every test run. `chaos mutants --catch` tries all."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_changes_the_product_and_gives_it_back(name):
    functions = {edit.target: find(edit.target) for edit in MUTANTS[name].edits}
    before = {target: function.__code__ for target, function in functions.items()}
    with mutated(name):
        assert all(function.__code__ is not before[target] for target, function in functions.items())
    assert {target: function.__code__ for target, function in functions.items()} == before


def test_every_mutant_names_promises_that_exist():
    names = {promise.name for promise in ALL}
    assert {name for mutant in MUTANTS.values() for name in mutant.caught_by} <= names


def test_an_edit_whose_place_is_gone_is_an_error():
    for edit in (Edit("mesh.gate:Gate.nothing", "a", "b"), Edit("mesh.gate:Gate.check", "no such text", "b")):
        with pytest.raises(AssertionError), edited([edit]):
            pass


def test_an_edit_that_changes_nothing_or_whose_place_is_not_one_is_an_error():
    same = Edit("mesh.gate:Gate.check", "away_s = now - self._checked_at", "away_s = (now - self._checked_at)")
    vague = Edit("mesh.gate:Gate.check", "now", "then")
    for edit in (same, vague):
        with pytest.raises(AssertionError), edited([edit]):
            pass


def test_one_function_is_edited_once_at_a_time():
    edit = Edit("mesh.takeover:is_poison", ">= LOST_LEASES_MAX", "> LOST_LEASES_MAX")
    with edited([edit]), pytest.raises(AssertionError, match="edited already"), edited([edit]):
        pass
    with edited([edit]):
        pass


def test_edited_code_is_run_by_whoever_imported_the_function_before():
    lost = [LostLease("n0", life) for life in range(1, 6)]
    assert is_poison(lost, lambda node: 9)
    with mutated("poison-never-ends"):
        assert not is_poison(lost, lambda node: 9)
    assert is_poison(lost, lambda node: 9)


def test_without_a_mutant_the_seeds_of_this_file_are_clean():
    for seed in sorted(set(AT_SEED.values())):
        assert not play(swarm.draw(seed)).violations


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), AT_SEED.items(), ids=AT_SEED)
def test_a_mutant_is_caught(name, seed):
    with mutated(name):
        violations = play(swarm.draw(seed)).violations
    assert {violation.invariant for violation in violations} & set(MUTANTS[name].caught_by)


@pytest.mark.soak
@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught_within_forty_seeds(name):
    shown = MUTANTS[name].scenario
    for scenario in [scenario_file.named(shown)] if shown else map(swarm.draw, range(1, 41)):
        with mutated(name):
            violations = play(scenario).violations
        if {violation.invariant for violation in violations} & set(MUTANTS[name].caught_by):
            return
    pytest.fail(f"{name} survived forty seeds, or the scenario that should show it")

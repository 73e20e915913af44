"""The scenarios that come with RelayMesh: all read, say what they are about, and between them use every fault."""

from __future__ import annotations

import pytest

from chaos import playing, scenario_file
from chaos.fault_menu import MENU
from chaos.matrix import MATRIX

ALL = scenario_file.all_named()
A_DAY = "one-day"
CHEAP = ("node-crash", "slow-disk", "poison-task")


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_a_named_scenario_reads_back_and_says_what_it_is_about(scenario):
    assert scenario == scenario_file.named(scenario.name)
    assert scenario == scenario_file.parse(scenario_file.dump(scenario), "again.toml")
    assert scenario.about.count(".") >= 2


def test_every_fault_has_a_scenario():
    assert {fault.kind for scenario in ALL for fault in scenario.faults} == set(MENU)


def test_faults_whose_defence_is_missing_are_in_pending_scenarios_only():
    for scenario in ALL:
        assert scenario.pending or not any(MENU[fault.kind].pending for fault in scenario.faults)


def test_the_matrix_is_made_of_scenarios_that_are_not_pending():
    assert len(MATRIX) == 4
    assert all(not scenario_file.named(name).pending for names in MATRIX.values() for name in names)


def _holds(name: str, seed: int) -> None:
    result = playing.play_at_scale(playing.ready(scenario_file.named(name), seed=seed))
    assert not result.violations, [str(violation) for violation in result.violations]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_a_few_hold_at_every_test_run(name):
    _holds(name, 1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", [scenario.name for scenario in ALL if not scenario.pending and scenario.name != A_DAY])
def test_all_hold(name, seed):
    _holds(name, seed)


@pytest.mark.soak
def test_a_day_holds():
    _holds(A_DAY, 1)

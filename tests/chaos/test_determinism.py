"""The gate lets one run through, and names the first step of two that differ. Seeds of the swarm pass it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

from chaos import swarm
from chaos.determinism import first_difference, verify
from chaos.playing import ready
from chaos.scenario import Scenario

SCENARIO = Scenario(name="any")


@pytest.fixture
def plays(monkeypatch):
    folder = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder, prepend=os.pathsep)
    return importlib.import_module("stand_in_plays")


@pytest.mark.slow
def test_a_seed_of_the_swarm_is_the_same_run_under_every_hash_seed():
    scenarios = [ready(swarm.draw(seed), seed=seed) for seed in (1, 2)]

    verified = verify(scenarios, runs=2, jobs=2)

    assert [each.is_equal for each in verified] == [True, True]
    assert len({each.hashes[1] for each in verified}) == 2


def test_equal_runs_pass(plays):
    counts: list[int] = []

    (verified,) = verify([SCENARIO], runs=3, jobs=2, play=plays.in_order, progress=counts.append)

    assert verified.is_equal
    assert list(verified.hashes) == [1, 2, 3]
    assert verified.difference is None
    assert counts == [1, 2, 3]


def test_the_order_of_a_set_is_found_and_its_first_step_named(plays):
    (verified,) = verify([SCENARIO], runs=2, play=plays.in_order_of_a_set)

    difference = verified.difference
    assert not verified.is_equal
    assert difference is not None
    assert difference.hash_seeds == (1, 2)
    assert difference.before[0] == "start"
    assert difference.left != difference.right
    assert {difference.left, difference.right} <= plays.WORDS


def test_processes_that_all_die_alike_are_not_equal(plays):
    (verified,) = verify([SCENARIO], runs=2, play=plays.dies)

    assert not verified.is_equal
    assert verified.hashes == {}
    assert verified.errors[1].startswith("its process ended (9)")


def test_a_run_that_ends_earlier_differs_where_it_ends(tmp_path):
    long, short = tmp_path / "long", tmp_path / "short"
    long.write_text("".join(f"{step}\n" for step in range(20)))
    short.write_text("".join(f"{step}\n" for step in range(19)))

    difference = first_difference(long, short, hash_seeds=(1, 2))

    assert (difference.step, difference.left, difference.right) == (20, "19", "(the run had ended)")
    assert difference.before == tuple(str(step) for step in range(11, 19))
    assert first_difference(long, long, hash_seeds=(1, 2)).step == 0

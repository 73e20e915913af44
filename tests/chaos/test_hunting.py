"""A batch goes on whatever a seed does, and says what each did. Sixteen seeds of the swarm break nothing."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chaos import coverage, hunting, scenario_file
from chaos.hunting import Found, HuntResult, Plan, hunt


@pytest.fixture
def plays(monkeypatch):
    """Instant plays in place of real ones, in the workers as well."""
    folder = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder, prepend=os.pathsep)
    module = importlib.import_module("stand_in_plays")
    for name in ("play_seed", "play_again", "shrink_seed"):
        monkeypatch.setattr(hunting, name, getattr(module, name))
    return module


def only(result: HuntResult) -> Found:
    (found,) = result.found
    return found


@pytest.mark.slow
def test_seeds_of_the_swarm_break_nothing(tmp_path):
    result = hunt(range(1, 17), Plan(out=tmp_path), jobs=2)

    assert [(found.seed, str(found.violations[0])) for found in result.found] == []
    assert result.seeds == 16
    assert result.is_ok


def test_a_batch_adds_up(plays, tmp_path):
    states: list[int] = []

    result = hunt(range(8, 12), Plan(out=tmp_path), jobs=2, progress=lambda state: states.append(state.seeds))

    assert (result.seeds, result.simulated_s, result.cpu_s) == (4, 40.0, 2.0)
    assert result.coverage == {"retry": 8, "only-0": 2, "only-1": 2}
    assert result.is_ok
    assert states[-1] == 4
    assert list(tmp_path.iterdir()) == []


def test_what_a_seed_broke_is_kept_and_shrunk(plays, tmp_path):
    found = only(hunt([6, plays.BREAKS, 8], Plan(out=tmp_path), jobs=1))

    assert (found.seed, found.invariants) == (plays.BREAKS, ["own-epoch"])
    assert found.note == "shrunk by own-epoch"
    assert found.repro.parent.parent == tmp_path


def test_without_shrinking_it_is_only_kept(plays, tmp_path):
    assert only(hunt([plays.BREAKS], Plan(out=tmp_path), jobs=1, shrink_first=0)).note == ""


def test_a_seed_that_hangs_is_ended_and_leaves_its_scenario_and_its_stacks(plays, monkeypatch, tmp_path):
    monkeypatch.setattr(hunting, "SEED_LIMIT_S", 0.3)

    result = hunt([plays.HANGS, 4], Plan(out=tmp_path), jobs=1)

    found = only(result)
    assert result.seeds == 2
    assert (found.seed, found.invariants) == (plays.HANGS, ["hang"])
    assert scenario_file.load(found.repro).seed == plays.HANGS
    assert "stand_in_plays.py" in (found.repro.parent / "said.txt").read_text()


def test_a_seed_whose_process_dies_is_reported_and_the_next_one_played(plays, tmp_path):
    result = hunt([plays.DIES, 6], Plan(out=tmp_path), jobs=1)

    assert result.seeds == 2
    assert (only(result).invariants, only(result).violations[0].detail) == (["crash"], "its process ended (9)")


def test_a_seed_that_is_another_run_the_second_time_is_reported(plays, tmp_path):
    result = hunt([plays.DRIFTS, 40], Plan(out=tmp_path), jobs=1)

    assert result.repeated == 2
    assert (only(result).seed, only(result).invariants) == (plays.DRIFTS, ["determinism"])


def test_a_large_batch_must_meet_all_that_is_required(plays, monkeypatch, tmp_path):
    monkeypatch.setattr(coverage, "REQUIRED", ("retry", "never-met"))
    monkeypatch.setattr(hunting, "COVERAGE_SEEDS_MIN", 3)

    small, large = (hunt(range(8, end), Plan(out=tmp_path), jobs=1) for end in (10, 11))

    assert (small.unreached, small.is_ok) == ([], True)
    assert (large.unreached, large.is_ok) == (["never-met"], False)


def test_enough_is_enough(plays, tmp_path):
    seeds = itertools.chain(range(8, 10), itertools.count(1001, 2))

    result = hunt(seeds, Plan(out=tmp_path), jobs=1, enough=lambda state: state.coverage["only-1"] >= 2)

    assert result.seeds == 3


def test_time_ends_an_endless_hunt(plays, tmp_path):
    result = hunt(itertools.count(1001, 2), Plan(out=tmp_path), jobs=1, minutes=0.01)

    assert result.seeds >= 1
    assert result.wall_s >= 0.6


def test_an_interrupt_ends_it_with_what_was_found(plays, tmp_path, request):
    main = threading.main_thread().ident
    assert main is not None
    # Whoever starts tests in the background of a shell lets them ignore Ctrl-C.
    request.addfinalizer(
        partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
    )

    def interrupt(state: HuntResult) -> None:
        if state.seeds == 1:
            signal.pthread_kill(main, signal.SIGINT)

    endless: Any = itertools.count(1001, 2)
    result = hunt(itertools.chain([plays.BREAKS], endless), Plan(out=tmp_path), jobs=1, progress=interrupt)

    assert result.interrupted
    assert only(result).seed == plays.BREAKS

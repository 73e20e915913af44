"""Real processes, killed, paused, stopped and cut off while clients are at work: every promise is kept."""

import pytest

from chaos.real.hunt import hunt
from chaos.real.trouble import describe

SEEDS = range(1, 21)


def assert_clean(directory, *, seed: int, seconds: float, nodes: int | None = None) -> None:
    result = hunt(directory, seed=seed, seconds=seconds, nodes=nodes)
    told = "\n".join([*map(describe, result.scenario.faults), *map(str, result.violations)])
    assert not result.violations, f"seed {seed}, evidence in {directory}:\n{told}"
    assert result.facts["accepted"] > 0
    assert result.facts["runs"] > 0


@pytest.mark.slow
def test_a_short_hunt_finds_nothing(tmp_path):
    """A sample of what the soak test below does."""
    assert_clean(tmp_path / "hunt", seed=7, seconds=10, nodes=3)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_hunt_finds_nothing(tmp_path, seed):
    assert_clean(tmp_path / "hunt", seed=seed, seconds=25)

"""Every failure that the simulator found leaves its scenario in `chaos/corpus/`. None of them may come back."""

from __future__ import annotations

from pathlib import Path

import pytest

import chaos
from chaos import playing, scenario_file

CORPUS = sorted((Path(chaos.__file__).parent / "corpus").glob("*.toml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_failed_once_holds(path):
    scenario = scenario_file.load(path)
    assert scenario.name == path.stem
    assert scenario.about
    result = playing.play_at_scale(playing.ready(scenario))
    assert not result.violations, [str(violation) for violation in result.violations]

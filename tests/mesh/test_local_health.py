from hypothesis import given
from hypothesis import strategies as st

from mesh.local_health import SCORE_MAX, LocalHealth


@given(st.lists(st.integers(-1, 5), max_size=50))
def test_the_score_stays_within_its_bounds(steps: list[int]) -> None:
    health = LocalHealth()
    for step in steps:
        health.better() if step < 0 else health.worse(step)
        assert 0 <= health.score <= SCORE_MAX
        assert health.stretch == health.score + 1


def test_evidence_against_us_stretches_and_good_answers_relax() -> None:
    health = LocalHealth()
    assert health.stretch == 1
    health.worse(2)
    assert health.stretch == 3
    health.better()
    assert health.stretch == 2

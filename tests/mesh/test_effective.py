import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.effective import DWELL_MAX_S, EffectiveState
from mesh.membership import RANK, Status

ALIVE, SUSPECT, DEAD, LEFT = Status.ALIVE, Status.SUSPECT, Status.DEAD, Status.LEFT


@pytest.mark.parametrize(("failure", "dwell_s"), [([SUSPECT], 5.0), ([SUSPECT, DEAD], 30.0), ([DEAD], 30.0)])
def test_a_returned_member_waits_from_its_first_sign_of_life(failure: list[Status], dwell_s: float) -> None:
    state = EffectiveState()
    for status in failure:
        state.on_change("b", status, 100.0)
    assert state.status("b", 10_000.0) is failure[-1]
    assert state.recovers_at("b", 10_000.0) is None
    state.on_change("b", ALIVE, 10_000.0)
    assert state.status("b", 10_000.0 + dwell_s - 0.1) is failure[-1]
    assert state.recovers_at("b", 10_001.0) == 10_000.0 + dwell_s
    assert state.status("b", 10_000.0 + dwell_s) is ALIVE
    assert state.recovers_at("b", 10_000.0 + dwell_s) is None


def test_more_signs_of_life_do_not_prolong_the_wait() -> None:
    state = EffectiveState()
    state.on_change("b", DEAD, 0.0)
    for now in (10.0, 20.0, 30.0):
        state.on_change("b", ALIVE, now)
    assert state.status("b", 40.0) is ALIVE


def test_a_new_suspicion_during_the_wait_begins_it_again_with_the_worst_of_both() -> None:
    state = EffectiveState()
    state.on_change("b", DEAD, 0.0)
    state.on_change("b", ALIVE, 10.0)
    state.on_change("b", SUSPECT, 20.0)
    assert state.status("b", 20.0) is SUSPECT
    state.on_change("b", ALIVE, 25.0)
    assert state.status("b", 54.9) is DEAD


def test_flapping_doubles_the_wait_up_to_a_cap_and_quiet_halves_it() -> None:
    state = EffectiveState()
    waits = []
    for turn in range(12):
        state.on_change("b", DEAD, float(turn))
        state.on_change("b", ALIVE, float(turn))
        recovers_at = state.recovers_at("b", float(turn))
        assert recovers_at is not None
        waits.append(recovers_at - turn)
    assert waits[0] == 30.0
    assert waits[1] == pytest.approx(60.0, rel=0.01)
    assert waits == sorted(waits)
    assert max(waits) <= DWELL_MAX_S
    quiet = 100_000.0
    state.on_change("b", DEAD, quiet)
    state.on_change("b", ALIVE, quiet)
    assert state.recovers_at("b", quiet) == quiet + 30.0


def test_a_goodbye_is_no_failure() -> None:
    state = EffectiveState()
    state.on_change("b", LEFT, 0.0)
    assert state.status("b", 1.0) is LEFT
    state.on_change("b", ALIVE, 2.0)
    assert state.status("b", 2.0) is ALIVE


def test_the_unknown_and_the_forgotten_are_alive() -> None:
    state = EffectiveState()
    assert state.status("b", 0.0) is ALIVE
    state.on_change("b", DEAD, 0.0)
    state.forget("b")
    assert state.status("b", 0.0) is ALIVE


@given(st.lists(st.tuples(st.sampled_from([ALIVE, SUSPECT, DEAD]), st.floats(0, 100)), max_size=30))
def test_it_never_looks_better_than_the_protocol_and_recovers_within_the_cap(steps: list) -> None:
    state, now, status = EffectiveState(), 0.0, ALIVE
    for status, wait in steps:
        now += wait
        state.on_change("b", status, now)
        assert RANK[state.status("b", now)] >= RANK[status]
    if status is ALIVE:
        assert state.status("b", now + DWELL_MAX_S) is ALIVE

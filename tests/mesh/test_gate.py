"""The gate: shut at start and after a pause, opened by a fresh pull or by a dead time of silence."""

from __future__ import annotations

from mesh.gate import Gate


def _open_gate() -> Gate:
    return Gate(dead_time_s=3.0, has_peers=False, now=0.0)


def test_a_node_founded_alone_starts_open():
    assert _open_gate().check(0.1)


def test_a_node_with_peers_waits_for_the_first_pull():
    gate = Gate(dead_time_s=3.0, has_peers=True, now=0.0)
    token = gate.on_pull_started()

    assert not gate.check(0.5)
    assert gate.on_pull_finished(token, 1.0)
    assert gate.check(1.1)


def test_silence_for_one_dead_time_opens_it():
    gate = Gate(dead_time_s=3.0, has_peers=True, now=0.0)

    assert gate.opens_at() == 3.0
    assert not gate.check(2.0)
    assert gate.check(3.0)
    assert gate.opens_at() is None


def test_a_pause_longer_than_a_dead_time_shuts_it():
    gate = _open_gate()

    assert gate.check(2.9)
    assert not gate.check(6.0)
    assert gate.pauses == 1


def test_looking_often_is_no_pause():
    gate = _open_gate()

    assert all(gate.check(second / 2) for second in range(100))
    assert gate.pauses == 0


def test_a_pull_begun_before_the_pause_opens_nothing():
    gate = _open_gate()
    stale = gate.on_pull_started()
    gate.check(10.0)

    assert not gate.on_pull_finished(stale, 10.1)
    assert not gate.is_open
    assert gate.on_pull_finished(gate.on_pull_started(), 10.2)


def test_the_pause_is_noticed_even_when_the_pull_is_the_first_to_look():
    gate = _open_gate()
    stale = gate.on_pull_started()

    assert not gate.on_pull_finished(stale, 10.0)
    assert not gate.is_open


def test_a_pull_that_goes_on_keeps_it_shut_however_long_it_takes():
    gate = Gate(dead_time_s=3.0, has_peers=True, now=0.0)
    token = gate.on_pull_started()
    for second in range(1, 20):
        assert not gate.check(float(second))
        gate.on_peer_answered(float(second))

    assert gate.opens_at() == 22.0
    assert gate.on_pull_finished(token, 19.5)


def test_silence_after_a_part_of_a_pull_opens_it_too():
    gate = Gate(dead_time_s=3.0, has_peers=True, now=0.0)
    gate.check(2.0)
    gate.on_peer_answered(2.0)

    assert not gate.check(4.9)
    assert gate.check(5.0)


def test_shutting_it_makes_pulls_of_before_worthless():
    gate = _open_gate()
    stale = gate.on_pull_started()
    gate.shut(1.0)

    assert not gate.on_pull_finished(stale, 1.5)
    assert gate.on_pull_finished(gate.on_pull_started(), 2.0)


def test_after_a_restore_only_a_pull_opens_it():
    gate = Gate(dead_time_s=10, has_peers=True, now=0, is_restored=True)
    assert all(not gate.check(now) for now in range(0, 100, 5))
    assert gate.opens_at() is None
    assert gate.on_pull_finished(gate.on_pull_started(), 100)
    assert gate.check(101)
    gate.shut(102)  # a later pause is one like any other
    assert gate.opens_at() == 112
    assert [gate.check(now) for now in (107, 112)] == [False, True]


def test_a_restored_node_without_peers_is_open():
    assert Gate(dead_time_s=10, has_peers=False, now=0, is_restored=True).check(0)

from __future__ import annotations

import pytest

from chaos.simulation.links import Conditions, Links, Overlay, between, towards

AB, BA = ("a", "b"), ("b", "a")


def links(seed: int = 1, **conditions: float) -> Links:
    return Links(seed, Conditions(**conditions))


def test_the_fate_of_a_packet_depends_on_its_own_line_and_number_only():
    alone, busy = links(loss=0.3), links(loss=0.3)
    for _ in range(50):
        busy.arrivals(("c", "d"), 100, 0.0)
    assert [alone.arrivals(AB, 100, 0.0) for _ in range(200)] == [busy.arrivals(AB, 100, 0.0) for _ in range(200)]


def test_loss_and_duplicates_come_in_their_shares():
    lossy = links(loss=0.25, duplicate=0.5)
    fates = [lossy.arrivals(AB, 100, 0.0) for _ in range(4_000)]
    lost = sum(not fate for fate in fates)
    copied = sum(len(fate) == 2 for fate in fates)
    assert lost == pytest.approx(1_000, rel=0.1)
    assert copied == pytest.approx(1_500, rel=0.1)


def test_a_one_way_cut_blocks_one_direction():
    lines = links()
    lines.lay(Overlay(pairs=towards(["a"], ["b"]), blocked=True))
    assert not lines.arrivals(AB, 100, 0.0)
    assert lines.arrivals(BA, 100, 0.0)


def test_a_line_is_blocked_while_any_of_several_faults_blocks_it():
    lines = links()
    first, second = (Overlay(pairs=between(["a"], ["b"]), blocked=True) for _ in range(2))
    lines.lay(first)
    lines.lay(second)
    lines.lift(first)
    assert not lines.is_open(AB)
    lines.lift(second)
    assert lines.is_open(AB)


def test_of_two_faults_the_worse_share_and_the_sum_of_delays_hold():
    lines = links()
    lines.lay(Overlay(pairs=None, loss=0.1, delay_s=0.1))
    lines.lay(Overlay(pairs=frozenset([AB]), loss=0.4, delay_s=0.2))
    assert lines.conditions(AB).loss == 0.4
    assert lines.conditions(AB).delay_min_s == pytest.approx(0.3, abs=0.01)
    assert lines.conditions(BA).loss == 0.1


def test_a_clog_holds_packets_and_lets_them_go_in_order():
    lines, out = links(), []
    clog = Overlay(pairs=None, clogged=True)
    lines.lay(clog)
    assert lines.held(AB, lambda: out.append(1))
    assert lines.held(AB, lambda: out.append(2))
    assert not out
    lines.lift(clog)
    assert out == [1, 2]
    assert not lines.held(AB, lambda: out.append(3))


def test_a_narrow_line_sends_one_packet_after_the_other():
    lines = links(delay_min_s=0.0, delay_mean_s=0.0, bandwidth_bytes_s=1_000)
    arrivals = [lines.arrivals(AB, 500, 0.0)[0].at for _ in range(3)]
    assert arrivals == pytest.approx([0.5, 1.0, 1.5])


def test_a_lost_segment_of_a_stream_comes_late_and_never_not_at_all():
    lines = links(loss=0.5)
    delays = [lines.segment_delay_s(AB, 100, 0.0) for _ in range(500)]
    assert sum(delay > 0.2 for delay in delays) == pytest.approx(250, rel=0.2)
    assert max(delays) < 30


def test_healing_ends_every_fault_and_tells_those_who_wait():
    lines, told = links(), []
    lines.on_change(lambda: told.append("open"))
    lines.lay(Overlay(pairs=None, blocked=True))
    lines.heal()
    assert lines.is_open(AB)
    assert told == ["open"]

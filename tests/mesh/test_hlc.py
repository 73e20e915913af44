"""The clocks behind stamps: monotone whatever time does, and hard to drag into the future."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.hlc import COUNTER_BITS, DRIFT_MAX_MS, HybridClock, PhysicalClock, stamp_ms

NOW_MS = 1_700_000_000_000


@given(st.lists(st.integers(0, 1 << 42)), st.integers(0, 1 << 60))
def test_stamps_rise_whatever_physical_time_does(times, first):
    clock = HybridClock(first)

    stamps = [clock.tick(time_ms) for time_ms in times]

    assert stamps == sorted(set(stamps))
    assert all(stamp > first for stamp in stamps)


@given(st.integers(0, NOW_MS + DRIFT_MAX_MS))
def test_a_stamp_after_an_accepted_one_is_larger(seen_ms):
    clock = HybridClock()

    assert clock.observe(seen_ms << COUNTER_BITS, NOW_MS)
    assert clock.tick(NOW_MS) > seen_ms << COUNTER_BITS


def test_a_stamp_at_the_drift_limit_moves_the_clock_and_one_past_it_does_not():
    clock = HybridClock()
    at_limit = (NOW_MS + DRIFT_MAX_MS) << COUNTER_BITS

    assert clock.observe(at_limit, NOW_MS)
    assert clock.last == at_limit
    assert not clock.observe(at_limit + (1 << COUNTER_BITS), NOW_MS)
    assert clock.last == at_limit


def test_a_full_counter_carries_into_the_milliseconds():
    clock = HybridClock((NOW_MS << COUNTER_BITS) | 0xFFFF)

    assert stamp_ms(clock.tick(NOW_MS)) == NOW_MS + 1


def test_physical_time_follows_the_monotonic_clock_and_not_the_date():
    clock = PhysicalClock(NOW_MS, 100.0)

    assert clock.now_ms(100.0) == NOW_MS
    assert clock.now_ms(102.5) == NOW_MS + 2_500


def test_the_date_is_followed_again_only_while_it_is_near_the_peers_time():
    clock = PhysicalClock(NOW_MS, 0.0)

    assert not clock.reanchor(NOW_MS + DRIFT_MAX_MS + 1, 10.0, NOW_MS)
    assert clock.now_ms(10.0) == NOW_MS + 10_000
    assert clock.reanchor(NOW_MS + DRIFT_MAX_MS, 10.0, NOW_MS)
    assert clock.now_ms(10.0) == NOW_MS + DRIFT_MAX_MS


def test_a_node_without_peers_follows_its_own_date():
    clock = PhysicalClock(0, 0.0)

    assert clock.reanchor(NOW_MS, 5.0, None)
    assert clock.now_ms(5.0) == NOW_MS

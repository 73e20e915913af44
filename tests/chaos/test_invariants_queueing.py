"""The promises about holds and times of steps, each broken by hand and kept by hand."""

from __future__ import annotations

import pytest

from chaos.invariants.held_and_timed import SLOW_MS
from tests.chaos.feeds import Feed

HELD, TIMED = "nothing-held-starts", "steps-begin-in-their-time"


def hold(feed: Feed, host: str, key: str, **fields):
    return feed.write(host, key, table="holds", namespace="_mesh", reason="tests", **fields)


@pytest.mark.parametrize(
    ("key", "broken"),
    [
        ("mesh", True),
        ("node n0", True),
        ("drain n0", True),
        ("agent work", True),
        ("node n1", False),
        ("agent other", False),
    ],
)
def test_a_host_that_has_a_hold_claims_nothing_of_its_scope(key, broken):
    feed = Feed()
    feed.write("n0")
    hold(feed, "n0", key)
    feed.claim("n0")
    assert (HELD in feed.broken()) is broken


def test_a_hold_that_came_later_was_lifted_or_is_unknown_keeps_nobody():
    feed = Feed()
    feed.write("n0")
    hold(feed, "n1", "mesh")
    feed.claim("n0")
    hold(feed, "n0", "mesh")
    feed.write("n0", status="PENDING")
    hold(feed, "n0", "mesh", deleted=True)
    feed.claim("n0")
    assert HELD not in feed.broken()


def aged(feed: Feed, step, after_ms: float, **fields):
    """A claim by the stamp of a clock that runs like the world's."""
    return feed.claim("n0", hlc=step.hlc + (int(after_ms) << 16), after_ms=after_ms, **fields)


def submitted(feed: Feed, **times):
    hlc = 1 << 40
    return feed.write("n0", hlc=hlc, created_hlc=hlc, **times)


@pytest.mark.parametrize(("after_ms", "broken"), [(1_000, True), (9_990, False), (10_010, False)])
def test_no_step_is_claimed_before_its_delay_is_over(after_ms, broken):
    feed = Feed()
    aged(feed, submitted(feed, delay_ms=10_000), after_ms)
    assert (TIMED in feed.broken()) is broken


def test_a_clock_that_is_ahead_may_begin_a_step_by_its_own_stamp():
    feed = Feed()
    step = submitted(feed, delay_ms=10_000)
    feed.claim("n0", hlc=step.hlc + (10_000 << 16))
    assert TIMED not in feed.broken()


@pytest.mark.parametrize(("after_ms", "broken"), [(1_000, False), (5_000 + 2 * SLOW_MS, True)])
@pytest.mark.parametrize("began", [True, False])
def test_no_step_is_first_claimed_after_its_expiry(after_ms, broken, began):
    feed = Feed()
    step = submitted(feed, expires_ms=5_000, claim_life=7 if began else 0)
    aged(feed, step, after_ms)
    assert (TIMED in feed.broken()) is (broken and not began)


@pytest.mark.parametrize(
    ("after_ms", "times", "broken"),
    [
        (10_010, {"expires_ms": 10_000}, False),
        (1_000, {"expires_ms": 10_000}, True),
        (10_010, {"expires_ms": 10_000, "claim_life": 7}, True),
        (10_010, {"delay_ms": 1}, True),
    ],
)
def test_a_step_expires_in_its_time_and_only_if_it_never_began(after_ms, times, broken):
    feed = Feed()
    step = submitted(feed, **times)
    later = {"hlc": step.hlc + (after_ms << 16), "after_ms": after_ms}
    feed.write("n0", status="CANCELLED", last_error="expired: too late", **later)
    assert (TIMED in feed.broken()) is broken


def test_a_host_whose_clock_was_upset_is_not_judged():
    feed = Feed()
    step = submitted(feed, delay_ms=10_000)
    feed.fault("clock-jump", "n0")
    aged(feed, step, 1_000)
    assert TIMED not in feed.broken()

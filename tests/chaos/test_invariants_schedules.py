"""The promises about schedules, each broken by hand and kept by hand."""

from __future__ import annotations

import pytest

from tests.chaos.feeds import Feed

BECOME, ONE = "slots-become-tasks", "slots-have-one-submitter"
SLOTS = ("2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z")


def stored() -> Feed:
    """A mesh in which a schedule was stored at midnight, and n0 and n1 hold each other ALIVE."""
    feed = Feed()
    for host, other in (("n0", "n1"), ("n1", "n0")):
        feed.start(host, members={other: "ALIVE"})
    feed.ask("n0", "schedule-add", {}, answer={"name": "s", "nowUtc": "2026-01-01T00:00:00Z"})
    return feed


def submit(
    feed: Feed, slot: str, *, host: str = "n0", task_id: str = "", word: str = "", after_ms: float = 10.0
) -> None:
    task_id = task_id or f"t {slot}"
    key = f"schedule s {slot}{word}"
    feed.write(host, task_id, table="tasks", idempotency_key=key, step_count=1, after_ms=after_ms)


def finish(feed: Feed, slot: str, status: str = "SUCCESS") -> None:
    feed.write("n0", f"step {slot}", task_id=f"t {slot}", status=status)


def judged(feed: Feed) -> set[str]:
    """Healed two and a half minutes after midnight."""
    return feed.broken(feed.rest(healed_ms=150_000.0)) & {BECOME, ONE}


def test_each_slot_with_a_task_and_its_result_keeps_the_promise():
    feed = stored()
    for slot in SLOTS:
        submit(feed, slot)
        finish(feed, slot)
    assert judged(feed) == set()


def test_a_slot_without_a_task_breaks_it():
    feed = stored()
    submit(feed, SLOTS[0])
    finish(feed, SLOTS[0])
    assert judged(feed) == {BECOME}


def test_a_slot_whose_task_has_no_result_breaks_it():
    feed = stored()
    for slot, status in zip(SLOTS, ("SUCCESS", "DEAD_LETTER"), strict=True):
        submit(feed, slot)
        finish(feed, slot, status)
    assert judged(feed) == {BECOME}


@pytest.mark.parametrize("word", ["", " of my own"])
def test_a_slot_with_two_tasks_breaks_it(word):
    feed = stored()
    for slot in SLOTS:
        submit(feed, slot)
        finish(feed, slot)
    submit(feed, SLOTS[0], task_id="another", word=word)
    assert judged(feed) == {BECOME}


def test_a_slot_before_the_schedule_was_stored_breaks_it():
    feed = stored()
    for slot in ("2025-12-31T23:59:00Z", *SLOTS):
        submit(feed, slot)
        finish(feed, slot)
    assert judged(feed) == {BECOME}


@pytest.mark.parametrize(("after_ms", "broken"), [(10.0, True), (2_300.0, False)])
def test_two_that_see_each_other_do_not_submit_at_once(after_ms, broken):
    feed = stored()
    submit(feed, SLOTS[0])
    submit(feed, SLOTS[0], host="n1", after_ms=after_ms)
    assert (ONE in feed.broken()) is broken


def test_two_sides_of_a_cut_may_submit_at_once():
    feed = stored()
    feed.sees("n1", "n0", "DEAD")
    submit(feed, SLOTS[0])
    submit(feed, SLOTS[0], host="n1")
    assert ONE not in feed.broken()

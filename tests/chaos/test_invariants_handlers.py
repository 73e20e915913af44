"""Promises to handlers, each broken by hand and kept by hand."""

from __future__ import annotations

import pytest

from chaos.observations import CheckpointAsked, CheckpointKept, HostEnded, RunEnded, RunStarted
from node.env import Job
from tests.chaos.feeds import Feed, fence


def job_of(step, saved=b"", attempt=1):
    return Job(
        task_id="t",
        step_id=step.key,
        step_name=step.key,
        namespace="default",
        agent="work",
        attempt=attempt,
        fence=fence(step),
        traceparent="",
        timeout_s=60.0,
        payload=b"{}",
        parents={},
        saved=saved,
    )


def starts(feed, host, step, saved=b""):
    feed.tell(RunStarted, host, job=job_of(step, saved))


def saves(feed, host, step, content, *, is_written=True, returns=True):
    feed.tell(CheckpointAsked, host, job=job_of(step), content=content)
    if is_written:
        step = feed.write(host, checkpoint=content)
    if returns:
        feed.tell(CheckpointKept, host, job=job_of(step), content=content)
    return step


def story(**how):
    """A run on n0 that saved b'1'; returns the feed and the row."""
    feed = Feed(nodes=2)
    feed.write("n0")
    claimed = feed.claim("n0")
    starts(feed, "n0", claimed)
    return feed, saves(feed, "n0", claimed, b"1", **how)


@pytest.mark.parametrize(
    ("saved", "broken"), [(b"1", set()), (b"", {"checkpoints-kept"}), (b"0", {"checkpoints-kept"})]
)
def test_the_next_run_on_the_same_host_begins_with_what_returned(saved, broken):
    feed, _ = story()
    feed.write("n0", status="RETRYING")
    starts(feed, "n0", feed.claim("n0"), saved)
    assert feed.broken() == broken


@pytest.mark.parametrize(("saved", "broken"), [(b"1", set()), (b"", set()), (b"2", {"checkpoints-kept"})])
def test_one_that_was_asked_for_and_did_not_return_may_be_there_or_not(saved, broken):
    feed, _ = story(returns=False)
    feed.write("n0", status="RETRYING")
    starts(feed, "n0", feed.claim("n0"), saved)
    assert feed.broken() == broken


def test_what_returned_is_in_the_row():
    feed, _ = story(is_written=False)
    assert feed.broken() == {"checkpoints-kept"}


@pytest.mark.parametrize(("saved", "broken"), [(b"1", set()), (b"", {"checkpoints-kept"})])
def test_a_taker_begins_with_what_the_row_brought(saved, broken):
    feed, row = story()
    feed.copy(row, "n1")
    feed.sees("n1", "n0", "DEAD")
    feed.write("n1", opens=True, owner="n1", status="PENDING")
    starts(feed, "n1", feed.claim("n1"), saved)
    assert feed.broken() - {"takeover-justified"} == broken


def test_a_version_of_a_peer_replaces_what_was_saved_here():
    feed, row = story()
    feed.rows["n1"] = {}
    feed.copy(row, "n1")
    feed.sees("n1", "n0", "DEAD")
    taken = feed.write("n1", opens=True, owner="n1", status="PENDING", checkpoint=b"2")
    feed.copy(feed.write("n1", opens=True, owner="n0"), "n0")
    assert taken.values["checkpoint"] == b"2"
    starts(feed, "n0", feed.claim("n0"), b"2")
    assert "checkpoints-kept" not in feed.broken()


def test_a_replay_begins_without():
    for saved, is_broken in ((b"", False), (b"1", True)):
        feed, _ = story()
        feed.write("n0", status="CANCELLED")
        feed.write("n0", opens=True, status="PENDING", generation=1, checkpoint=None)
        starts(feed, "n0", feed.claim("n0"), saved)
        assert ("checkpoints-kept" in feed.broken()) == is_broken


def test_a_lost_disk_takes_checkpoints_along():
    feed, _ = story()
    feed.tell(HostEnded, "n0", how="power-cut", durable_lost=True)
    feed.rows["n0"].clear()
    feed.write("n0")
    starts(feed, "n0", feed.claim("n0"))
    assert "checkpoints-kept" not in feed.broken()


@pytest.mark.parametrize(("attempt", "broken"), [(2, set()), (3, {"snoozes-uncounted"}), (1, {"snoozes-uncounted"})])
def test_a_snooze_gives_its_attempt_back(attempt, broken):
    feed = Feed(nodes=1)
    feed.write("n0", attempt=2)
    claimed = feed.claim("n0", attempt=3)
    feed.tell(RunStarted, "n0", job=job_of(claimed, attempt=3))
    feed.tell(RunEnded, "n0", job=job_of(claimed, attempt=3), outcome="snoozed")
    feed.write("n0", status="RETRYING", attempt=attempt)
    assert feed.broken() == broken


def test_a_failure_after_a_snooze_that_was_never_written_counts():
    feed = Feed(nodes=1)
    feed.write("n0")
    claimed = feed.claim("n0", attempt=1)
    feed.tell(RunEnded, "n0", job=job_of(claimed), outcome="snoozed")
    again = feed.claim("n0", attempt=1)
    starts(feed, "n0", again)
    feed.tell(RunEnded, "n0", job=job_of(again), outcome="failed")
    feed.write("n0", status="RETRYING", attempt=1)
    assert feed.broken() == set()

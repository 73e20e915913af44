"""The promises about steps that wait on a partition, each broken by hand and kept by hand."""

from __future__ import annotations

from typing import cast

import pytest

from chaos.invariants.waiting_steps import STOPS_MS
from chaos.observations import FaultEnded, HostEnded, RunEnded, RunStarted
from chaos.scenario import Fault
from mesh.rows import Row
from node.env import Job
from tests.chaos.feeds import Feed

ROSTER = '["n0","n1","n2"]'
ONE_PLACE, ONE_TAKER = "waiting-steps-run-once-at-a-time", "waiting-steps-have-one-taker"


def begin(feed: Feed, host: str, step: Row) -> Job:
    feed.run(host, step)
    return cast(RunStarted, feed.seen[-1]).job


def end(feed: Feed, host: str, job: Job, *, after_ms: float) -> None:
    feed.tell(RunEnded, host, job=job, outcome="success", after_ms=after_ms)


def two_runs(feed: Feed, *, rosters: tuple[str, str] = (ROSTER, ROSTER)) -> tuple[Job, Job]:
    """n0 and n1, which do not hear each other, begin to run one step."""
    jobs = []
    for host, roster in zip(("n0", "n1"), rosters, strict=True):
        feed.write(host, roster=roster)
        jobs.append(begin(feed, host, feed.claim(host)))
    return jobs[0], jobs[1]


@pytest.mark.parametrize(("together_ms", "broken"), [(2 * STOPS_MS, True), (STOPS_MS / 2, False)])
def test_two_hosts_do_not_run_a_waiting_step_together_for_long(together_ms, broken):
    feed = Feed()
    first, second = two_runs(feed)
    end(feed, "n0", first, after_ms=together_ms)
    end(feed, "n1", second, after_ms=500.0)
    assert (ONE_PLACE in feed.broken()) is broken


@pytest.mark.parametrize("rosters", [("", ""), (ROSTER, '["n1","n2","n3"]')])
def test_nothing_is_promised_of_other_steps_and_of_two_rosters(rosters):
    feed = Feed()
    first, second = two_runs(feed, rosters=rosters)
    end(feed, "n0", first, after_ms=500.0)
    end(feed, "n1", second, after_ms=500.0)
    assert ONE_PLACE not in feed.broken()


@pytest.mark.parametrize(("awake_ms", "broken"), [(2 * STOPS_MS, True), (STOPS_MS / 2, False)])
def test_a_run_of_a_host_that_stands_still_is_judged_from_when_it_goes_on(awake_ms, broken):
    feed = Feed()
    feed.write("n0", roster=ROSTER)
    first = begin(feed, "n0", feed.claim("n0"))
    feed.fault("pause", "n0")
    feed.write("n1", roster=ROSTER, after_ms=3_000.0)
    begin(feed, "n1", feed.claim("n1"))
    feed.tell(FaultEnded, fault=Fault(kind="pause", at_s=0.0, nodes=("n0",)), after_ms=3_000.0)
    end(feed, "n0", first, after_ms=awake_ms)
    assert (ONE_PLACE in feed.broken()) is broken


def test_a_run_that_ended_while_its_host_stood_still_is_not_judged():
    feed = Feed()
    feed.write("n0", roster=ROSTER)
    first = begin(feed, "n0", feed.claim("n0"))
    feed.fault("pause", "n0")
    feed.write("n1", roster=ROSTER, after_ms=3_000.0)
    begin(feed, "n1", feed.claim("n1"))
    end(feed, "n0", first, after_ms=500.0)
    assert ONE_PLACE not in feed.broken()


def _taken_twice(feed: Feed, *, epochs: tuple[int, int]) -> None:
    made = feed.write("n0", roster=ROSTER, opens=True)
    feed.copy(made, "n1", "n2")
    for host, epoch in zip(("n1", "n2"), epochs, strict=True):
        feed.sees(host, "n0", "DEAD")
        feed.write(host, opens=True, owner=host, lease_epoch=epoch)


@pytest.mark.parametrize(("epochs", "broken"), [((2, 2), True), ((2, 3), False)])
def test_two_takers_do_not_own_a_waiting_step_at_one_epoch(epochs, broken):
    feed = Feed()
    _taken_twice(feed, epochs=epochs)
    assert (ONE_TAKER in feed.broken()) is broken


def test_a_vote_that_went_with_a_disk_is_no_ones_fault():
    feed = Feed()
    feed.tell(HostEnded, "n3", how="power-cut", durable_lost=True)
    _taken_twice(feed, epochs=(2, 2))
    assert ONE_TAKER not in feed.broken()

"""The flow of steps is counted once each, whatever of their life was heard. Method: versions as they become current."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import msgspec

from node.work.flow import RESEED_S, WATCH_S, Flow, Totals
from node.work.tables import Status
from tests.node.test_work_explain import a_step


def at_epoch(epoch: int, status: Status, **values):
    return msgspec.structs.replace(a_step(status, **values), lease_epoch=epoch)


def counted(*versions) -> tuple[int, ...]:
    totals = Totals()
    for before, after in zip((None, *versions), versions, strict=False):
        totals.note(before, after)
    return dataclasses.astuple(totals)


QUEUED = at_epoch(0, Status.PENDING)
RUNS = at_epoch(1, Status.RUNNING, attempt=1)
RETRIES = at_epoch(1, Status.RETRYING, attempt=1)
RUNS_AGAIN = at_epoch(2, Status.RUNNING, attempt=2)
DONE = at_epoch(2, Status.SUCCESS, attempt=2)
DEAD = at_epoch(2, Status.DEAD_LETTER, attempt=2)


def test_a_whole_life_counts_each_of_its_runs():
    assert counted(QUEUED, RUNS, RETRIES, RUNS_AGAIN, DONE) == (1, 2, 1, 1)
    assert counted(QUEUED, RUNS, RETRIES, RUNS_AGAIN, DEAD) == (1, 2, 0, 2)


def test_what_came_of_a_run_whose_claim_was_not_heard_counts_as_one():
    assert counted(at_epoch(1, Status.SUCCESS, attempt=1)) == (1, 1, 1, 0)
    assert counted(QUEUED, RETRIES, DEAD) == (1, 2, 0, 2)


def test_moves_and_deletions_are_no_flow():
    assert counted(QUEUED, at_epoch(1, Status.PENDING, owner="b")) == (1, 0, 0, 0)
    assert counted(RETRIES, at_epoch(2, Status.RETRYING, attempt=1, owner="b"))[3] == 1
    assert counted(DONE, msgspec.structs.replace(DONE, deleted=True)) == (1, 1, 1, 0)


def commit(*changes):
    return SimpleNamespace(changes=[SimpleNamespace(before=before, after=after) for before, after in changes])


def test_nothing_is_counted_until_somebody_looks_nor_long_after():
    flow = Flow()
    flow.on_commit(commit((None, RUNS)), 0.0)
    assert (flow.totals, flow.running) == (Totals(), {})

    assert flow.watch(1.0)
    flow.seed([], 1.0)
    flow.on_commit(commit((None, RUNS)), 2.0)
    assert (flow.totals.started, list(flow.running)) == (1, [("default", "stp_s")])
    flow.on_commit(commit((RUNS, DONE)), 1.1 + WATCH_S)
    assert (flow.since, flow.running) == (None, {})


def test_what_a_commit_told_is_newer_than_what_a_read_saw():
    flow, other = Flow(), at_epoch(1, Status.RUNNING, attempt=1, name="other")
    assert flow.watch(0.0)
    flow.on_commit(commit((RUNS, RETRIES)), 0.1)
    flow.seed([RUNS, other], 0.2)
    assert [key for _, key in flow.running] == ["stp_other"]
    assert not flow.watch(1.0)
    for second in range(2, int(RESEED_S) + 1):
        assert not flow.watch(float(second))
    assert flow.watch(RESEED_S + 0.5)

"""What a handler may ask for its step: a checkpoint for the next attempt, to wait again, to end without a result."""

from __future__ import annotations

import pytest

from mesh.errors import ConflictError
from node.env import Outcome
from node.work import handler_choices, transitions
from node.work.explain import Situation, summarise, tell
from node.work.handler_choices import EVENTS_KEPT
from node.work.runs import runs_of
from node.work.tables import Status
from tests.node.work_desk import FAILED, desks

SNOOZE = Outcome(kind="snoozed", error="the printer is busy", snooze_ms=5_000)
LARGE = b'"' + b"x" * 2_000 + b'"'


@pytest.fixture
async def a(tmp_path):
    async with desks(tmp_path, "a") as (desk,):
        yield desk


@pytest.fixture
async def pair(tmp_path):
    async with desks(tmp_path, "a", "b") as both:
        yield both


async def save(desk, claimed, content):
    await desk.write(lambda tx: transitions.checkpoint(tx, claimed.step, content, me=desk.me))


async def saved_of(desk, task_id):
    """What the next attempt begins with."""
    return (await desk.claim(await desk.step(task_id))).job.saved


@pytest.mark.parametrize("content", [b"17", LARGE])
async def test_the_next_attempt_begins_with_the_last_checkpoint(a, content):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    assert claimed.job.saved == b""
    await save(a, claimed, b'"earlier"')
    await save(a, claimed, content)
    await a.finish(claimed, FAILED)
    assert await saved_of(a, task_id) == content


@pytest.mark.parametrize("content", [b"17", LARGE])
async def test_a_taker_begins_with_the_checkpoint_that_came_to_it(pair, content):
    a, b = pair
    task_id = await a.one()
    await save(a, await a.claim(await a.step(task_id)), content)
    await b.pull(a)
    await b.take_over(await b.step(task_id))
    assert await saved_of(b, task_id) == content


async def test_so_does_the_next_process_after_a_crash(a):
    task_id = await a.one()
    await save(a, await a.claim(await a.step(task_id)), b"17")
    await a.recover(await a.step(task_id))
    assert await saved_of(a, task_id) == b"17"


async def test_a_replay_begins_without_and_a_success_keeps_none(a):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    await save(a, claimed, LARGE)
    await a.finish(claimed, Outcome(kind="rejected", error="no"))
    await a.replay(task_id)
    claimed = await a.claim(await a.step(task_id))
    assert claimed.job.saved == b""
    await save(a, claimed, LARGE)
    await a.finish(claimed)
    row = await a.step(task_id)
    assert (row.blob("checkpoint"), row.text("checkpoint_ref")) == (None, "")


async def test_a_checkpoint_under_a_lease_that_has_moved_is_refused_and_changes_nothing(pair):
    a, b = pair
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    await b.pull(a)
    await b.take_over(await b.step(task_id))
    await a.pull(b)
    before = await a.step(task_id)
    with pytest.raises(ConflictError, match="lease has moved"):
        await save(a, claimed, b"17")
    assert await a.step(task_id) == before


async def test_the_same_checkpoint_again_is_no_write(a):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    for content in (b"17", LARGE):
        await save(a, claimed, content)
        before = await a.step(task_id)
        await save(a, claimed, content)
        assert await a.step(task_id) == before


async def test_a_snooze_waits_as_long_as_it_says_and_counts_no_attempt(a):
    task_id = await a.one()
    for _ in range(10):  # more often than there are attempts
        await a.run(await a.step(task_id), SNOOZE)
        row = await a.step(task_id)
        assert (row.text("status"), row.integer("attempt"), row.integer("retry_delay_ms")) == ("RETRYING", 0, 5_000)
    assert row.text("last_error") == "snoozed: the printer is busy"
    entry = (await a.queued())[row.key]
    assert entry.due_ms == (row.hlc >> 16) + 5_000
    finished = await a.run(row)
    assert (finished.step.integer("attempt"), finished.step.text("status")) == (1, "SUCCESS")
    assert await a.actions(task_id) == ["snoozed"] * 10


async def test_the_end_of_a_run_that_was_committed_unseen_is_told_once_also_for_a_snooze(a):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    first = await a.finish(claimed, SNOOZE)
    again = await a.finish(claimed, SNOOZE)
    assert (again.accepted, again.step) == (True, first.step)
    assert await a.actions(task_id) == ["snoozed"]


async def test_a_snooze_under_a_lease_that_has_moved_is_refused(pair):
    a, b = pair
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    await b.pull(a)
    taken = await b.take_over(await b.step(task_id))
    await a.pull(b)
    assert not (await a.finish(claimed, SNOOZE)).accepted
    assert await a.step(task_id) == taken


async def test_a_step_that_snoozes_for_ever_keeps_a_bounded_history(a):
    task_id = await a.one()
    for _ in range(EVENTS_KEPT + 5):
        await a.run(await a.step(task_id), Outcome(kind="snoozed", log="a line", snooze_ms=100))
    kept = await a.store.read(lambda reader: reader.select("history", "task_id = ? AND deleted = 0", (task_id,)))
    assert len(kept) <= EVENTS_KEPT + 1
    assert {row.text("action") for row in kept} == {"snoozed", "logged"}


@pytest.mark.parametrize(("asked_ms", "kept_ms"), [(0, 100), (10**15, handler_choices.SNOOZE_MS_MAX)])
async def test_a_wait_beyond_the_limits_is_put_within(a, asked_ms, kept_ms):
    task_id = await a.one()
    await a.run(await a.step(task_id), Outcome(kind="snoozed", snooze_ms=asked_ms))
    assert (await a.step(task_id)).integer("retry_delay_ms") == kept_ms


async def test_a_handler_can_cancel_its_step(a):
    task_id = await a.one()
    await a.run(await a.step(task_id), Outcome(kind="cancelled", error="nothing to do"))
    row = await a.step(task_id)
    assert (row.text("status"), row.text("last_error")) == ("CANCELLED", "cancelled by its handler: nothing to do")
    assert await a.status(task_id) is Status.CANCELLED
    assert await a.actions(task_id) == ["cancelled"]


@pytest.mark.parametrize("kind", ["snoozed", "cancelled"])
async def test_a_cancel_of_the_task_goes_before_what_the_handler_chose(a, kind):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    await a.cancel(task_id, "soft", "by hand")
    await a.finish(claimed, Outcome(kind=kind, error="mine", snooze_ms=1_000))
    row = await a.step(task_id)
    assert (row.text("status"), row.text("last_error")) == ("CANCELLED", "cancelled: by hand")


async def test_a_snooze_is_explained_as_one(a):
    task_id = await a.one()
    await a.run(await a.step(task_id), SNOOZE)
    row = await a.step(task_id)
    events = await a.store.read(lambda reader: reader.select("history", "task_id = ?", (task_id,)))
    (run,) = runs_of(row, events)
    assert (run["outcome"], run["accepted"]) == ("snoozed", False)
    assert run["text"] == "asked to be run again, which counts as no attempt: the printer is busy"
    assert tell(events[0]) == "its handler on a asked to be run again 5.0 s later: the printer is busy"
    situation = Situation(me="a", member_status={"a": "ALIVE"}, offers={}, usable=["a"])
    assert "asked to be run again 5.0 s after its last run" in summarise(row, {"only": row}, events, situation)

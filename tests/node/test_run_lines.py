"""What a running attempt says to its node and hears from it, with a runtime and handlers that are coroutines."""

from __future__ import annotations

import math

import pytest
import trio

from mesh.errors import LimitError
from node.agents.api import CHECKPOINT_BYTES_MAX
from node.env import Outcome
from node.work import transitions
from node.work.run_lines import AttemptLine
from node.work.views import step_view
from tests.node.simulated_env import simulated_world
from tests.node.test_review_work import foreign, open_desk, running


@pytest.fixture
async def desk(tmp_path, autojump_clock):
    async with open_desk(tmp_path) as desk:
        yield desk


async def shown(desk, row):
    view = await desk.store.read(lambda reader: step_view(reader, reader.get("steps", "default", row.key), {}))
    desk.runtime.add_progress([view])
    return view["progress"]


async def test_progress_is_shown_while_the_step_runs_and_written_nowhere(desk):
    told, go_on = trio.Event(), trio.Event()

    async def work(job):
        job.line.note_progress(0.25, "a quarter")
        told.set()
        await go_on.wait()
        return Outcome(kind="success")

    desk.executor.handlers["echo"] = work
    row = await desk.one()
    async with running(desk):
        await told.wait()
        at_claim = await desk.row(row.key)
        progress = await shown(desk, row)
        assert (progress["fraction"], progress["text"]) == (0.25, "a quarter")
        assert progress["atMs"] > 0
        assert await desk.row(row.key) == at_claim
        go_on.set()
        await desk.until(row.key, "SUCCESS")
        assert await shown(desk, row) is None


@pytest.mark.parametrize(("said", "kept"), [(-1.0, 0.0), (7.0, 1.0), (math.nan, 0.0), (0.5, 0.5)])
def test_what_an_agent_says_is_put_within_bounds(said, kept):
    line = AttemptLine(save=None, now_ms=lambda: 5)
    line.note_progress(said, "x" * 1000)
    assert (line.progress.fraction, len(line.progress.text), line.progress.at_ms) == (kept, 200, 5)


@pytest.mark.parametrize("mode", ["soft", "hard"])
async def test_a_cancel_is_told_to_the_run_once_and_only_a_hard_one_ends_it(desk, mode):
    heard = []

    async def work(job):
        job.line.on_cancel = lambda: heard.append(job.line.cancel_asked)
        await trio.sleep(5)
        return Outcome(kind="success")

    desk.executor.handlers["echo"] = work
    row = await desk.one()
    async with running(desk):
        await desk.until(row.key, "RUNNING")
        await trio.sleep(1)
        task_id = row.text("task_id")
        await desk.store.write(
            lambda tx: transitions.request_cancel(tx, "default", task_id, mode="soft", reason="enough")
        )
        if mode == "hard":
            await desk.store.write(
                lambda tx: transitions.request_cancel(tx, "default", task_id, mode="hard", reason="enough")
            )
        ended = await desk.until(row.key, "SUCCESS", "CANCELLED")
    assert heard == [True]
    assert ended.text("status") == {"soft": "SUCCESS", "hard": "CANCELLED"}[mode]


async def test_a_checkpoint_is_in_the_row_when_it_returns_and_given_to_the_next_attempt(desk):
    seen = []

    async def work(job):
        seen.append(job.saved)
        if len(seen) == 1:
            await job.line.save_checkpoint(b"17")
            seen.append((await desk.row(job.step_id)).blob("checkpoint"))
            return Outcome(kind="failed", error="later")
        return Outcome(kind="success")

    desk.executor.handlers["echo"] = work
    row = await desk.one()
    async with running(desk):
        await desk.until(row.key, "SUCCESS")
    assert seen == [b"", b"17", b"17"]


async def test_a_checkpoint_waits_while_the_gate_is_shut(desk):
    saved = []

    async def work(job):
        desk.runtime.shut_gate()
        with trio.move_on_after(1.0):
            await job.line.save_checkpoint(b"17")
            saved.append(await desk.row(job.step_id))
        return Outcome(kind="success")

    desk.executor.handlers["echo"] = work
    row = await desk.one()
    async with running(desk):
        await desk.until(row.key, "SUCCESS")
    assert saved == []


async def test_a_run_whose_lease_moved_is_told_so_by_its_checkpoint(desk):
    refused = []

    async def work(job):
        # The row comes as from a peer, in the same instant: the run has not been stopped yet.
        await desk.merge(foreign(await desk.row(job.step_id), lease_epoch=9, values={"owner": "node-b"}))
        try:
            await job.line.save_checkpoint(b"17")
        except Exception as error:
            refused.append(type(error).__name__)
            raise
        return Outcome(kind="success")

    async def shielded(job):
        with trio.CancelScope(shield=True):
            return await work(job)

    desk.executor.handlers["echo"] = shielded
    row = await desk.one()
    async with running(desk):
        await trio.sleep(5)
    assert refused == ["ConflictError"]
    assert (await desk.row(row.key)).text("owner") == "node-b"


async def test_a_checkpoint_above_the_limit_is_refused_before_anything_is_asked():
    line = AttemptLine(save=None, now_ms=lambda: 5)
    with pytest.raises(LimitError, match="above the limit"):
        await line.save_checkpoint(bytes(CHECKPOINT_BYTES_MAX + 1))


async def test_only_the_node_that_runs_a_step_shows_its_progress(tmp_path, autojump_clock):
    async def work(job):
        job.line.note_progress(0.25, "a quarter")
        asked = trio.Event()
        job.line.on_cancel = asked.set
        await asked.wait()
        return Outcome(kind="cancelled", error="asked to stop")

    async with simulated_world(tmp_path) as world:
        a, b = world.host("a", agents={"work": work}), world.host("b")
        await world.up()
        task_id = await a.submit("work", node="a")
        await world.until(lambda: a.jobs)
        for command in ("task", "workflow"):
            (step,) = (await a.admin(command, taskId=task_id))["steps"]
            assert step["progress"]["text"] == "a quarter"
        await trio.sleep(2)
        (step,) = (await b.admin("task", taskId=task_id))["steps"]
        assert (step["status"], step["progress"]) == ("RUNNING", None)
        # The cancel is asked for at the other node, and soft: the handler hears of it and ends by itself.
        await b.admin("cancel", taskId=task_id, mode="soft", reason="enough")
        ended = await a.wait(task_id)
    assert (ended["status"], ended["lastError"]) == ("CANCELLED", "cancelled: enough")

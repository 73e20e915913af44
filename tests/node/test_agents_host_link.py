"""The handler's line to its node: a host's end against a socket that the test reads, and whole hosts with real jobs."""

from __future__ import annotations

import json
import os
import socket
import threading
import time

import pytest
import trio

from mesh.errors import ConflictError, StoreError
from node.agents.api import CHECKPOINT_BYTES_MAX, CheckpointError, Context, LeaseMovedError
from node.agents.executor import ProcessExecutor
from node.agents.host_link import PROGRESS_BURST, HostLink
from node.agents.wire import (
    HEADER_BYTES,
    CancelAsked,
    Save,
    Saved,
    body_length,
    decode_from_host,
    encode_frame,
)
from node.work.run_lines import AttemptLine
from tests.node.test_agents_executor import descendants_of, eventually, job

AGENTS = '''
import time
from relaymesh import Cancel, Fail, LeaseMovedError, Snooze, agent

def steps(ctx):
    """Save twice, and tell what the attempt began with."""
    ctx.checkpoint({"page": 1})
    ctx.checkpoint({"page": 2})
    ctx.progress(0.5, "half")
    return [ctx.saved, ctx.cancelled]

@agent("sync")
def sync(ctx):
    return steps(ctx)

@agent("in-trio")
async def in_trio(ctx):
    import trio
    late = []
    async def beat():
        while True:
            before = trio.current_time()
            await trio.sleep(0.01)
            late.append(trio.current_time() - before)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        await ctx.checkpoint_async({"page": 2})
        nursery.cancel_scope.cancel()
    ctx.progress(0.5, "half")
    return [ctx.saved, ctx.cancelled, len(late) > 5]

@agent("in-asyncio", loop="asyncio")
async def in_asyncio(ctx):
    import asyncio
    late = []
    async def beat():
        while True:
            await asyncio.sleep(0.01)
            late.append(1)
    task = asyncio.create_task(beat())
    await ctx.checkpoint_async({"page": 2})
    task.cancel()
    ctx.progress(0.5, "half")
    return [ctx.saved, ctx.cancelled, len(late) > 5]

@agent("blocks-its-loop")
async def blocks(ctx):
    ctx.checkpoint(1)

@agent("until-cancelled")
def until_cancelled(ctx):
    ctx.progress(0.0, "waiting")
    while not ctx.cancelled:
        time.sleep(0.01)
    return "stopped by itself"

@agent("trio-until-cancelled")
async def trio_until_cancelled(ctx):
    import trio
    ctx.progress(0.0, "waiting")
    while not ctx.cancelled:
        await trio.sleep(0.01)
    return "stopped by itself"

@agent("snoozes")
def snoozes(ctx):
    return Snooze(2.5, "the printer is busy")

@agent("asks")
def asks(payload):
    return payload

@agent("moved")
def moved(ctx):
    try:
        ctx.checkpoint(1)
    except LeaseMovedError:
        return "told"

@agent("leaks")
def leaks(ctx):
    import threading
    def later():
        time.sleep(0.05)
        for _ in range(200):
            ctx.progress(0.9, "from a job that has ended")
            time.sleep(0.001)
    threading.Thread(target=later, daemon=True).start()
    return "done"
'''


class Node:
    """`node.env.RunLine` of a test."""

    def __init__(self, refusal=None, wait_s=0.0):
        self.saved = []
        self.refusal = refusal
        self.wait_s = wait_s

    async def save(self, content):
        await trio.sleep(self.wait_s)
        if self.refusal is not None:
            raise self.refusal
        self.saved.append(json.loads(content))

    def line(self):
        return AttemptLine(save=self.save, now_ms=lambda: 0)


@pytest.fixture
async def executor(tmp_path):
    file = tmp_path / "linked.py"
    file.write_text(AGENTS)
    executor = ProcessExecutor(tmp_path, [file], slots=2, kill_grace_s=0.3)
    async with executor.running():
        yield executor
    assert descendants_of(os.getpid()) == []


def job_with(agent, line, saved=b"", payload=b"", timeout_s=20.0):
    from dataclasses import replace

    return replace(job(agent, payload, timeout_s=timeout_s), line=line, saved=saved)


async def test_a_sync_handler_saves_tells_and_asks(executor):
    node = Node()
    line = node.line()
    outcome = await executor.run(job_with("sync", line, b'{"page": 9}'))
    assert json.loads(outcome.result) == [{"page": 9}, False]
    assert node.saved == [{"page": 1}, {"page": 2}]
    assert (line.progress.fraction, line.progress.text) == (0.5, "half")


@pytest.mark.parametrize("agent", ["in-trio", "in-asyncio"])
async def test_an_async_handler_does_so_and_its_loop_goes_on_meanwhile(executor, agent):
    node = Node(wait_s=0.3)
    line = node.line()
    outcome = await executor.run(job_with(agent, line))
    assert json.loads(outcome.result) == [None, False, True]
    assert node.saved == [{"page": 2}]
    assert line.progress.text == "half"


async def test_a_call_that_would_block_a_loop_says_what_to_write_instead(executor):
    outcome = await executor.run(job_with("blocks-its-loop", Node().line()))
    assert outcome.kind == "failed"
    assert "await ctx.checkpoint_async(value)" in outcome.error


@pytest.mark.parametrize("agent", ["until-cancelled", "trio-until-cancelled"])
async def test_a_cancel_reaches_a_running_handler(executor, agent):
    line = Node().line()
    async with trio.open_nursery() as nursery:

        async def cancel():
            await eventually(lambda: line.progress is not None)
            line.ask_to_cancel()

        nursery.start_soon(cancel)
        outcome = await executor.run(job_with(agent, line))
    assert outcome.result == b"stopped by itself"


async def test_a_cancel_that_came_before_the_start_is_told_and_none_is_left_for_the_next_job(executor):
    line = Node().line()
    line.ask_to_cancel()
    assert (await executor.run(job_with("until-cancelled", line))).result == b"stopped by itself"
    # A handler that never looks leaves the word on the socket, in front of the next job.
    assert (await executor.run(job_with("asks", line, payload=b"x"))).result == b"x"
    again = await executor.run(job_with("sync", Node().line()))
    assert json.loads(again.result) == [None, False]


async def test_a_moved_lease_is_an_exception_of_its_own(executor):
    assert (await executor.run(job_with("moved", Node(ConflictError("moved")).line()))).result == b"told"
    outcome = await executor.run(job_with("moved", Node(StoreError("the disk is full")).line()))
    assert outcome.error == "CheckpointError: the disk is full"
    assert (await executor.run(job_with("moved", None))).error == "CheckpointError: nobody keeps checkpoints here"


async def test_a_snooze_comes_out_with_its_wait(executor):
    outcome = await executor.run(job("snoozes"))
    assert (outcome.kind, outcome.error, outcome.snooze_ms) == ("snoozed", "the printer is busy", 2_500)


async def test_what_outlives_its_job_says_nothing_into_the_next_one(executor):
    line = Node().line()
    assert (await executor.run(job_with("leaks", line))).result == b"done"
    for _ in range(20):
        other = Node().line()
        assert (await executor.run(job_with("asks", other, payload=b"x"))).result == b"x"
        assert other.progress is None
        await trio.sleep(0.01)
    assert line.progress is None


# --- the host's end alone ---


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield HostLink(ours), theirs


def frames(connection):
    """All messages that are on the socket now."""
    connection.setblocking(False)
    data = b""
    try:
        while chunk := connection.recv(1 << 16):
            data += chunk
    except BlockingIOError:
        pass
    found = []
    while data:
        end = HEADER_BYTES + body_length(data, 1 << 20)
        found.append(decode_from_host(data[HEADER_BYTES:end]))
        data = data[end:]
    return found


def test_progress_beyond_the_rate_is_held_back_and_the_last_word_goes_later(ends, monkeypatch):
    link, node = ends
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ctx = Context(link=link, turn=link.begin())
    for number in range(100):
        ctx.progress(number / 100, f"{number}")
    assert len(frames(node)) == PROGRESS_BURST
    now += 0.2
    assert not ctx.cancelled
    assert [report.text for report in frames(node)] == ["99"]


def test_progress_never_waits_for_a_node_that_does_not_read(ends, monkeypatch):
    link, node = ends
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ctx = Context(link=link, turn=link.begin())
    for _ in range(3000):
        now += 1
        ctx.progress(0.5, "x" * 200)
    assert all(report.text == "x" * 200 for report in frames(node))


def test_a_checkpoint_waits_for_its_answer_and_notes_a_cancel_on_the_way(ends):
    link, node = ends
    ctx = Context(link=link, turn=link.begin())
    node.sendall(encode_frame(CancelAsked()) + encode_frame(Saved()))
    ctx.checkpoint([1])
    assert ctx.cancelled
    assert frames(node) == [Save(b"[1]")]
    node.sendall(encode_frame(Saved("moved", "gone")))
    with pytest.raises(LeaseMovedError, match="gone"):
        ctx.checkpoint([2])


def test_a_checkpoint_that_cannot_be_one_asks_nobody(ends):
    link, node = ends
    ctx = Context(link=link, turn=link.begin())
    with pytest.raises(TypeError):
        ctx.checkpoint(object())
    with pytest.raises(ValueError, match="above the limit"):
        ctx.checkpoint("x" * CHECKPOINT_BYTES_MAX)
    assert frames(node) == []
    node.sendall(encode_frame(Saved()))
    ctx.checkpoint("x" * (CHECKPOINT_BYTES_MAX - 2))


def test_the_end_of_a_job_waits_for_a_checkpoint_of_another_thread(ends):
    link, node = ends
    ctx = Context(link=link, turn=link.begin())
    saving = threading.Thread(target=ctx.checkpoint, args=(1,))
    saving.start()
    assert node.recv(100)
    ending = threading.Thread(target=link.end)
    ending.start()
    ending.join(0.05)
    assert ending.is_alive()
    node.sendall(encode_frame(Saved()))
    ending.join(5)
    saving.join(5)
    assert not ending.is_alive()
    with pytest.raises(CheckpointError, match="attempt"):
        ctx.checkpoint(2)
    assert ctx.cancelled
    assert not link.is_broken


def test_a_call_that_was_interrupted_retires_the_host(ends):
    link, node = ends
    ctx = Context(link=link, turn=link.begin())
    node.close()
    with pytest.raises((CheckpointError, OSError)):
        ctx.checkpoint(1)
    assert link.is_broken


def test_without_a_node_nothing_happens():
    ctx = Context(payload=b"x")
    ctx.progress(2.0)
    ctx.checkpoint({"page": 1})
    assert (ctx.cancelled, ctx.saved) == (False, None)
    with pytest.raises(ValueError, match="not a number"):
        ctx.progress(float("nan"))

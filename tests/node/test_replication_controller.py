"""Goal: rows get over links without gossip, in both directions, whatever was lost. Method: nodes that never hear each
other, and the controller of the command line between them."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial

import pytest
import trio

from mesh.errors import UnavailableError
from tests.node.simulated_env import simulated_world
from tools.replication_controller import Controller, StateFile
from tools.replication_links import FolderWay, StreamWay


@pytest.fixture
async def islands(tmp_path, request):
    """Two nodes of one mesh that never hear each other; a parameter is their settings."""
    settings = getattr(request, "param", {})
    async with simulated_world(tmp_path) as world:
        a, b = world.host("a", **settings), world.host("b", agents={"only-b": echo_back}, **settings)
        world.network.cut("a", "b")
        await a.start()
        await b.start()
        yield a, b


async def echo_back(job):
    from node.env import Outcome

    return Outcome(kind="success", result=job.payload)


def asking(host):
    """What a controller's thread asks a host with."""

    def ask(command, **args):
        return trio.from_thread.run(partial(host.admin, command, **args))

    return ask


class _Client:
    """In place of an AdminClient over TLS."""

    def __init__(self, host):
        self.host = host

    def call(self, command, args):
        if self.host.is_down:
            raise UnavailableError("no node answers")
        return asking(self.host)(command, **args)

    def close(self):
        pass


def stream_to(host):
    return StreamWay(f"{host.name}.test:1", _Client(host))


def controller(tmp_path, host, *ways, name="state", **options):
    options.setdefault("limit", 500)
    options.setdefault("push", True)
    return Controller(asking(host), ways, StateFile(tmp_path / name), **options)


async def tick(controller):
    """One round, in which no simulated time passes: to the clock, a thread at work looks like nothing to do."""
    clock = trio.lowlevel.current_clock()
    clock.autojump_threshold = math.inf
    try:
        return await trio.to_thread.run_sync(controller.tick)
    finally:
        clock.autojump_threshold = 0


def covers(host, other):
    return not host.node.store.vector.missing_from(other.node.store.vector)


async def test_rows_go_both_ways_by_stream_and_back_only_when_new(islands, tmp_path, autojump_clock):
    a, b = islands
    first = await a.submit(input="x")
    await a.wait(first)
    second = await b.submit(input="y")
    await b.wait(second)
    carry = controller(tmp_path, a, stream_to(b))

    done = await tick(carry)

    assert (done.failures, done.complete, done.waiting) == (0, True, 0)
    assert await b.status(first) == "SUCCESS"
    assert await a.status(second) == "SUCCESS"
    assert covers(a, b)
    assert covers(b, a)
    again = await tick(carry)
    assert (again.pulled_rows, again.pushed_rows, again.complete) == (0, 0, True)


async def test_many_small_envelopes_and_a_new_process_in_between(islands, tmp_path, autojump_clock):
    a, b = islands
    for number in range(9):
        await a.wait(await a.submit(input=str(number)))

    done = await tick(controller(tmp_path, a, stream_to(b), limit=3))
    assert done.pushes > 3
    assert covers(b, a)
    idle = await tick(controller(tmp_path, a, stream_to(b), limit=3))
    assert (idle.pushed_rows, idle.pulled_rows) == (0, 0)


async def test_without_push_nothing_leaves_the_node(islands, tmp_path, autojump_clock):
    a, b = islands
    await a.wait(await a.submit(input="x"))
    done = await tick(controller(tmp_path, a, stream_to(b), push=False))
    assert (done.pushes, done.failures) == (0, 0)
    assert not covers(b, a)


async def test_a_link_to_a_node_that_lost_its_disk_begins_again_by_itself(islands, tmp_path, autojump_clock):
    a, b = islands
    for number in range(3):
        await a.wait(await a.submit(input=str(number)))
    await tick(controller(tmp_path, a, stream_to(b)))
    await b.crash()
    for file in b.root.iterdir():
        file.unlink()
    await b.start()
    await a.wait(await a.submit(input="new"))

    done = await tick(controller(tmp_path, a, stream_to(b)))

    assert done.failures == 0
    assert covers(b, a)
    assert [row.key for row in await b.rows("tasks")] == [row.key for row in await a.rows("tasks")]


async def test_a_peer_that_fails_keeps_nobody_else_waiting(islands, tmp_path, autojump_clock):
    a, b = islands
    await a.wait(await a.submit(input="x"))
    (tmp_path / "gone").mkdir()
    ways = [FolderWay("dir:gone", tmp_path / "absent"), stream_to(b)]

    done = await tick(controller(tmp_path, a, *ways))

    assert (done.failures, done.complete) == (1, False)
    assert done.errors[0]["peer"] == "dir:gone"
    assert covers(b, a)


@pytest.fixture
def folders(tmp_path):
    """The ends of a way between two sites, and the courier's two walks."""
    one, other = tmp_path / "at-a", tmp_path / "at-b"
    for folder in (one, other):
        (folder / "inbox").mkdir(parents=True)
        (folder / "outbox").mkdir()
    return one, other


def walk(source, target, *, lose=()):
    """Take away what is in an outbox; a number in `lose` counts files in order, from 0."""
    for number, file in enumerate(sorted((source / "outbox").iterdir())):
        if number not in lose:
            shutil.copyfile(file, target / "inbox" / file.name)
        file.unlink()


async def test_rows_go_by_folders_and_files_that_brought_all_are_gone(islands, folders, tmp_path, autojump_clock):
    (a, b), (at_a, at_b) = islands, folders
    task = await a.submit(input="x")
    await a.wait(task)
    here = controller(tmp_path, a, FolderWay("dir:a", at_a), limit=2)
    there = controller(tmp_path, b, FolderWay("dir:b", at_b), name="state-b")

    sent = await tick(here)
    assert sent.pushes > 1
    assert (await tick(here)).pushes == 0  # no news, no file
    walk(at_a, at_b)
    (at_b / "inbox" / "README").write_text("not ours")
    got = await tick(there)

    assert (got.failures, got.waiting, got.pulls) == (0, 0, sent.pushes)
    assert await b.status(task) == "SUCCESS"
    assert covers(b, a)
    assert [file.name for file in (at_b / "inbox").iterdir()] == ["README"]


async def test_a_lost_file_is_told_and_a_full_export_mends_it(islands, folders, tmp_path, autojump_clock):
    (a, b), (at_a, at_b) = islands, folders
    for number in range(4):
        await a.wait(await a.submit(input=str(number)))
    here = controller(tmp_path, a, FolderWay("dir:a", at_a), limit=3)
    there = controller(tmp_path, b, FolderWay("dir:b", at_b), name="state-b")
    assert (await tick(here)).pushes >= 3
    walk(at_a, at_b, lose=[1])

    short = await tick(there)
    assert short.waiting > 0
    assert not covers(b, a)
    again = await tick(there)  # only the first of those that wait is tried again
    assert (again.pulls, again.waiting) == (1, short.waiting)

    await tick(controller(tmp_path, a, FolderWay("dir:a", at_a), limit=3, from_nothing=True))
    walk(at_a, at_b)
    await tick(there)
    assert covers(b, a)
    assert (await tick(there)).waiting == 0
    assert list((at_b / "inbox").iterdir()) == []


async def test_a_file_that_is_not_whole_yet_stays_and_the_next_is_taken(islands, folders, tmp_path, autojump_clock):
    (a, b), (at_a, at_b) = islands, folders
    await a.wait(await a.submit(input="x"))
    await tick(controller(tmp_path, a, FolderWay("dir:a", at_a), limit=3))
    walk(at_a, at_b)
    (first, *rest) = sorted((at_b / "inbox").iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[:-20])
    (at_b / "inbox" / f"{'0' * 16}-{1:012d}.envelope").symlink_to("/etc/hostname")
    there = controller(tmp_path, b, FolderWay("dir:b", at_b), name="state-b")

    done = await tick(there)
    assert (done.failures, done.waiting) == (1, len(rest))
    assert first.name in done.errors[0]["error"]
    first.write_bytes(whole)
    await tick(there)
    assert covers(b, a)


async def test_a_crash_between_file_and_state_makes_the_same_name_again(
    islands, folders, tmp_path, autojump_clock, monkeypatch
):
    (a, b), (at_a, at_b) = islands, folders
    await a.wait(await a.submit(input="x"))
    here = controller(tmp_path, a, FolderWay("dir:a", at_a))
    await tick(here)
    walk(at_a, at_b)

    class Killed(BaseException):
        pass

    def killed(self):
        raise Killed

    await a.wait(await a.submit(input="y"))
    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "save", killed)
        with pytest.raises(Killed):
            await tick(here)
    (written,) = (at_a / "outbox").iterdir()
    await a.wait(await a.submit(input="z"))
    assert (await tick(controller(tmp_path, a, FolderWay("dir:a", at_a)))).pushes == 1
    assert list((at_a / "outbox").iterdir()) == [written]
    walk(at_a, at_b)
    await tick(controller(tmp_path, b, FolderWay("dir:b", at_b), name="state-b"))
    assert covers(b, a)


async def test_a_full_outbox_is_a_failure_and_loses_nothing(islands, folders, tmp_path, autojump_clock, monkeypatch):
    (a, b), (at_a, at_b) = islands, folders
    monkeypatch.setattr("tools.replication_links.OUTBOX_BYTES_MAX", (16 << 20) + 1)
    here = controller(tmp_path, a, FolderWay("dir:a", at_a), limit=2)
    await a.wait(await a.submit(input="x"))
    done = await tick(here)
    assert (done.pushes, done.failures) == (1, 1)
    assert "carry its files away" in done.errors[0]["error"]
    for _ in range(20):
        walk(at_a, at_b)
        if (await tick(here)).complete:
            break
    walk(at_a, at_b)
    await tick(controller(tmp_path, b, FolderWay("dir:b", at_b), name="state-b"))
    assert covers(b, a)


async def test_a_node_that_answers_nonsense_is_a_failure(islands, tmp_path, autojump_clock):
    a, _ = islands
    way = StreamWay("x:1", type("Odd", (), {"call": lambda *args: {"rows": "many"}, "close": lambda self: None})())
    done = await tick(controller(tmp_path, a, way))
    assert done.failures == 1
    assert "does not understand" in done.errors[0]["error"]


LINKED = pytest.mark.parametrize("islands", [{"linked_sites": True}], indirect=True)


@LINKED
async def test_work_longer_than_a_round_is_left_to_the_site_that_runs_it(islands, tmp_path, autojump_clock):
    a, b = islands
    carry = controller(tmp_path, a, stream_to(b))
    there = await b.submit("sleep", input="45")
    here = await a.submit("sleep", input="45")
    for _ in range(8):
        await tick(carry)
        await trio.sleep(10)
    await tick(carry)
    assert [await host.status(task) for host in (a, b) for task in (here, there)] == ["SUCCESS"] * 4
    assert (len(a.jobs), len(b.jobs)) == (1, 1)


@LINKED
async def test_an_operator_takes_the_work_of_a_site_that_is_gone(islands, tmp_path, autojump_clock):
    a, b = islands
    task = await a.submit("sleep", input="45")
    await trio.sleep(1)
    await tick(controller(tmp_path, a, stream_to(b)))
    await a.crash()
    await trio.sleep(60)
    assert (await b.step(task)).text("owner") == "a"
    assert "linkedSites" in json.dumps(await b.admin("explain", taskId=task))
    assert (await b.admin("mesh-recover"))["reclaimed"] == 1
    await b.wait(task, timeout_s=120)
    assert await b.status(task) == "SUCCESS"


@LINKED
async def test_what_was_deleted_is_remembered_for_other_sites(islands, tmp_path, autojump_clock):
    a, b = islands
    carry = controller(tmp_path, a, stream_to(b))
    await a.wait(await a.submit(input="x"))
    await tick(carry)
    await a.admin("purge", doneRetentionMs=0)
    await trio.sleep(300)
    await a.wait(await a.submit(input="y"))
    assert (await tick(carry)).failures == 0
    assert sum(row.deleted for row in await b.rows("tasks")) == 1


@pytest.mark.parametrize("islands", [{}, {"linked_sites": True}], indirect=True)
async def test_work_that_only_the_other_side_can_do_comes_back_done(islands, tmp_path, autojump_clock):
    a, b = islands
    carry = controller(tmp_path, a, stream_to(b))
    await tick(carry)  # brings what b can do
    task = await a.submit("only-b", input="x")

    async def done():
        await tick(carry)
        return await a.status(task) == "SUCCESS"

    await a.world.until(done, every_s=1.0)
    assert [job.agent for job in b.jobs] == ["only-b"]


async def test_a_deletion_that_was_forgotten_before_it_was_carried_is_told_with_the_remedy(
    islands, tmp_path, autojump_clock
):
    a, b = islands
    carry = controller(tmp_path, a, stream_to(b))
    await a.wait(await a.submit(input="x"))
    await tick(carry)
    await a.admin("purge", doneRetentionMs=0)
    await a.world.until(lambda: not a.node.store.has_tombstones, 300.0)
    kept = await a.submit(input="y")
    await a.wait(kept)

    done = await tick(carry)
    assert done.failures == 1
    assert "move its database away, and import a full export" in done.errors[0]["error"]

    await b.crash()
    for file in b.root.glob("relaymesh.db*"):
        file.unlink()
    await b.start()
    assert (await tick(controller(tmp_path, a, stream_to(b), from_nothing=True))).failures == 0
    assert [row.key for row in await b.rows("tasks")] == [kept]
    assert covers(b, a)

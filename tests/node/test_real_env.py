"""The real clocks, disk and store threads."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
import trio
import trio.testing

from node.real_env import DedicatedThread, LocalDisk, SystemClock, make_env


@pytest.fixture
def thread():
    made = DedicatedThread("test-store")
    yield made
    made.close()


async def test_calls_run_one_after_another_on_one_named_thread(thread):
    seen = []

    def call(number: int) -> int:
        seen.append((number, threading.current_thread().name))
        return number * 2

    results = {}

    async def one(number: int) -> None:
        results[number] = await thread.run(lambda: call(number))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
    assert results == {number: number * 2 for number in range(50)}
    assert {name for _, name in seen} == {"test-store"}
    assert len(seen) == 50


async def test_an_exception_reaches_the_caller_and_the_thread_lives_on(thread):
    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await thread.run(fail)
    assert await thread.run(lambda: "still here") == "still here"


async def test_a_cancelled_caller_still_learns_how_it_ended(thread):
    release = threading.Event()
    ended = []

    async def caller() -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            ended.append(await thread.run(lambda: release.wait(5)))

    scopes: list[trio.CancelScope] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller)
        await trio.testing.wait_all_tasks_blocked()
        scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        release.set()
    assert ended == [True]


async def test_closing_waits_for_what_runs_and_may_be_repeated(thread):
    ended = []

    def slow() -> None:
        time.sleep(0.05)
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.run, slow)
        await trio.testing.wait_all_tasks_blocked()
        thread.close()
        assert ended == [True]
        thread.close()
    assert "test-store" not in [other.name for other in threading.enumerate()]
    with pytest.raises(AssertionError, match="was closed"):
        await thread.run(lambda: None)


async def test_the_thread_keeps_nothing_of_the_last_call(thread):
    class Rows:
        pass

    rows = Rows()
    kept = weakref.ref(rows)

    def call(held=rows) -> None:
        pass

    await thread.run(call)
    del call, rows
    with trio.fail_after(5):  # the thread forgets just after it has answered
        while kept() is not None:
            gc.collect()
            await trio.sleep(0.01)


async def test_the_clocks_tell_time(autojump_clock):
    clock = SystemClock()
    assert abs(clock.wall() - time.time()) < 1
    assert abs(clock.monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1
    assert clock.monotonic() <= clock.monotonic()
    before = trio.current_time()
    await clock.sleep(3600)
    assert trio.current_time() - before == pytest.approx(3600)


def test_the_disk_knows_its_room_and_the_kernels_start(tmp_path):
    disk = LocalDisk(tmp_path)
    assert disk.root == tmp_path
    assert disk.vfs == ""
    assert disk.free_bytes() > 0
    assert len(disk.kernel_boot_id()) == 36
    assert disk.kernel_boot_id() == LocalDisk(tmp_path).kernel_boot_id()


def test_a_small_file_is_replaced_whole_for_its_owner_alone(tmp_path):
    disk = LocalDisk(tmp_path)
    assert disk.load("small") is None
    disk.save("small", b"one")
    disk.save("small", b"two")
    assert disk.load("small") == b"two"
    assert (tmp_path / "small").stat().st_mode & 0o777 == 0o600


async def test_an_environment_has_its_own_randomness_and_threads(tmp_path):
    from node.identity_files import found
    from node.streams.tls import make_contexts
    from node.streams.trio_net import TrioNet

    net = TrioNet(make_contexts(found(tmp_path, "node-a").tls_material))
    one, two = (make_env(tmp_path, net=net, executor=None) for _ in range(2))
    try:
        assert one.rng.random() != two.rng.random()
        assert len(one.entropy(8)) == 8
        assert await one.writer_thread.run(threading.get_ident) != await one.reader_thread.run(threading.get_ident)
    finally:
        for env in (one, two):
            env.writer_thread.close()
            env.reader_thread.close()


def test_a_file_is_renamed_over_another_one_and_removed(tmp_path):
    disk = LocalDisk(tmp_path)
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    disk.rename("new", "old")
    assert ((tmp_path / "old").read_bytes(), disk.exists("new"), disk.exists("old")) == (b"new", False, True)
    disk.remove("old")
    disk.remove("old")
    assert not disk.exists("old")
    with pytest.raises(OSError, match="No such file"):
        disk.rename("old", "new")

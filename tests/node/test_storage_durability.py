"""What survives. Two SQLite VFS layers watch or break the disk; a killed process leaves its acknowledgements behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import apsw
import pytest
import trio

from mesh.errors import StoreError
from node.storage.store import FAILED_AFTER_S


class WatchedFile(apsw.VFSFile):
    """Notes each sync of the log, and fails writes and syncs while the disk is broken."""

    def __init__(self, vfs, filename, flags):
        self._vfs = vfs
        name = filename.filename() if isinstance(filename, apsw.URIFilename) else str(filename)
        self._is_log = name.endswith("-wal")
        super().__init__(vfs.base, filename, flags)

    def xWrite(self, data, offset):
        if self._vfs.broken:
            raise apsw.IOError("broken on purpose")
        if self._is_log:
            self._vfs.events.append("write")
        super().xWrite(data, offset)

    def xSync(self, flags):
        if self._vfs.broken or (self._is_log and self._vfs.broken_syncs):
            raise apsw.IOError("broken on purpose")
        if self._is_log:
            self._vfs.events.append("sync")
        super().xSync(flags)


class WatchedDisk(apsw.VFS):
    def __init__(self, name):
        self.events = []
        self.broken = False
        self.broken_syncs = False
        self.name = name
        self.base = apsw.vfs_names()[0]
        super().__init__(name, self.base)

    def xOpen(self, name, flags):
        return WatchedFile(self, name, flags)


@pytest.fixture
def disk(request):
    disk = WatchedDisk(f"watched-{request.node.name}")
    yield disk
    disk.unregister()


def put(key):
    return lambda tx: tx.put("notes", "default", key, {"text": key})


async def test_the_log_is_synced_between_each_commit_and_its_first_word_to_anyone(make_world, disk):
    world = make_world(vfs=disk.name)
    async with world.opened() as store:
        store.on_commit(lambda commit: disk.events.append("callback"))

        async def client(number):
            for index in range(5):
                await store.write(put(f"{number}-{index}"))
                disk.events.append("acknowledged")

        disk.events.clear()
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(client, number)

        assert disk.events.count("acknowledged") == 20
        synced = False
        for event in disk.events:
            if event == "write":
                synced = False
            elif event == "sync":
                synced = True
            else:
                assert synced, disk.events


async def test_after_a_failed_commit_everybody_is_told_that_the_outcome_is_unknown(make_world, disk):
    world = make_world(vfs=disk.name)
    async with world.opened() as store:
        await store.write(put("before"))
        commits = []
        store.on_commit(commits.append)
        outcomes = []

        async def attempt(key):
            try:
                await store.write(put(key))
            except StoreError as error:
                outcomes.append(str(error))

        disk.broken_syncs = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt, "a")
            nursery.start_soon(attempt, "b")
        disk.broken_syncs = False

        assert len(outcomes) == 2
        assert all("unknown" in text for text in outcomes)
        assert not [change for commit in commits for change in commit.changes]
        # What the store remembers is what is on disk, whichever way the commit went.
        row = await store.write(put("after"))
        stored = await store.read(lambda reader: reader.select("notes", order="seq"))
        assert row.seq == stored[-1].seq == len(stored)
        assert store.vector == await store.read(lambda reader: reader.vector())
        assert store.vector.ranges(store.origin) == [(1, len(stored))]


async def test_an_origin_that_could_not_be_written_is_not_ours(make_world, disk):
    world = make_world(vfs=disk.name)
    async with world.opened() as store:
        await store.write(put("before"))
        old = store.origin
        disk.broken = True
        with pytest.raises(StoreError):
            await store.mint_origin("a peer knows more")
        assert store.origin == old
        disk.broken = False

        row = await store.write(put("after"))
        assert row.origin == store.origin != old


async def test_a_store_is_failed_after_five_seconds_and_recovers_by_itself(make_world, disk, autojump_clock):
    world = make_world(vfs=disk.name)
    async with world.opened() as store:
        await store.write(put("k"))
        heard = []
        store.on_failed(lambda failed: heard.append((failed, trio.current_time())))
        start = trio.current_time()

        disk.broken = True
        with pytest.raises(StoreError):
            await store.write(put("lost"))
        await trio.sleep(FAILED_AFTER_S - 1)
        assert not store.failed
        await trio.sleep(2.5)
        assert store.failed
        # It goes on reading.
        assert await store.read(lambda reader: reader.get("notes", "default", "k"))

        disk.broken = False
        await trio.sleep(2)
        assert not store.failed
        assert [failed for failed, _ in heard] == [True, False]
        assert heard[0][1] - start >= FAILED_AFTER_S
        await store.write(put("works"))


async def test_requests_that_change_nothing_do_not_make_a_failing_disk_look_well(make_world, disk, autojump_clock):
    world = make_world(vfs=disk.name)
    async with world.opened() as store:
        heard = []
        store.on_failed(heard.append)
        disk.broken = True
        with pytest.raises(StoreError):
            await store.write(put("lost"))
        for _ in range(40):
            with contextlib.suppress(StoreError):  # it shared a batch with the store's own probe
                await store.write(lambda tx: None)
            await trio.sleep(FAILED_AFTER_S / 20)

        assert heard == [True]
        disk.broken = False
        await trio.sleep(2)
        assert heard == [True, False]


async def test_a_short_failure_tells_nobody(make_world, disk, autojump_clock):
    world = make_world(vfs=disk.name)
    async with world.opened() as store:
        heard = []
        store.on_failed(heard.append)
        disk.broken = True
        with pytest.raises(StoreError):
            await store.write(put("lost"))
        await trio.sleep(FAILED_AFTER_S - 2)
        disk.broken = False
        await trio.sleep(20)

        assert heard == []
        assert not store.failed


async def test_a_failed_checkpoint_loses_nothing(make_world, disk, autojump_clock):
    world = make_world(vfs=disk.name)
    async with world.opened() as store:
        await store.write(put("k"))
        disk.broken = True
        await trio.sleep(10)
        assert store.counters()["checkpoint_failures"] >= 1
        assert not store.failed
        disk.broken = False
        await store.write(put("k2"))
        await trio.sleep(10)
        assert store.counters()["checkpoints"] >= 1
    async with world.opened() as store:
        assert len(await store.read(lambda reader: reader.select("notes"))) == 2


CHILD = """
    import sys, trio
    sys.path.insert(0, sys.argv[2])
    from pathlib import Path
    from conftest import StoreWorld, TestDisk

    async def main():
        root = Path(sys.argv[1])
        world = StoreWorld(root, TestDisk(root), threads=True)
        async with world.opened() as store:
            async def client(number):
                while True:
                    values = {"text": "x" * 200}
                    row = await store.write(lambda tx: tx.put("notes", "default", f"{number}-{tx.hlc}", values))
                    sys.stdout.write(f"{row.key} {row.seq} {row.origin.incarnation}\\n")
                    sys.stdout.flush()
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(client, number)

    trio.run(main)
"""


def run_and_kill(root: Path, lines_wanted: int) -> list[tuple[str, int, int]]:
    """Acknowledgements that a writing process printed before it was killed at an arbitrary point."""
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(root), here],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    lines = [process.stdout.readline() for _ in range(lines_wanted)]
    os.kill(process.pid, signal.SIGKILL)
    lines += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    # The last line may be cut off by the kill itself.
    found = [line.split() for line in lines if line.endswith("\n")]
    return [(key, int(seq), int(incarnation)) for key, seq, incarnation in found]


@pytest.mark.slow
async def test_every_acknowledged_write_survives_kill_9(world):
    acknowledged = []
    for lines_wanted in (40, 77, 130):
        acknowledged += await trio.to_thread.run_sync(run_and_kill, world.root, lines_wanted)

    async with world.opened() as store:
        rows = {row.key: row for row in await store.read(lambda reader: reader.select("notes"))}
        assert len(acknowledged) >= 247
        assert {incarnation for _, _, incarnation in acknowledged} == {store.origin.incarnation}
        for key, seq, _ in acknowledged:
            assert rows[key].seq == seq
        assert store.vector.ranges(store.origin) == [(1, len(rows))]
        assert sorted(row.seq for row in rows.values()) == list(range(1, len(rows) + 1))

"""Room in the write-ahead log: made ahead, invisible to SQLite, and never in the way."""

from __future__ import annotations

import shutil

import apsw
import pytest

from node.storage import log_room
from node.storage.log_room import MARGIN_BYTES, STEP_BYTES, LogRoom

FRAME_BYTES = 4096 + 24


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "x.db-wal"
    path.touch()
    return path


def test_room_is_made_once_and_again_when_little_is_left(tmp_path, log):
    room = LogRoom(tmp_path / "x.db", "", page_bytes=4096)

    room.ensure(0)
    made = log.stat().st_size
    assert made == 32 + STEP_BYTES
    enough = (STEP_BYTES - MARGIN_BYTES) // FRAME_BYTES
    room.ensure(enough)
    assert log.stat().st_size == made, "at the limit nothing is done"
    room.ensure(enough + 1)
    assert log.stat().st_size == 32 + (enough + 1) * FRAME_BYTES + STEP_BYTES


def test_what_the_log_holds_already_is_left_alone(tmp_path, log):
    log.write_bytes(b"frames" * STEP_BYTES)
    LogRoom(tmp_path / "x.db", "", page_bytes=4096).ensure(3)
    assert log.read_bytes() == b"frames" * STEP_BYTES


def test_after_a_failure_not_every_batch_tries_again(tmp_path, monkeypatch):
    room = LogRoom(tmp_path / "missing" / "x.db", "", page_bytes=4096)
    with pytest.raises(OSError, match="No such file"):
        room.ensure(0)
    room.ensure(1)


def test_a_database_behind_a_named_vfs_gets_none(tmp_path, log):
    LogRoom(tmp_path / "x.db", "some-vfs", page_bytes=4096).ensure(0)
    assert log.stat().st_size == 0


async def test_a_copy_taken_while_the_node_runs_has_every_row(world, tmp_path, monkeypatch):
    monkeypatch.setattr(log_room, "STEP_BYTES", 64 << 10)
    monkeypatch.setattr(log_room, "MARGIN_BYTES", 16 << 10)
    copy = tmp_path / "copy.db"
    async with world.opened() as store:
        for number in range(60):
            await store.write(lambda tx, n=number: tx.put("notes", "default", f"k{n}", {"body": bytes(2000)}))
        log = world.root / "relaymesh.db-wal"
        assert log.stat().st_size > store._writer.wal_pages * FRAME_BYTES + 32
        # What a crash would leave: log and room, never checkpointed.
        shutil.copy(world.root / "relaymesh.db", copy)
        shutil.copy(log, tmp_path / "copy.db-wal")
    connection = apsw.Connection(str(copy))
    assert connection.execute("SELECT count(*) FROM notes").get == 60
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


async def test_a_failure_to_make_room_is_counted_and_fails_no_write(world, monkeypatch):
    def full(self, pages):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LogRoom, "ensure", full)
    async with world.opened() as store:
        await store.write(lambda tx: tx.put("notes", "default", "k", {}))
        assert store.counters()["log_room_failures"] >= 1


async def test_requests_that_change_nothing_make_no_room(world):
    async with world.opened() as store:
        log = world.root / "relaymesh.db-wal"
        await store.write(lambda tx: tx.get("notes", "default", "k"))
        before = log.stat().st_size
        assert before < STEP_BYTES
        await store.write(lambda tx: tx.put("notes", "default", "k", {}))
        assert log.stat().st_size >= before + STEP_BYTES - MARGIN_BYTES

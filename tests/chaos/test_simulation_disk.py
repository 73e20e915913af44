"""The simulated drive by itself: what a process reads, what a death leaves, and what each fault does."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulation.crash_images import SECTOR_BYTES, keep_sectors, torn_bytes
from chaos.simulation.disk import PAGE_BYTES, SimulatedDisk


def make_disk(seed: int = 1) -> SimulatedDisk:
    return SimulatedDisk(random.Random(seed))


def put(disk: SimulatedDisk, path: str, data: bytes, offset: int = 0, *, sync: bool = True) -> None:
    file = disk.open(path, create=True)
    disk.write(file, data, offset)
    if sync:
        disk.sync(file)
        disk.sync_names()


def fails(number: int):
    return pytest.raises(OSError, match=f"Errno {number}")


def test_what_was_written_is_read_back_and_gaps_are_zeros():
    disk = make_disk()
    file = disk.open("f", create=True)
    disk.write(file, b"abc", 5)
    disk.truncate(file, 7)
    disk.truncate(file, 9)

    assert disk.read(file, 100, 0) == b"\0\0\0\0\0ab\0\0"
    assert disk.read(file, 100, 50) == b""
    assert disk.size(file) == 9


@pytest.mark.parametrize("image", ["drop", "subset", "torn"])
def test_a_power_cut_keeps_everything_that_was_synced(image):
    for seed in range(20):
        disk = make_disk()
        put(disk, "f", b"x" * 3_000)
        disk.power_cut(image, random.Random(seed))
        assert disk.files() == {"f": b"x" * 3_000}


def test_the_image_drop_keeps_nothing_unsynced():
    disk = make_disk()
    put(disk, "f", b"old")
    put(disk, "f", b"new", sync=False)
    put(disk, "g", b"new", sync=False)
    assert disk.unsynced_bytes() == 6
    assert disk.unsynced_bytes("g") == 3

    disk.power_cut("drop", random.Random(1))

    assert disk.files() == {"f": b"old"}
    assert disk.unsynced_bytes() == 0


def test_the_image_subset_keeps_any_sectors_and_each_of_them_whole():
    seen = set()
    for seed in range(200):
        disk = make_disk()
        put(disk, "f", b"o" * (3 * SECTOR_BYTES))
        put(disk, "f", b"n" * (3 * SECTOR_BYTES), sync=False)
        disk.power_cut("subset", random.Random(seed))
        content = disk.files()["f"]
        sectors = [content[at : at + SECTOR_BYTES] for at in range(0, len(content), SECTOR_BYTES)]
        assert all(len(set(sector)) == 1 for sector in sectors)
        seen.add("".join(chr(sector[0]) for sector in sectors))
    assert len(seen) == 8


def test_the_image_torn_keeps_a_prefix_of_all_writes_over_all_files():
    seen = set()
    for seed in range(300):
        disk = make_disk()
        put(disk, "f", b"____")
        put(disk, "g", b"____")
        for index, path in enumerate("fgfg"):
            put(disk, path, b"%d" % index, index, sync=False)
        disk.power_cut("torn", random.Random(seed))
        files = disk.files()
        seen.add((files["f"], files["g"]))
    assert seen == {
        (b"____", b"____"),
        (b"0___", b"____"),
        (b"0___", b"_1__"),
        (b"0_2_", b"_1__"),
        (b"0_2_", b"_1_3"),
    }


def test_a_sector_that_survives_holds_one_of_its_versions_and_no_mixture():
    versions = {b"....", b"a...", b"aab.", b"aabb"}
    seen = set()
    for seed in range(200):
        durable = bytearray(b"....")
        keep_sectors(durable, [(1, 0, b"a"), (2, 1, b"ab"), (3, 3, b"b")], random.Random(seed))
        seen.add(bytes(durable))
    assert seen == versions


def test_a_lost_truncation_takes_along_what_was_written_after_it():
    seen = set()
    for seed in range(100):
        durable = bytearray(b"old log")
        keep_sectors(durable, [(1, 0, None), (2, 0, b"new")], random.Random(seed))
        seen.add(bytes(durable))
    assert seen == {b"old log", b"", b"new"}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 3_000), st.binary(min_size=1, max_size=1_500)),
            st.tuples(st.integers(0, 3_000), st.none()),
        ),
        max_size=8,
    ),
    st.integers(0, 1 << 32),
)
def test_a_crash_never_invents_bytes(changes, seed):
    durable = bytearray(b"o" * 1_000)
    keep_sectors(durable, [(index, *change) for index, change in enumerate(changes)], random.Random(seed))
    possible = set(b"o\0").union(*(data for _, data in changes if data))
    assert set(durable) <= possible
    ends = [offset + len(data or b"") for offset, data in changes]
    assert len(durable) <= max([1_000, *ends])


@given(st.integers(0, 5_000), st.integers(1, 5_000), st.integers(0, 1 << 32))
def test_a_torn_write_is_a_beginning_of_it(offset, length, seed):
    assert 0 <= torn_bytes(offset, length, random.Random(seed)) <= length


def test_a_new_name_is_durable_after_a_sync_of_the_names_only():
    disk = make_disk()
    file = disk.open("f", create=True)
    disk.write(file, b"data", 0)
    disk.sync(file)
    assert disk.snapshot().files == {}
    disk.sync_names()
    assert disk.snapshot().files == {"f": b"data"}


def test_a_removed_name_may_be_back_after_a_power_cut():
    disk = make_disk()
    put(disk, "journal", b"hot")
    disk.unlink("journal")
    assert disk.files() == {}

    disk.power_cut("drop", random.Random(1))

    assert disk.files() == {"journal": b"hot"}


def test_a_crash_keeps_names_in_the_order_in_which_they_were_made():
    seen = set()
    for seed in range(60):
        disk = make_disk()
        for path in "abc":
            disk.open(path, create=True)
        disk.power_cut(random.Random(seed).choice(["subset", "torn"]), random.Random(seed))
        seen.add("".join(disk.files()))
    assert seen == {"", "a", "ab", "abc"}


def test_a_killed_process_loses_its_handles_and_nothing_else():
    disk = make_disk()
    file = disk.open("f", create=True)
    disk.write(file, b"data", 0)
    assert disk.lock(file)

    disk.process_killed()

    assert disk.files() == {"f": b"data"}
    assert disk.unsynced_bytes() == 4
    with fails(errno.EIO):
        disk.write(file, b"ghost", 0)
    assert disk.lock(disk.open("f"))


def test_one_handle_at_a_time_has_the_lock():
    disk = make_disk()
    first, second = disk.open("f", create=True), disk.open("f")
    assert disk.lock(first)
    assert disk.lock(first)
    assert not disk.lock(second)
    disk.unlock(second)
    assert not disk.lock(second)
    disk.unlock(first)
    assert disk.lock(second)


def test_a_lying_sync_succeeds_and_keeps_nothing_until_an_honest_one():
    disk = make_disk()
    put(disk, "f", b"old")
    disk.lying_sync = True
    put(disk, "f", b"new")
    assert disk.snapshot().files == {"f": b"old"}
    disk.lying_sync = False
    put(disk, "f", b"!", 3)
    assert disk.snapshot().files == {"f": b"new!"}


def test_after_a_failed_sync_the_drive_may_lack_what_processes_still_read():
    lost = 0
    for seed in range(40):
        disk = make_disk(seed)
        put(disk, "f", b"old")
        disk.sync_errors = 1
        with fails(errno.EIO):
            put(disk, "f", b"new")
        put(disk, "other", b"")
        disk.sync(disk.open("f"))  # succeeds: the pages count as clean
        assert disk.files()["f"] == b"new"
        lost += disk.snapshot().files["f"] == b"old"
    assert 5 < lost < 35


def test_writing_to_a_lost_page_again_writes_all_of_it():
    for seed in range(20):
        disk = make_disk(seed)
        put(disk, "f", b"o" * (2 * PAGE_BYTES))
        disk.sync_errors = 1
        with fails(errno.EIO):
            put(disk, "f", b"n" * (2 * PAGE_BYTES))
        put(disk, "f", b"!", 17)
        durable = disk.snapshot().files["f"]
        assert durable[:PAGE_BYTES] == b"n" * 17 + b"!" + b"n" * (PAGE_BYTES - 18)


def test_reads_and_writes_fail_as_often_as_asked():
    disk = make_disk()
    put(disk, "f", b"data")
    file = disk.open("f")
    disk.io_error_share = 0.3
    failed = 0
    for _ in range(500):
        try:
            disk.read(file, 4, 0)
            disk.write(file, b"data", 0)
        except OSError:
            failed += 1
    assert 200 < failed < 310  # one of two: 51 %
    disk.io_error_share = 1.0
    with fails(errno.EIO):
        disk.truncate(file, 0)


def test_a_full_disk_takes_old_places_and_no_new_ones_until_some_is_freed():
    disk = make_disk()
    put(disk, "f", b"x" * 100)
    disk.quota_bytes = 110
    file = disk.open("f")
    assert disk.free_bytes() == 10
    with fails(errno.ENOSPC):
        disk.write(file, b"y" * 20, 95)
    assert disk.files()["f"] == b"x" * 100
    disk.write(file, b"y" * 100, 0)
    disk.write(file, b"z" * 10, 100)
    assert disk.free_bytes() == 0
    disk.quota_bytes = None
    disk.write(file, b"z" * 20, 110)
    assert disk.used_bytes() == 130


def test_a_read_only_disk_is_read_and_not_changed():
    disk = make_disk()
    put(disk, "f", b"data")
    file = disk.open("f")
    disk.write(file, b"d", 0)
    disk.read_only = True
    for call in (
        lambda: disk.write(file, b"x", 0),
        lambda: disk.truncate(file, 0),
        lambda: disk.sync(file),
        lambda: disk.unlink("f"),
        lambda: disk.open("f"),
        lambda: disk.open("g", create=True),
    ):
        with fails(errno.EROFS):
            call()
    assert disk.read(disk.open("f", writable=False), 4, 0) == b"data"


def test_everything_fails_on_a_dead_disk_except_letting_go():
    disk = make_disk()
    put(disk, "f", b"data")
    file = disk.open("f")
    disk.lock(file)
    disk.dead = True
    for call in (
        lambda: disk.open("f"),
        lambda: disk.stat("f"),
        lambda: disk.unlink("f"),
        disk.sync_names,
        lambda: disk.size(file),
        lambda: disk.read(file, 1, 0),
        lambda: disk.write(file, b"x", 0),
        lambda: disk.truncate(file, 0),
        lambda: disk.sync(file),
        lambda: disk.lock(file),
    ):
        with fails(errno.EIO):
            call()
    disk.unlock(file)
    disk.mend()
    assert disk.dead


def every_kind_of_operation(disk: SimulatedDisk) -> None:
    put(disk, "f", b"data")  # made, written, synced, names synced
    disk.truncate(disk.open("f"), 1)
    disk.unlink("f")


def test_the_power_goes_in_the_middle_of_the_operation_that_was_asked_for():
    whole = make_disk()
    every_kind_of_operation(whole)
    assert whole.operations == 6
    for nth in range(1, 7):
        disk, told = make_disk(), []
        disk.cut_at_write(nth, lambda disk=disk, told=told: told.append(disk.dead))
        with fails(errno.EIO):
            every_kind_of_operation(disk)
        assert told == [True]
        assert disk.operations == nth
        disk.dead = False
        every_kind_of_operation(disk)  # only once


def test_a_sync_that_the_power_cuts_made_nothing_durable():
    disk = make_disk()
    put(disk, "f", b"old")
    disk.cut_at_write(2, None)
    with fails(errno.EIO):
        put(disk, "f", b"new")
    disk.power_cut("drop", random.Random(1))
    disk.dead = False
    assert disk.files() == {"f": b"old"}


def test_a_cut_that_is_called_off_never_comes():
    disk = make_disk()
    disk.cut_at_write(2, None)
    disk.cut_at_write(None, None)
    every_kind_of_operation(disk)


def test_mending_ends_all_faults():
    disk = make_disk()
    disk.lying_sync = disk.read_only = True
    disk.sync_errors, disk.io_error_share, disk.quota_bytes, disk.slow_s = 3, 1.0, 0, 2.0
    disk.cut_at_write(1, None)
    assert disk.is_faulty
    assert disk.latency_s() == 2.0

    disk.mend()

    assert not disk.is_faulty
    assert disk.latency_s() == 0.0
    put(disk, "f", b"data")
    assert disk.snapshot().files == {"f": b"data"}


def test_one_bit_is_flipped_of_a_file_with_that_ending():
    disk = make_disk()
    put(disk, "db", bytes(64))
    put(disk, "db-wal", bytes(64))
    told = disk.flip_bit(random.Random(3), "db")
    assert told.startswith("db: bit ")
    assert sum(byte.bit_count() for byte in disk.files()["db"]) == 1
    assert disk.snapshot().files == disk.files()
    assert disk.files()["db-wal"] == bytes(64)
    assert disk.flip_bit(random.Random(3), "nothing") == ""


def test_an_image_is_what_the_drive_holds_and_goes_onto_any_drive():
    disk, other = make_disk(), make_disk()
    put(disk, "f", b"old")
    put(disk, "f", b"new", sync=False)
    image = disk.snapshot()
    put(disk, "f", b"newer")
    put(disk, "g", b"more")
    stale = disk.open("f")

    disk.restore(image)
    other.restore(image)

    assert disk.files() == other.files() == {"f": b"old"}
    put(other, "f", b"own")
    assert disk.files() == {"f": b"old"}
    with fails(errno.EIO):
        disk.read(stale, 1, 0)
    disk.wipe()
    assert disk.files() == {}


def test_counters_tell_what_was_done():
    disk = make_disk()
    every_kind_of_operation(disk)
    assert (disk.writes, disk.syncs, disk.bytes_written, disk.operations) == (1, 1, 4, 6)


@pytest.mark.parametrize("image", ["drop", "subset", "torn"])
def test_a_rename_happened_whole_or_not_at_all(image):
    found = set()
    for seed in range(40):
        disk = make_disk()
        put(disk, "f", b"old")
        put(disk, "g", b"new")
        disk.sync_names()
        disk.rename("g", "f")
        assert disk.files() == {"f": b"new"}
        disk.power_cut(image, random.Random(seed))
        found.add(tuple(sorted(disk.files().items())))
    before, after = (("f", b"old"), ("g", b"new")), (("f", b"new"),)
    assert found == ({before} if image == "drop" else {before, after})


def test_a_rename_is_durable_after_a_sync_of_names_and_needs_a_file():
    disk = make_disk()
    put(disk, "g", b"new")
    disk.rename("g", "f")
    disk.sync_names()
    disk.power_cut("drop", random.Random(1))
    assert disk.files() == {"f": b"new"}
    with fails(errno.ENOENT):
        disk.rename("g", "f")
    disk.read_only = True
    with fails(errno.EROFS):
        disk.rename("f", "g")

"""Real SQLite, the marker file and the real store on a simulated drive that crashes in every place.

The model must have teeth, too: where SQLite promises less, the same tests have to find the loss.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import apsw
import pytest
import trio

from chaos.simulation.disk import DiskImage, SimulatedDisk
from chaos.simulation.vfs import VFS_NAME, SimulatedVfs, installed_vfs
from mesh.errors import ConfigError, RelayMeshError, StoreError
from mesh.tables import Column, Register, Table
from node.env import Env
from node.storage.database import APPLICATION_ID, DISK_ERRORS, open_connection
from node.storage.migrate import load_migrations
from node.storage.origins import Marker, MarkerFile
from node.storage.store import Store

NOW_S = 1_700_000_000.5
IMAGES = ("drop", "subset", "torn")
COMMITS = 8
FULL, NORMAL = 2, 1


@pytest.fixture
def vfs() -> Iterator[SimulatedVfs]:
    with installed_vfs(7, lambda: NOW_S) as installed:
        yield installed


@dataclass
class Machine:
    """A host with a database of numbered rows and their count, which one transaction changes together."""

    vfs: SimulatedVfs
    disk: SimulatedDisk = field(default_factory=lambda: SimulatedDisk(random.Random(5)))
    synchronous: int = FULL
    acknowledged: list[int] = field(default_factory=list)
    connection: apsw.Connection | None = None

    def __post_init__(self) -> None:
        self.vfs.attach("host", self.disk)

    def open(self) -> apsw.Connection:
        self.connection = open_connection(Path("/host/relaymesh.db"), self.vfs.name, exclusive=True)
        self.connection.pragma("synchronous", self.synchronous)
        return self.connection

    def create(self) -> None:
        db = self.open()
        db.execute("BEGIN; CREATE TABLE rows(number INTEGER PRIMARY KEY, text); CREATE TABLE total(count)")
        db.execute("INSERT INTO total VALUES (0)")
        db.pragma("application_id", APPLICATION_ID)
        db.execute("COMMIT")

    def add(self, number: int) -> None:
        assert self.connection is not None
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.execute("INSERT INTO rows VALUES (?, ?)", (number, "x" * 700))
        self.connection.execute("UPDATE total SET count = count + 1")
        self.connection.execute("COMMIT")
        self.acknowledged.append(number)

    def work(self) -> None:
        """Create the database, commit, with a checkpoint and a restart in between."""
        self.create()
        for number in range(COMMITS):
            self.add(number)
            if number == COMMITS // 3:
                self.checkpoint()
            if number == COMMITS // 2:
                self.close()
                self.open()
        self.close()

    def checkpoint(self) -> None:
        assert self.connection is not None
        self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def close(self) -> None:
        assert self.connection is not None
        self.connection.close()

    def die(self) -> None:
        """Nothing of the process reaches the disk any more."""
        self.disk.dead = True
        if self.connection is not None:
            self.connection.close(True)
        self.disk.dead = False

    def found(self) -> list[int]:
        """The numbers in the database, after every check that it is sound."""
        db = self.open()
        try:
            assert db.pragma("integrity_check") == "ok"
            if not db.table_exists("main", "rows"):
                return []
            numbers = [number for (number,) in db.execute("SELECT number FROM rows ORDER BY number")]
            assert db.execute("SELECT count FROM total").get == len(numbers), "half a transaction"
            return numbers
        finally:
            db.close(True)


def after_a_cut(vfs: SimulatedVfs, nth: int, image: str, *, synchronous: int = FULL, lying: bool = False) -> Machine:
    machine = Machine(vfs, synchronous=synchronous)
    machine.disk.lying_sync = lying
    machine.disk.cut_at_write(nth, None)
    with pytest.raises((apsw.Error, RelayMeshError)):
        machine.work()
    machine.die()
    machine.disk.power_cut(image, random.Random(nth))
    machine.disk.mend()
    vfs.detach("host")
    return machine


def operations_of_work(vfs: SimulatedVfs, synchronous: int = FULL) -> int:
    machine = Machine(vfs, synchronous=synchronous)
    machine.work()
    vfs.detach("host")
    assert machine.acknowledged == list(range(COMMITS))
    return machine.disk.operations


def outcomes(vfs: SimulatedVfs, image: str, **options: Any) -> Iterator[tuple[list[int], list[int] | None]]:
    """Per place of a power cut: what was acknowledged, and what was found; None for a database that is damaged."""
    for nth in range(1, operations_of_work(vfs, options.get("synchronous", FULL)) + 1):
        machine = after_a_cut(vfs, nth, image, **options)
        vfs.attach("host", machine.disk)
        try:
            found = machine.found()
        except (apsw.Error, RelayMeshError, AssertionError):
            found = None
        finally:
            vfs.detach("host")
        yield machine.acknowledged, found


@pytest.mark.parametrize("image", IMAGES)
def test_a_power_cut_anywhere_loses_no_acknowledged_commit(vfs, image):
    places = list(outcomes(vfs, image))
    assert len(places) > 60
    for acknowledged, found in places:
        # The commit that was under way may have happened.
        assert found in (acknowledged, [*acknowledged, len(acknowledged)])


@pytest.mark.parametrize("image", IMAGES)
def test_without_a_sync_at_each_commit_acknowledged_ones_are_lost_but_no_half_ones_appear(vfs, image):
    places = list(outcomes(vfs, image, synchronous=NORMAL))
    for _, found in places:
        assert found is not None
        assert found == list(range(len(found)))
    assert any(len(found) < len(acknowledged) for acknowledged, found in places)


def test_a_drive_that_lies_about_syncs_loses_or_damages_databases(vfs):
    places = [place for image in IMAGES for place in outcomes(vfs, image, lying=True)]
    assert any(found is None for _, found in places), "damaged"
    assert any(found is not None and len(found) < len(acknowledged) for acknowledged, found in places), "lost"


def test_a_killed_process_loses_nothing_even_without_a_sync_at_each_commit(vfs):
    for number in range(1, COMMITS):
        machine = Machine(vfs, synchronous=NORMAL)
        machine.create()
        for done in range(number):
            machine.add(done)
        machine.die()
        machine.disk.process_killed()
        assert machine.found() == machine.acknowledged
        vfs.detach("host")


@pytest.mark.parametrize("fault", ["io", "sync"])
def test_a_failing_disk_loses_nothing_that_was_acknowledged(vfs, fault):
    failed = 0
    for seed in range(12):
        machine = Machine(vfs, SimulatedDisk(random.Random(seed)))
        machine.create()
        rng = random.Random(seed)
        for number in range(60):
            machine.disk.io_error_share = 0.05 if fault == "io" else 0.0
            machine.disk.sync_errors = int(fault == "sync" and rng.random() < 0.2)
            try:
                machine.add(number)
                if number % 13 == 0:
                    machine.checkpoint()
            except DISK_ERRORS:
                failed += 1
                machine.disk.mend()
                assert machine.connection is not None
                if machine.connection.in_transaction:
                    machine.connection.execute("ROLLBACK")
        machine.disk.mend()
        machine.die()
        machine.disk.power_cut(IMAGES[seed % 3], rng)
        assert set(machine.acknowledged) <= set(machine.found())
        vfs.detach("host")
    assert failed > 50


def fill(machine: Machine) -> None:
    for number in range(100):
        machine.add(number)


def test_a_full_disk_refuses_commits_and_takes_them_again_when_some_is_freed(vfs):
    machine = Machine(vfs)
    machine.create()
    machine.disk.quota_bytes = machine.disk.used_bytes() + (64 << 10)
    with pytest.raises(apsw.FullError):
        fill(machine)
    assert machine.connection is not None
    if machine.connection.in_transaction:
        machine.connection.execute("ROLLBACK")
    with pytest.raises(apsw.FullError):
        machine.add(100)
    machine.disk.quota_bytes = None
    if machine.connection.in_transaction:
        machine.connection.execute("ROLLBACK")
    machine.add(101)
    machine.die()
    machine.disk.power_cut("subset", random.Random(1))
    assert set(machine.acknowledged) <= set(machine.found())


def test_a_disk_that_turns_read_only_refuses_to_write_and_is_opened_for_reading(vfs):
    machine = Machine(vfs)
    machine.create()
    machine.add(0)
    machine.disk.read_only = True
    with pytest.raises(apsw.IOError) as caught:
        machine.add(1)
    assert caught.value.extendedresult == apsw.SQLITE_IOERR_WRITE
    machine.die()
    machine.disk.process_killed()
    connection = apsw.Connection("/host/relaymesh.db", flags=apsw.SQLITE_OPEN_READWRITE)
    connection.pragma("locking_mode", "exclusive")
    assert connection.readonly("main")
    connection.close(True)


def test_errors_carry_the_code_of_the_call_that_failed(vfs):
    machine = Machine(vfs)
    machine.create()
    machine.disk.sync_errors = 1
    with pytest.raises(apsw.IOError) as caught:
        machine.add(0)
    assert caught.value.extendedresult == apsw.SQLITE_IOERR_FSYNC
    machine.disk.dead = True
    with pytest.raises(apsw.IOError):
        machine.add(1)
    with pytest.raises(apsw.CantOpenError):
        apsw.VFSFile(VFS_NAME, "/host/other", [apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE, 0])
    machine.connection.close(True)


@pytest.mark.parametrize("fault", ["dead", "read_only", "sync_errors", "io_error_share", "quota_bytes"])
def test_a_connection_is_closed_without_an_error_whatever_its_disk_does(vfs, fault):
    machine = Machine(vfs)
    machine.create()
    machine.add(0)
    machine.connection.execute("BEGIN IMMEDIATE; INSERT INTO rows VALUES (1, 'x')")
    setattr(machine.disk, fault, {"quota_bytes": 0, "sync_errors": 9}.get(fault, True))
    machine.connection.close(True)
    machine.disk.mend()
    machine.disk.dead = False
    machine.disk.process_killed()
    assert machine.found() == [0]


def test_a_second_connection_finds_the_database_busy(vfs):
    machine = Machine(vfs)
    machine.create()
    with pytest.raises(ConfigError, match="another program holds it"):
        open_connection(Path("/host/relaymesh.db"), VFS_NAME, exclusive=True)
    machine.close()
    assert machine.found() == []


def test_nothing_outside_of_the_simulated_disks_can_be_opened(vfs, tmp_path):
    for path in (str(tmp_path / "x.db"), "/nobody/x.db", "/host", "x.db"):
        with pytest.raises(apsw.CantOpenError):
            apsw.Connection(path)
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_file_is_refused(vfs):
    with pytest.raises(apsw.CantOpenError, match="temp_store=2"):
        apsw.VFSFile(VFS_NAME, None, [apsw.SQLITE_OPEN_TEMP_DB | apsw.SQLITE_OPEN_READWRITE, 0])


def test_the_date_is_the_worlds(vfs):
    db = apsw.Connection(":memory:")
    assert db.execute("SELECT datetime('now'), strftime('%f', 'now')").get == ("2023-11-14 22:13:20", "20.500")
    db.close()


def test_the_default_vfs_is_what_it_was_before_after_the_world_has_ended():
    before = apsw.vfs_names()
    try:
        with installed_vfs(1, lambda: 0.0):
            assert apsw.vfs_names()[0] == VFS_NAME
            raise KeyError
    except KeyError:
        pass
    assert apsw.vfs_names() == before
    assert apsw.randomness(8) != apsw.randomness(8)


def sqlite_chance(seed: int) -> bytes:
    with installed_vfs(seed, lambda: 0.0):
        return apsw.randomness(16)


def test_sqlites_own_chance_follows_the_seed_whatever_was_drawn_before():
    first = sqlite_chance(1)
    apsw.randomness(3)
    assert sqlite_chance(1) == first
    assert sqlite_chance(2) != first


FILES_OF_A_RUN = """
import hashlib, random
from pathlib import Path
from chaos.simulation.disk import SimulatedDisk
from chaos.simulation.vfs import installed_vfs
from node.storage.database import open_connection
with installed_vfs(3, lambda: 1e9) as vfs:
    for host in ("a", "b"):
        disk = SimulatedDisk(random.Random(3))
        vfs.attach(host, disk)
        db = open_connection(Path(f"/{host}/relaymesh.db"), vfs.name, exclusive=True)
        db.execute("CREATE TABLE t(x, y)")
        for number in range(50):
            db.execute("INSERT INTO t VALUES (randomblob(9), datetime('now'))")
            if number == 20:
                db.wal_checkpoint()
        disk.dead = True
        db.close(True)
        disk.power_cut("torn", random.Random(4))
        print({path: hashlib.sha256(data).hexdigest() for path, data in disk.files().items()})
"""


@pytest.mark.slow
def test_the_same_seed_leaves_the_same_bytes_in_every_process():
    runs = [
        subprocess.run(
            [sys.executable, "-c", FILES_OF_A_RUN],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert "relaymesh.db-wal" in runs[0]
    assert runs[0].splitlines()[0] != runs[0].splitlines()[1], "random bytes differ between hosts"


def marker_of(vfs: SimulatedVfs, disk: SimulatedDisk) -> MarkerFile:
    vfs.attach("host", disk)
    return MarkerFile(Path("/host/relaymesh.db"), vfs.name)


@pytest.mark.parametrize("image", IMAGES)
def test_the_marker_of_the_origin_is_the_old_or_the_new_one_after_a_power_cut(vfs, image):
    old, new = Marker(5, 10), Marker(5, 11)
    seen = []
    for nth in range(1, 5):
        for seed in range(8):
            disk = SimulatedDisk(random.Random(seed))
            marker = marker_of(vfs, disk)
            assert marker.read() is None
            marker.write(old)
            disk.cut_at_write(nth, None)
            if nth <= 3:  # a write, a sync, a sync of its name
                with pytest.raises(apsw.IOError):
                    marker.write(new)
            else:
                marker.write(new)
            disk.dead = False
            disk.power_cut(image, random.Random(seed))
            seen.append(found := marker.read())
            # None: torn inside of a sector. It then counts as one that nobody wrote.
            assert found in ((old, new, None) if image == "torn" else (old, new))
            assert nth < 3 or found == new
            vfs.detach("host")
    assert {old, new} <= set(seen)


# --- the real store ---

NOTES = (Table("notes", Register.LWW, (Column("text"),)),)


class InlineThread:
    async def run(self, fn: Callable[[], Any]) -> Any:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return fn()

    def close(self) -> None:
        pass


class StillClock:
    def monotonic(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return NOW_S

    async def sleep(self, seconds: float) -> None:
        await trio.sleep_forever()


@dataclass
class HostDisk:
    """`node.env.Disk`."""

    simulated: SimulatedDisk
    boots: int
    root: Path = Path("/host")
    vfs: str = VFS_NAME
    shared_memory: bool = False

    def free_bytes(self) -> int:
        return self.simulated.free_bytes()

    def load(self, name: str) -> bytes | None:
        return self.simulated.load(str(self.root / name))

    def save(self, name: str, data: bytes) -> None:
        self.simulated.replace(str(self.root / name), data)

    def kernel_boot_id(self) -> str:
        return f"boot-{self.boots}"


def store_on(disk: SimulatedDisk, boots: int) -> Store:
    rng = random.Random(boots)
    env = Env(
        clock=StillClock(),
        rng=rng,
        entropy=rng.randbytes,
        net=cast(Any, None),
        disk=HostDisk(disk, boots),
        writer_thread=InlineThread(),
        reader_thread=InlineThread(),
        executor=cast(Any, None),
    )
    return Store(env, NOTES, node_id="node-a", path=Path("/host/relaymesh.db"), migrations=load_migrations()[:1])


@asynccontextmanager
async def life(disk: SimulatedDisk, boots: int):
    """One life of a store, ended from one line to the next."""
    store = store_on(disk, boots)
    try:
        await store.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            yield store
            disk.dead = True
            nursery.cancel_scope.cancel()
    finally:
        disk.dead = True
        store.abandon()
        disk.dead = False


def put_note(key: str) -> Callable[[Any], Any]:
    return lambda tx: tx.put("notes", "default", key, {"text": "hello " * 50})


async def notes_of(store: Store) -> list[str]:
    return await store.read(lambda reader: [row.key for row in reader.select("notes", order="key")])


async def image_with_a_note(vfs: SimulatedVfs) -> DiskImage:
    disk = SimulatedDisk(random.Random(1))
    vfs.attach("host", disk)
    async with life(disk, 1) as store:
        await store.write(put_note("a"))
    vfs.detach("host")
    return disk.snapshot()


async def test_the_real_store_survives_a_power_cut_at_every_operation_of_a_commit(vfs):
    base = await image_with_a_note(vfs)
    lost_in_the_middle = 0
    for nth in range(1, 10):
        for image in IMAGES:
            disk = SimulatedDisk(random.Random(nth))
            disk.restore(base)
            vfs.attach("host", disk)
            acknowledged = ["a"]
            async with life(disk, 2) as store:
                first = store.origin
                disk.cut_at_write(nth, None)
                try:
                    for key in "bc":
                        await store.write(put_note(key))
                        acknowledged.append(key)
                except StoreError:
                    lost_in_the_middle += 1
            disk.mend()
            disk.power_cut(image, random.Random(nth))
            async with life(disk, 3) as store:
                found = await notes_of(store)
                assert found[: len(acknowledged)] == acknowledged
                assert store.origin != first, "a host that went down may have forgotten numbers"
                await store.write(put_note("z"))
                assert await notes_of(store) == [*found, "z"]
            vfs.detach("host")
    assert lost_in_the_middle >= 3 * 6


async def test_the_real_store_starts_after_a_power_cut_at_every_operation_of_its_creation(vfs):
    whole = SimulatedDisk(random.Random(1))
    vfs.attach("host", whole)
    async with life(whole, 1):
        operations = whole.operations
    vfs.detach("host")
    assert operations > 30
    for nth in range(1, operations + 1):
        disk = SimulatedDisk(random.Random(nth))
        vfs.attach("host", disk)
        disk.cut_at_write(nth, None)
        store = store_on(disk, 1)
        try:
            await store.open()  # a marker that cannot be written does not stop it
        except (RelayMeshError, apsw.IOError):
            pass
        disk.dead = True
        store.abandon()
        disk.dead = False
        disk.power_cut(IMAGES[nth % 3], random.Random(nth))
        async with life(disk, 2) as store:
            await store.write(put_note("a"))
            assert await notes_of(store) == ["a"]
        vfs.detach("host")


async def test_the_real_store_keeps_its_origin_when_only_its_process_is_killed(vfs):
    disk = SimulatedDisk(random.Random(1))
    vfs.attach("host", disk)
    async with life(disk, 1) as store:
        await store.write(put_note("a"))
        origin = store.origin
    disk.process_killed()
    async with life(disk, 1) as store:
        assert store.origin == origin
        assert await notes_of(store) == ["a"]


async def test_the_real_store_takes_writes_again_after_its_disk_was_full(vfs):
    disk = SimulatedDisk(random.Random(1))
    vfs.attach("host", disk)
    async with life(disk, 1) as store:
        await store.write(put_note("a"))
        disk.quota_bytes = disk.used_bytes()
        with pytest.raises(StoreError):
            await store.write(put_note("b"))
        assert await notes_of(store) == ["a"]
        disk.quota_bytes = None
        await store.write(put_note("c"))
        assert await notes_of(store) == ["a", "c"]


@pytest.mark.parametrize("image", IMAGES)
async def test_the_real_store_keeps_what_it_acknowledged_after_a_failed_sync_a_kill_and_a_power_cut(vfs, image):
    # The process that comes next reads from the kernel's memory what the drive never got.
    for seed in range(10):
        disk = SimulatedDisk(random.Random(seed))
        vfs.attach("host", disk)
        async with life(disk, 1) as store:
            await store.write(put_note("a"))
            disk.sync_errors = 1
            with pytest.raises(StoreError):
                await store.write(put_note("b"))
        disk.process_killed()
        async with life(disk, 1) as store:
            for key in "cd":
                await store.write(put_note(key))
        disk.power_cut(image, random.Random(seed))
        async with life(disk, 2) as store:
            assert {"a", "c", "d"} <= set(await notes_of(store))
        vfs.detach("host")

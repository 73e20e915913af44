"""SQLite on simulated disks: one VFS for all hosts of a world, and its only source of time and chance.

A path is `/<host>/<file>`. While a world runs this VFS is the process-wide default, because SQLite asks only the
default one for random bytes and for the date: so `randomblob()`, the salts in a write-ahead log and `datetime('now')`
are the same in every run of a seed. Files behave, and fail, as those of SQLite's own `unix` VFS on Linux do.

There is no shared memory: a connection must set `locking_mode=EXCLUSIVE` before it enters WAL mode, and a second one on
the same file is told that the database is busy. There are no temporary files: connections need `temp_store=2`.
"""

# ruff: noqa: N802  (SQLite names the methods of a VFS)

from __future__ import annotations

import errno
import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apsw

from chaos.simulation import seeds
from chaos.simulation.disk import OpenFile, SimulatedDisk

VFS_NAME = "relaymesh-simulated"

JULIAN_1970_MS = 210_866_760_000_000
"""1970-01-01 in SQLite's own time: milliseconds since noon, 24 November 4714 BC."""

# What the `unix` VFS says on Linux. Powersafe overwrite is an assumption about drives that the disk model shares.
_CHARACTERISTICS = apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE | apsw.SQLITE_IOCAP_SUBPAGE_READ
_SECTOR_BYTES = 4_096

# The first sync of a new file of these kinds syncs its directory, too.
_JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL


class SimulatedIOError(apsw.IOError):
    """An I/O error with SQLite's extended code, which says what failed."""

    def __init__(self, extended: int, cause: OSError) -> None:
        super().__init__(f"{cause.strerror} (simulated)")
        self.extendedresult = extended


class SimulatedFile:
    """An open file as SQLite sees it."""

    __slots__ = ("_disk", "_file", "_level", "_names_due")

    def __init__(self, disk: SimulatedDisk, file: OpenFile, *, names_due: bool) -> None:
        self._disk = disk
        self._file = file
        self._level = apsw.SQLITE_LOCK_NONE
        self._names_due = names_due

    def xRead(self, amount: int, offset: int) -> bytes:
        """Fewer bytes than asked for at the end of the file."""
        try:
            return self._disk.read(self._file, amount, offset)
        except OSError as error:
            raise SimulatedIOError(apsw.SQLITE_IOERR_READ, error) from None

    def xWrite(self, data: bytes, offset: int) -> None:
        """Into the page cache."""
        try:
            self._disk.write(self._file, bytes(data), offset)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise apsw.FullError(f"{error.strerror} (simulated)") from None
            raise SimulatedIOError(apsw.SQLITE_IOERR_WRITE, error) from None

    def xTruncate(self, newsize: int) -> None:
        """Cut it off."""
        try:
            self._disk.truncate(self._file, newsize)
        except OSError as error:
            raise SimulatedIOError(apsw.SQLITE_IOERR_TRUNCATE, error) from None

    def xSync(self, _flags: int) -> None:
        """Onto the drive; its name as well when it is a new journal."""
        try:
            self._disk.sync(self._file)
            if self._names_due:
                self._disk.sync_names()
                self._names_due = False
        except OSError as error:
            raise SimulatedIOError(apsw.SQLITE_IOERR_FSYNC, error) from None

    def xFileSize(self) -> int:
        """Bytes."""
        try:
            return self._disk.size(self._file)
        except OSError as error:
            raise SimulatedIOError(apsw.SQLITE_IOERR_FSTAT, error) from None

    def xLock(self, level: int) -> None:
        """Any lock keeps every other connection out."""
        # Only a connection in WAL mode that is being closed asks again for the exclusive lock, to move its log into
        # the database. The unix VFS lets that fail silently; an exception of ours would come out of the closing call.
        # A busy file is the one answer that SQLite accepts without a word.
        if self._level == apsw.SQLITE_LOCK_EXCLUSIVE and self._disk.is_faulty:
            raise apsw.BusyError("a disk in trouble (simulated)")
        try:
            taken = self._disk.lock(self._file)
        except OSError as error:
            raise SimulatedIOError(apsw.SQLITE_IOERR_LOCK, error) from None
        if not taken:
            raise apsw.BusyError("another connection has this database (simulated)")
        self._level = level

    def xUnlock(self, level: int) -> None:
        """Only without any lock left may another one have it."""
        self._level = level
        if level == apsw.SQLITE_LOCK_NONE:
            self._disk.unlock(self._file)

    def xCheckReservedLock(self) -> bool:
        """Nobody else can have one."""
        return False

    def xFileControl(self, _op: int, _ptr: int) -> bool:
        """Nothing beyond the basics is understood."""
        return False

    def xSectorSize(self) -> int:
        """As `unix` has it."""
        return _SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:
        """As `unix` has them."""
        return _CHARACTERISTICS

    def xClose(self) -> None:
        """Works on a dead disk, too."""
        self._disk.unlock(self._file)


class SimulatedVfs(apsw.VFS):
    """All simulated disks of a world. Made by `installed_vfs`."""

    def __init__(self, seed: int, now: Callable[[], float]) -> None:
        super().__init__(VFS_NAME, makedefault=True)
        self.name = VFS_NAME
        self._chance = seeds.stream(seed, "sqlite")
        self._now = now
        self._disks: dict[str, SimulatedDisk] = {}

    def attach(self, host: str, disk: SimulatedDisk) -> None:
        """Let paths that begin with `/<host>/` lead to this disk."""
        assert "/" not in host, host
        assert host not in self._disks, f"{host} has a disk"
        self._disks[host] = disk

    def detach(self, host: str) -> None:
        """Take the host's disk away."""
        del self._disks[host]

    def _find(self, path: str) -> tuple[SimulatedDisk, str]:
        _, host, *rest = path.split("/", 2)
        if not rest or host not in self._disks:
            raise apsw.CantOpenError(f"{path} is not on a simulated disk")
        return self._disks[host], rest[0]

    def xFullPathname(self, name: str) -> str:
        """Absolute paths only: a simulated process has no current directory."""
        if not name.startswith("/"):
            raise apsw.CantOpenError(f"{name} is not on a simulated disk")
        return posixpath.normpath(name)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> SimulatedFile:  # type: ignore[override]
        """Open as `unix` does: read-only when it cannot be written."""
        if name is None:
            raise apsw.CantOpenError("simulated disks have no temporary files: set temp_store=2")
        disk, path = self._find(name if isinstance(name, str) else name.filename())
        wanted = flags[0]
        create = bool(wanted & apsw.SQLITE_OPEN_CREATE)
        try:
            try:
                file = disk.open(path, create=create, writable=bool(wanted & apsw.SQLITE_OPEN_READWRITE))
                flags[1] = wanted
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                file = disk.open(path, writable=False)
                flags[1] = wanted & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) | apsw.SQLITE_OPEN_READONLY
        except OSError as error:
            raise apsw.CantOpenError(f"{error.strerror} (simulated)") from None
        return SimulatedFile(disk, file, names_due=create and bool(wanted & _JOURNALS))

    def xAccess(self, pathname: str, flags: int) -> bool:
        """Whether it exists and is not empty, or can be written."""
        disk, path = self._find(pathname)
        try:
            size = disk.stat(path)
        except OSError as error:
            raise SimulatedIOError(apsw.SQLITE_IOERR_ACCESS, error) from None
        if flags == apsw.SQLITE_ACCESS_EXISTS:
            return bool(size)
        return size is not None and not disk.read_only

    def xDelete(self, filename: str, syncdir: bool) -> None:
        """Remove it, durably if asked to."""
        disk, path = self._find(filename)
        try:
            disk.unlink(path)
            if syncdir:
                disk.sync_names()
        except OSError as error:
            missing = error.errno == errno.ENOENT
            raise SimulatedIOError(
                apsw.SQLITE_IOERR_DELETE_NOENT if missing else apsw.SQLITE_IOERR_DELETE, error
            ) from None

    def xRandomness(self, numbytes: int) -> bytes:
        """SQLite's whole generator is seeded with these."""
        return self._chance.randbytes(numbytes)

    def xCurrentTimeInt64(self) -> int:
        """The world's date."""
        return JULIAN_1970_MS + int(self._now() * 1000)

    def xSleep(self, microseconds: int) -> int:
        """Nobody can wait inside of a call in virtual time: whoever holds a lock here holds it until he dies."""
        return microseconds

    def xGetLastError(self) -> tuple[int, str | None]:
        """The error says all there is."""
        return 0, None


@contextmanager
def installed_vfs(seed: int, now: Callable[[], float]) -> Iterator[SimulatedVfs]:
    """The VFS of a world, until the end of the block. `now` gives the date in seconds since 1970.

    Connections on it must be closed before the block ends.
    """
    names = apsw.vfs_names()
    assert VFS_NAME not in names, "one world at a time: SQLite has one default VFS"
    vfs = SimulatedVfs(seed, now)
    apsw.randomness(0)  # forget what it was seeded with
    try:
        yield vfs
    finally:
        apsw.set_default_vfs(names[0])
        vfs.unregister()
        apsw.randomness(0)

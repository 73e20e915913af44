"""One host's drive, with the page cache before it: what a process reads, and what a death leaves.

The model, which is ext4's where that matters:

- A file's *content* is what processes read; its *durable* part is what the drive holds. Every write and truncation in
  between is kept, in order, until a sync of that file.
- Of unsynced writes the drive may hold any sectors, see `crash_images`.
- Names are made and removed in memory. A sync of the directory makes all of that durable which happened before it, and
  nothing else does (ext4 would also commit a new name with the first sync of its file). There is one journal of names:
  a crash keeps a prefix of it.
- After a sync that failed, processes still read what they wrote, a later sync succeeds, and the drive may hold
  nothing of it: the kernel has marked the pages as clean. Writing to such a page again writes all of it.

Errors are those of the system calls: OSError with ENOENT, EIO, ENOSPC or EROFS.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast, get_args

from chaos.simulation.crash_images import Change, CrashImage, apply_change, keep_sectors, torn_bytes

PAGE_BYTES = 4_096
CAPACITY_BYTES = 64 << 30
"""Of a drive without a quota."""


@dataclass(frozen=True, slots=True)
class DiskImage:
    """All that a drive holds, by path."""

    files: Mapping[str, bytes]


@dataclass(eq=False, slots=True)
class OpenFile:
    """A handle of a process, good until that dies."""

    inode: Inode
    mount: int
    """Which life of the drive's processes it belongs to."""


@dataclass(eq=False, slots=True)
class Inode:
    """One file, under whatever name."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)
    lost_pages: bool = False
    """Whether a sync failed: then content may differ from the durable part without anything pending."""
    locked_by: OpenFile | None = None

    def settle(self) -> None:
        """What is on the drive is all there is: nobody's memory holds more."""
        self.content = bytearray(self.durable)
        self.pending.clear()
        self.lost_pages = False
        self.locked_by = None


NameChange = tuple[str, Inode | None]
"""What a name stands for from now on; None: for nothing."""


class SimulatedDisk:
    """A drive. Faults are attributes that may be set at any time."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._names: dict[str, Inode] = {}
        self._durable_names: dict[str, Inode] = {}
        self._pending_names: list[tuple[int, tuple[NameChange, ...]]] = []
        """Operations, each of which the drive has whole or not at all."""
        self._cut_at = 0
        self._on_cut: Callable[[], None] | None = None
        self._mount = 0
        self.dead = False
        """The host is off: every operation fails."""
        self.lying_sync = False
        """Syncs succeed and make nothing durable. What they left is durable after the first honest one."""
        self.sync_errors = 0
        """How many of the next syncs of files fail."""
        self.io_error_share = 0.0
        """Chance of each read, write and truncation to fail with EIO."""
        self.quota_bytes: int | None = None
        """No file may grow when all of them together would have more; None: as much as the drive takes."""
        self.read_only = False
        """Remounted read-only, as the kernel does after an error: writes and syncs of open files fail, too."""
        self.slow_s = 0.0
        """What a call takes longer, in seconds. The disk only tells; see `latency_s`."""
        self.operations = 0
        """Changes and syncs so far, of files and of names. A power cut can come in each: see `cut_at_write`."""
        self.writes = 0
        self.syncs = 0
        self.bytes_written = 0

    # --- looking at it ---

    def files(self) -> dict[str, bytes]:
        """What a process would read, by path."""
        return {path: bytes(self._names[path].content) for path in sorted(self._names)}

    def used_bytes(self) -> int:
        """Sizes of all files together."""
        return sum(len(inode.content) for inode in self._names.values())

    def free_bytes(self) -> int:
        """What may still be written, to new places."""
        limit = CAPACITY_BYTES if self.quota_bytes is None else self.quota_bytes
        return max(0, limit - self.used_bytes())

    def unsynced_bytes(self, path_suffix: str = "") -> int:
        """Bytes written since the last honest sync, of files whose path ends so."""
        return sum(
            len(data)
            for path, inode in self._names.items()
            if inode.pending and path.endswith(path_suffix)
            for _, _, data in inode.pending
            if data is not None
        )

    @property
    def is_faulty(self) -> bool:
        """Whether calls may fail now."""
        return (
            self.dead
            or self.read_only
            or self.sync_errors > 0
            or self.io_error_share > 0
            or self.quota_bytes is not None
        )

    def latency_s(self) -> float:
        """What a call takes longer than usual, in seconds."""
        return self.slow_s

    # --- system calls ---

    def open(self, path: str, *, create: bool = False, writable: bool = True) -> OpenFile:
        """A handle on a file, made if need be. ENOENT, EROFS or EIO."""
        self._check_alive()
        if writable and self.read_only:
            raise _error(errno.EROFS)
        inode = self._names.get(path)
        if inode is None:
            if not create:
                raise _error(errno.ENOENT)
            self.operations += 1
            inode = self._names[path] = Inode()
            self._pending_names.append((self.operations, ((path, inode),)))
            self._cut_when_due()
        return OpenFile(inode, self._mount)

    def stat(self, path: str) -> int | None:
        """Bytes of a file, None when there is none."""
        self._check_alive()
        inode = self._names.get(path)
        return None if inode is None else len(inode.content)

    def unlink(self, path: str) -> None:
        """Remove a name. ENOENT, EROFS or EIO."""
        self._check_alive()
        if path not in self._names:
            raise _error(errno.ENOENT)
        if self.read_only:
            raise _error(errno.EROFS)
        self.operations += 1
        del self._names[path]
        self._pending_names.append((self.operations, ((path, None),)))
        self._cut_when_due()

    def rename(self, path: str, new_path: str) -> None:
        """Give a file another name, replacing what has that, in one step. ENOENT, EROFS or EIO."""
        self._check_alive()
        if path not in self._names:
            raise _error(errno.ENOENT)
        if self.read_only:
            raise _error(errno.EROFS)
        self.operations += 1
        inode = self._names[new_path] = self._names.pop(path)
        self._pending_names.append((self.operations, ((path, None), (new_path, inode))))
        self._cut_when_due()

    def sync_names(self) -> None:
        """Make the names durable, as a sync of their directory does."""
        self._check_alive()
        self.operations += 1
        self._cut_when_due()
        if not self.lying_sync:
            self._apply_names(len(self._pending_names))

    def load(self, path: str) -> bytes | None:
        """All of a small file, None when there is none. EIO."""
        self._check_alive()
        if self.io_error_share:
            self._fail_now_and_then()
        inode = self._names.get(path)
        return None if inode is None else bytes(inode.content)

    def replace(self, path: str, data: bytes) -> None:
        """Give a small file this content, durably and in one step, as writing aside and renaming does. Any errno."""
        self._check_alive()
        if self.read_only:
            raise _error(errno.EROFS)
        if self.io_error_share:
            self._fail_now_and_then()
        if self.quota_bytes is not None and len(data) > self.free_bytes():
            raise _error(errno.ENOSPC)
        if self.sync_errors:
            self.sync_errors -= 1
            raise _error(errno.EIO)
        self.operations += 1
        self.writes += 1
        self.bytes_written += len(data)
        self._cut_when_due()
        inode = self._names[path] = Inode(durable=bytearray(data))
        inode.settle()
        self._pending_names.append((self.operations, ((path, inode),)))
        if not self.lying_sync:
            self._apply_names(len(self._pending_names))

    def size(self, file: OpenFile) -> int:
        """Bytes in it."""
        self._check(file)
        return len(file.inode.content)

    def read(self, file: OpenFile, amount: int, offset: int) -> bytes:
        """At most so many bytes from there; fewer at the end of the file."""
        self._check(file)
        if self.io_error_share:
            self._fail_now_and_then()
        return bytes(file.inode.content[offset : offset + amount])

    def write(self, file: OpenFile, data: bytes, offset: int) -> None:
        """Put bytes there, into the page cache. On ENOSPC nothing was written."""
        self._check_writable(file)
        inode = file.inode
        content = inode.content
        end, size = offset + len(data), len(content)
        if end > size and self.quota_bytes is not None and end - size > self.free_bytes():
            raise _error(errno.ENOSPC)
        self.operations += 1
        self.writes += 1
        self.bytes_written += len(data)
        apply_change(content, offset, data)
        if inode.lost_pages:
            offset -= offset % PAGE_BYTES
            data = bytes(content[offset : end + -end % PAGE_BYTES])
        inode.pending.append((self.operations, offset, data))
        self._cut_when_due()

    def truncate(self, file: OpenFile, size: int) -> None:
        """Make the file so long; what is new reads as zeros."""
        self._check_writable(file)
        self.operations += 1
        apply_change(file.inode.content, size, None)
        file.inode.pending.append((self.operations, size, None))
        self._cut_when_due()

    def sync(self, file: OpenFile) -> None:
        """Make the content durable; its name is `sync_names`' to make durable."""
        self._check(file)
        inode = file.inode
        if self.read_only and inode.pending:
            raise _error(errno.EROFS)
        self.operations += 1
        self.syncs += 1
        self._cut_when_due()
        if self.sync_errors:
            self.sync_errors -= 1
            keep_sectors(inode.durable, inode.pending, self._rng)
            inode.pending.clear()
            inode.lost_pages = True
            raise _error(errno.EIO)
        if self.lying_sync:
            return
        for _, offset, data in inode.pending:
            apply_change(inode.durable, offset, data)
        inode.pending.clear()

    def lock(self, file: OpenFile) -> bool:
        """Take the file for this handle alone; False when another one has it: a database has one connection."""
        self._check(file)
        if file.inode.locked_by is None:
            file.inode.locked_by = file
        return file.inode.locked_by is file

    def unlock(self, file: OpenFile) -> None:
        """Let go of it. Never fails: a handle can be closed after any death."""
        if file.inode.locked_by is file:
            file.inode.locked_by = None

    def _check_alive(self) -> None:
        if self.dead:
            raise _error(errno.EIO)

    def _check(self, file: OpenFile) -> None:
        if self.dead or file.mount != self._mount:
            raise _error(errno.EIO)

    def _check_writable(self, file: OpenFile) -> None:
        self._check(file)
        if self.read_only:
            raise _error(errno.EROFS)
        if self.io_error_share:
            self._fail_now_and_then()

    def _fail_now_and_then(self) -> None:
        if self._rng.random() < self.io_error_share:
            raise _error(errno.EIO)

    def _cut_when_due(self) -> None:
        # In the middle of an operation: what the drive has of it is for the crash image to say, as of all that is
        # pending. So a write is noted before this, and a sync makes things durable after it.
        if self.operations == self._cut_at:
            on_cut = self._on_cut
            self.cut_at_write(None, None)
            self.dead = True
            if on_cut is not None:
                on_cut()
            raise _error(errno.EIO)

    def _apply_names(self, count: int) -> None:
        for _, changes in self._pending_names[:count]:
            for path, inode in changes:
                if inode is None:
                    self._durable_names.pop(path, None)
                else:
                    self._durable_names[path] = inode
        del self._pending_names[:count]

    # --- faults ---

    def cut_at_write(self, nth: int | None, on_cut: Callable[[], None] | None) -> None:
        """Lose power in the middle of the nth operation from now (1: the next), see `operations`; None calls it off.

        The operation fails, the disk is dead, and `on_cut` tells the host, which has to call `power_cut`.
        """
        assert nth is None or nth > 0, f"operation {nth} has happened already"
        self._cut_at = 0 if nth is None else self.operations + nth
        self._on_cut = on_cut

    def mend(self) -> None:
        """End all faults of the drive. What they did stays; a dead disk stays dead."""
        self.lying_sync = self.read_only = False
        self.sync_errors = 0
        self.io_error_share = self.slow_s = 0.0
        self.quota_bytes = None
        self.cut_at_write(None, None)

    def flip_bit(self, rng: random.Random, path_suffix: str = "") -> str:
        """Turn over one durable bit of one file whose path ends so; says which, empty when there is none to turn."""
        found = [
            path
            for path in sorted(self._durable_names)
            if path.endswith(path_suffix) and self._durable_names[path].durable
        ]
        if not found:
            return ""
        path = rng.choice(found)
        inode = self._durable_names[path]
        index, bit = rng.randrange(len(inode.durable)), rng.randrange(8)
        cached = index < len(inode.content) and inode.content[index] == inode.durable[index]
        inode.durable[index] ^= 1 << bit
        if cached:  # an unsynced write still covers it otherwise
            inode.content[index] ^= 1 << bit
        return f"{path}: bit {bit} of byte {index}"

    # --- deaths ---

    def process_killed(self) -> None:
        """The process is gone, and with it its handles and locks; the kernel still holds what it wrote."""
        self._mount += 1
        for inode in self._names.values():
            inode.locked_by = None

    def power_cut(self, image: str, rng: random.Random) -> None:
        """The host went down: only what the drive holds is left, as `CrashImage` says."""
        assert image in get_args(CrashImage), image
        match cast(CrashImage, image):
            case "drop":
                pass
            case "subset":
                self._apply_names(rng.randint(0, len(self._pending_names)))
                for path in sorted(self._durable_names):
                    keep_sectors(self._durable_names[path].durable, self._durable_names[path].pending, rng)
            case "torn":
                self._keep_prefix(rng)
        self._remount()

    def _keep_prefix(self, rng: random.Random) -> None:
        named = [inode for _, changes in self._pending_names for _, inode in changes if inode]
        inodes = dict.fromkeys([*self._durable_names.values(), *named])
        numbers = sorted(
            [number for inode in inodes for number, _, _ in inode.pending]
            + [number for number, _ in self._pending_names]
        )
        torn = rng.choice([*numbers, self.operations + 1])
        self._apply_names(sum(number < torn for number, _ in self._pending_names))
        for inode in inodes:
            for number, offset, data in inode.pending:
                if number < torn:
                    apply_change(inode.durable, offset, data)
                elif number == torn and data is not None and (arrived := torn_bytes(offset, len(data), rng)):
                    apply_change(inode.durable, offset, data[:arrived])

    def _remount(self) -> None:
        self._mount += 1
        self._names = dict(self._durable_names)
        self._pending_names.clear()
        for inode in self._names.values():
            inode.settle()

    # --- the drive as a thing ---

    def snapshot(self) -> DiskImage:
        """What the drive holds now: what a power cut would leave in the image `drop`."""
        return DiskImage({path: bytes(self._durable_names[path].durable) for path in sorted(self._durable_names)})

    def restore(self, image: DiskImage) -> None:
        """Replace all files by those of an image, perhaps another drive's. No process may run on it."""
        self._durable_names = {path: Inode(durable=bytearray(data)) for path, data in image.files.items()}
        self._remount()

    def wipe(self) -> None:
        """An empty drive."""
        self.restore(DiskImage({}))


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))

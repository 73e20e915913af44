"""A small disk of its own for one node, which can be filled to the last byte and freed again.

It is a tmpfs mounted over the node's root. Its name in the list of mounts carries this process, so that the disks of
processes that died are swept away. What the node left on it is moved to the directory below when the disk goes.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.real import kernel
from chaos.real.owner_marks import is_stale, own_mark

SIZE_BYTES = 32 * 1024 * 1024
"""Room for what a node writes in some minutes of a scenario; as much memory goes when it is full."""

_BALLAST = "ballast"
_MOUNTS = Path("/proc/self/mounts")


def available() -> str | None:
    """None when small disks can be made here, else one line that says why not."""
    with tempfile.TemporaryDirectory() as place:
        try:
            with SmallDisk(Path(place), size_bytes=1 << 16):
                return None
        except OSError as error:
            return f"this user may not mount a file system: {error}"


class SmallDisk:
    """A disk over `root` for the time of its `with` block. The node must not run when it begins or ends."""

    def __init__(self, root: Path, *, size_bytes: int = SIZE_BYTES) -> None:
        self._root = root
        self._size_bytes = size_bytes

    def __enter__(self) -> Self:
        with tempfile.TemporaryDirectory() as aside:
            _copy(self._root, Path(aside))
            kernel.mount_memory(own_mark(), self._root, self._size_bytes)
            try:
                _copy(Path(aside), self._root)
            except OSError:
                kernel.unmount(self._root)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()
        kept = self._root.with_name(f"{self._root.name}.kept")
        _copy(self._root, kept)
        kernel.unmount(self._root)
        shutil.rmtree(self._root)  # what it held before the disk came is on the disk, too
        kept.rename(self._root)

    def fill(self, free_bytes: int = 0) -> None:
        """Take all space but this much; the node can still write over what it has."""
        disk = os.statvfs(self._root)
        size_bytes = disk.f_bavail * disk.f_frsize - free_bytes
        if size_bytes > 0:
            with (self._root / _BALLAST).open("wb") as ballast:
                os.posix_fallocate(ballast.fileno(), 0, size_bytes)

    def free(self) -> None:
        """Give the space back; harmless when nothing was taken."""
        (self._root / _BALLAST).unlink(missing_ok=True)


def sweep() -> list[str]:
    """Unmount the disks of processes that ended without doing so, and name their places; what may not be stays."""
    swept = []
    for line in _MOUNTS.read_text().splitlines():
        source, place, *_ = line.split(" ")
        if is_stale(source):
            place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place)  # as spaces are written there
            try:
                kernel.unmount(Path(place))
            except PermissionError:
                continue  # another user's
            swept.append(place)
    return swept


def _copy(source: Path, destination: Path) -> None:
    shutil.copytree(source, destination, ignore=_neither_file_nor_directory, dirs_exist_ok=True)


def _neither_file_nor_directory(directory: str, names: list[str]) -> list[str]:
    # Sockets of processes that are gone.
    places = [(name, Path(directory, name)) for name in names]
    return [name for name, place in places if not (place.is_file() or place.is_dir())]

"""What the host says about a node's process and root: for people who look for trouble. Linux; None where unknown."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "ceph", "fuse.glusterfs", "lustre", "fuse.s3fs"}
)
"""SQLite's locks and its shared log do not hold there."""

_MOUNTS = Path("/proc/self/mountinfo")
_DESCRIPTORS = Path("/proc/self/fd")


def file_system_of(path: Path, mounts: str | None = None) -> str | None:
    """The type of the file system that holds this path, such as `ext4`. `mounts`: the text of mountinfo."""
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
    found: tuple[int, str | None] = (-1, None)
    whole = path.resolve()
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        words = before.split()
        if not separator or len(words) < 5:
            continue
        point = Path(words[4].encode().decode("unicode_escape"))
        # A later mount hides an earlier one on the same point.
        if (point == whole or point in whole.parents) and len(point.parts) >= found[0]:
            found = (len(point.parts), after.split()[0])
    return found[1]


def open_files() -> tuple[int | None, int]:
    """How many descriptors this process has open, and how many it may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        return len(os.listdir(_DESCRIPTORS)), limit
    except OSError:
        return None, limit


def permissions_of(path: Path) -> int | None:
    """The permission bits, such as 0o700."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def disk_bytes(path: Path) -> int | None:
    """The size of the disk that holds this path."""
    try:
        space = os.statvfs(path)
    except OSError:
        return None
    return space.f_blocks * space.f_frsize

"""What a figure depends on, and what processes cost: facts of this machine, and CPU, memory and writes from /proc."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CPUCLOCK_SCHED = 2  # clock_getcpuclockid(3), which Python does not offer: ~pid above three bits of kind


def facts(directory: Path) -> dict[str, Any]:
    """The machine as far as it decides a figure. `directory` is where the databases of the benchmark lie."""
    import apsw  # slow to import

    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "apsw": apsw.apsw_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "fileSystem": _file_system(directory),
        "loadBefore": round(os.getloadavg()[0], 2),
    }


def _file_system(directory: Path) -> str:
    """The type of the file system under `directory`: a sync costs nothing on tmpfs, and figures from there mislead."""
    best, kind = "", "unknown"
    here = str(directory.resolve())
    for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        _device, point, name, *_ = line.split(" ")
        prefix = point if point.endswith("/") else point + "/"
        if (here + "/").startswith(prefix) and len(point) >= len(best):
            best, kind = point, name
    return kind


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group of processes has used up to now, their ended children included."""

    cpu_s: float
    """User and system time."""
    rss_bytes: int
    """Resident memory of those that live; shared pages count once for each."""
    written_bytes: int
    """What they had the kernel write towards the disk. Some file systems count whole blocks for small writes."""

    def since(self, before: Usage) -> Usage:
        """What was used between `before` and this, and the memory of now."""
        return Usage(self.cpu_s - before.cpu_s, self.rss_bytes, self.written_bytes - before.written_bytes)


def usage(pids: Iterable[int]) -> Usage:
    """The sum over these processes; one that has ended in the meantime counts nothing itself, only in its parent."""
    cpu_s, rss, written = 0.0, 0, 0
    for pid in pids:
        try:
            cpu_s += _cpu_s(pid)
            rss += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
            written += _written_bytes(pid)
        except OSError:
            continue
    return Usage(cpu_s, rss, written)


def _cpu_s(pid: int) -> float:
    # The kernel's clock of a process is exact to the nanosecond. The times in /proc/PID/stat are sampled at ticks, and
    # charge threads that only wake for an instant with whole ticks; they serve for children that have ended.
    own = time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    children_user, children_system = _stat_fields(pid)[13:15]  # proc(5) counts from 1, and pid and name are cut off
    return own + (int(children_user) + int(children_system)) / _TICKS_PER_S


def tree(pid: int) -> list[int]:
    """A process and all that descend from it now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_stat_fields(int(entry.name))[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:  # grows while we walk it
        found += children.get(member, [])
    return found


def trees(pids: Sequence[int]) -> list[int]:
    """The processes of several trees."""
    return [member for pid in pids for member in tree(pid)]


def _stat_fields(pid: int) -> list[str]:
    # The name in parentheses may hold anything, blanks and parentheses too.
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _written_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "write_bytes":
            return int(value)
    return 0

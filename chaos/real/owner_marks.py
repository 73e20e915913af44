"""Names for what a crash of this process leaves behind in the kernel, by which a later process knows it is nobody's.

A mark holds the process id and the kernel's start tick of that process: a later process with the same id is another.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_MARK = re.compile(r"relaymesh_(\d+)_(\d+)")


def own_mark() -> str:
    """The mark of this process: a word of letters, digits and underscores."""
    return f"relaymesh_{os.getpid()}_{_started_at(os.getpid())}"


def is_stale(name: str) -> bool:
    """Whether `name` is the mark of a process that has ended. What is no mark is not stale."""
    owner = _MARK.fullmatch(name)
    return owner is not None and _started_at(int(owner[1])) != owner[2]


def _started_at(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]

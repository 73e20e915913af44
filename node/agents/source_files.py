"""Noticing that agent files were edited, for whoever develops agents (`relaymesh-node --dev`)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

Stamps = Mapping[str, tuple[int, int]]


def stamps_of(files: Sequence[Path]) -> Stamps:
    """When each Python file beside these was last written, and its size: what they import from there counts, too."""
    found: dict[str, tuple[int, int]] = {}
    for folder in sorted({file.parent for file in files}):
        for file in folder.glob("*.py"):
            with contextlib.suppress(FileNotFoundError):  # removed, or replaced, in this moment
                status = file.stat()
                found[str(file)] = (status.st_mtime_ns, status.st_size)
    return found

"""Small files that appear whole or not at all, and are on the disk when the function returns."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_new(path: Path, data: bytes) -> None:
    """Create `path` (mode 0600) with this content; FileExistsError when something is there already."""
    with writing(path) as file:
        file.write(data)


def replace(path: Path, data: bytes) -> None:
    """Give `path` this content (mode 0600), replacing what was there in one step."""
    with writing(path, may_replace=True) as file:
        file.write(data)


@contextmanager
def writing(path: Path, *, may_replace: bool = False) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` (mode 0600) when the block ends well, and otherwise leaves nothing.

    FileExistsError at the end of the block when something is there and may not be replaced.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if may_replace:
            temporary.rename(path)
        else:
            os.link(temporary, path)  # unlike rename, link never replaces what came in between
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable: a rename is not, before this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Small files that appear whole or not at all, and are on the disk when the function returns."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_new(path: Path, data: bytes) -> None:
    """Create `path` (mode 0600) with this content; FileExistsError when something is there already."""
    with _written(path, data) as temporary:
        os.link(temporary, path)  # unlike rename, link never replaces what came in between


def replace(path: Path, data: bytes) -> None:
    """Give `path` this content (mode 0600), replacing what was there in one step."""
    with _written(path, data) as temporary:
        temporary.rename(path)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable: a rename is not, before this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """A durable temporary file beside `path`, gone afterwards under its own name; then the directory is durable."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)

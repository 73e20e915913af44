"""One process a root: whoever works on a root's files holds its lock, and the kernel lets go of it with the process."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mesh.errors import ConfigError


@contextmanager
def root_lock(root: Path) -> Iterator[None]:
    """Hold the root for this process: two nodes on one database would be one identity twice.

    ConfigError when it cannot be used, or when another process holds it.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock: IO[str] = (root / "node.lock").open("a")
    except OSError as error:
        raise ConfigError(
            f"cannot use {root} as --root: {error.strerror}; give a directory that this user may write"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another relaymesh-node runs on {root}: stop it, or give this one its own --root"
            ) from error
        yield

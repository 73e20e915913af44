"""A consistent copy of a database into a file, also while a node writes to it."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from mesh.errors import ConfigError
from node import durable_files

RESTORED_META = "node.restored"
"""Set in a restored database; the first start that sees it opens a new cluster epoch and takes it away."""


def back_up(source: apsw.Connection, target: Path) -> None:
    """Copy the database behind `source` to `target` (mode 0600), durably; no file of this name when it failed.

    ConfigError when something is there already. apsw errors when a disk fails.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already: move it away first. Nothing was changed")
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        copy = apsw.Connection(str(partial))
        try:
            with copy.backup("main", source, "main") as backup:
                # In one step: a copy in several begins anew whenever another process commits in between.
                backup.step(-1)
            # One file without a log beside it is what can be moved and digested.
            copy.pragma("journal_mode", "delete")
        finally:
            copy.close(True)
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    durable_files.sync_directory(target.parent)

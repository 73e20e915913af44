"""The schema of a root's database as an operator sees it, and the way back to what an older release reads.

Going back takes a copy of the whole database first and runs in one transaction, so that it happens whole or not at all.
A later start of this release migrates up again: the older release must be installed before the next start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw

from mesh.errors import ConfigError
from mesh.tables import Table
from node.root_lock import root_lock
from node.storage import schema_changes
from node.storage.backup import back_up
from node.storage.database import DISK_ERRORS, open_connection, secure_log, unusable
from node.storage.migrate import applied_version, check_migrations, load_migrations
from node.storage.schema_changes import SCHEMA_MIN


@dataclass(frozen=True, slots=True)
class Applied:
    """One migration that a database ran."""

    version: int
    description: str
    checksum: str
    applied_at_ms: int
    success: bool


@dataclass(frozen=True, slots=True)
class RolledBack:
    """From where to where, and where the database as it was lies."""

    before: int
    after: int
    backup: Path


def applied(root: Path) -> list[Applied]:
    """The migrations of a root's database, in order; its node may be running. ConfigError when there is none."""
    connection = open_connection(_database(root), "", read_only=True)
    try:
        rows = connection.execute(
            "SELECT version, description, checksum, applied_at_ms, success FROM schema_migrations ORDER BY version"
        )
        return [
            Applied(version, text, checksum, at_ms, success != 0) for version, text, checksum, at_ms, success in rows
        ]
    except apsw.SQLError as error:
        raise ConfigError(f"the database of {root} has no schema yet ({error}): start its node once") from None
    except DISK_ERRORS as error:
        raise unusable(_database(root), error) from None
    finally:
        connection.close()


def roll_back(root: Path, to_version: int, tables: Sequence[Table]) -> RolledBack:
    """Undo the migrations above `to_version` in a stopped root, after a copy. ConfigError, with nothing changed."""
    database = _database(root)
    with root_lock(root):
        try:
            secure_log(database, "")
            connection = open_connection(database, "")
            try:
                return _roll_back(connection, database, to_version, tables)
            finally:
                connection.close()
        except DISK_ERRORS as error:
            raise unusable(database, error) from None
        except OSError as error:
            raise ConfigError(f"cannot copy {database} first: {error.strerror}. Nothing was changed") from None


def _roll_back(connection: apsw.Connection, database: Path, to_version: int, tables: Sequence[Table]) -> RolledBack:
    migrations = load_migrations()
    check_migrations(connection, migrations)
    before = applied_version(connection)
    if not SCHEMA_MIN <= to_version < before:
        raise ConfigError(
            f"the database is at schema {before}: give a --version from {SCHEMA_MIN} to {before - 1}. Nothing was "
            "changed"
            if before > SCHEMA_MIN
            else f"the database is at schema {before}: there is nothing to go back to"
        )
    backup = database.with_name(f"{database.name}.schema-{before}")
    back_up(connection, backup)
    with connection:
        schema_changes.roll_back(connection, tables, migrations, to_version=to_version, now_ms=int(time.time() * 1000))
    return RolledBack(before, to_version, backup)


def _database(root: Path) -> Path:
    database = root / "relaymesh.db"
    if not database.exists():
        raise ConfigError(f"{root} holds no database: give the --root of a node that ran before")
    return database

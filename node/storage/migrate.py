"""Numbered migrations: forward at every start, backward by hand, each file once and unchanged for ever."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import apsw

from mesh.errors import ConfigError

_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_PARTS = re.compile(
    r"-- description: (?P<description>[^\n]+)\n.*?^-- up\n(?P<up>.*?)^-- down\n(?P<down>.*)", re.S | re.M
)

# This table is older than any migration, so it is not part of one.
_CREATE_HISTORY = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY NOT NULL,
    description TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at_ms INTEGER NOT NULL,
    success INTEGER NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema, and the way back."""

    version: int
    description: str
    up: str
    down: str

    @property
    def checksum(self) -> str:
        """Tells whether a migration that a database once ran was edited since."""
        return hashlib.sha256(self.up.encode()).hexdigest()


def load_migrations() -> tuple[Migration, ...]:
    """The migrations of this release, in order, numbered from 1 without gaps."""
    migrations = []
    for file in sorted((resources.files("node.storage") / "migrations").iterdir(), key=lambda file: file.name):
        match = _FILE.fullmatch(file.name)
        if match:
            migrations.append(parse_migration(int(match[1]), file.read_text(encoding="utf-8")))
    assert [migration.version for migration in migrations] == list(range(1, len(migrations) + 1)), migrations
    return tuple(migrations)


def parse_migration(version: int, text: str) -> Migration:
    """A migration from its file: `-- description: …`, then `-- up` and `-- down`, each followed by SQL."""
    parts = _PARTS.match(text)
    assert parts is not None, f"migration {version} has no description, up and down part"
    return Migration(version, parts["description"], parts["up"], parts["down"])


def applied_version(connection: apsw.Connection) -> int:
    """The highest migration in this database, 0 for none."""
    if not connection.table_exists("main", "schema_migrations"):
        return 0
    return int(connection.execute("SELECT ifnull(max(version), 0) FROM schema_migrations").get)


def check_migrations(connection: apsw.Connection, migrations: Sequence[Migration]) -> None:
    """ConfigError when this database is newer than this release, or ran another form of a migration. Writes nothing."""
    version, known = applied_version(connection), migrations[-1].version
    if version > known:
        raise ConfigError(
            f"the database was written by a newer RelayMesh (schema {version}, this one knows {known}): "
            f"install that release, or migrate the database down to schema {known} with it. Nothing was changed"
        )
    if version == 0:
        return
    stored = dict(connection.execute("SELECT version, checksum FROM schema_migrations"))
    for migration in migrations[:version]:
        if stored.get(migration.version) != migration.checksum:
            raise ConfigError(
                f"the database ran another form of migration {migration.version} ({migration.description}) than this "
                "release has: install the release that wrote it. Nothing was changed"
            )


def migrate_up(connection: apsw.Connection, migrations: Sequence[Migration], *, now_ms: int) -> None:
    """Run what is missing, inside the caller's transaction: all of it or nothing."""
    connection.execute(_CREATE_HISTORY)
    version = applied_version(connection)
    for migration in migrations:
        if migration.version <= version:
            continue
        connection.execute(migration.up)
        connection.execute(
            "INSERT INTO schema_migrations VALUES (?, ?, ?, ?, 1)",
            (migration.version, migration.description, migration.checksum, now_ms),
        )


def migrate_down(connection: apsw.Connection, migrations: Sequence[Migration], *, to_version: int) -> None:
    """Undo the migrations above `to_version`, newest first, inside the caller's transaction."""
    for migration in reversed(migrations):
        if to_version < migration.version <= applied_version(connection):
            connection.execute(migration.down)
            connection.execute("DELETE FROM schema_migrations WHERE version = ?", (migration.version,))

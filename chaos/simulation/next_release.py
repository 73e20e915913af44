"""A release that does not exist yet: it knows one migration, one table and one column more than this one.

Each task that is submitted to a node of it gets a `mood`, and a row in `diary`. So a mesh in which some nodes run it
shows whether this release keeps and passes on what it does not know, and whether a way back loses anything.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import apsw

from mesh.rows import Row
from mesh.tables import Column, Register, Table
from node.storage.database import open_connection
from node.storage.migrate import Migration, load_migrations
from node.storage.schema_changes import roll_back
from node.storage.store import Store
from node.storage.transaction import Transaction
from node.work.tables import TASKS, WORK_TABLES

SCHEMA = load_migrations()[-1].version
"""Of this release."""
DIARY = "diary"
MIGRATIONS = (
    *load_migrations(),
    Migration(
        SCHEMA + 1,
        "the next release",
        "CREATE INDEX tasks_by_mood ON tasks (mood);\n",
        "DROP INDEX tasks_by_mood;\n",
    ),
)
TABLES = (
    dataclasses.replace(TASKS, columns=(*TASKS.columns, Column("mood", since=SCHEMA + 1))),
    *(table for table in WORK_TABLES if table is not TASKS),
    Table(DIARY, Register.LWW, (Column("entry"),), since=SCHEMA + 1),
)


def keep_diary(store: Store, node_id: str) -> None:
    """Have a node of the next release write what only it knows. Call it before the store opens."""

    def write(tx: Transaction, before: Row | None, after: Row) -> None:
        if before is None and after.node == node_id:
            tx.put("tasks", after.namespace, after.key, {"mood": "sunny"})
            tx.put(DIARY, after.namespace, after.key, {"entry": "a task came"})

    store.watch("tasks", write)


def go_back(database: Path, vfs: str, *, now_ms: int) -> None:
    """Lead a database that no node has open back to this release."""
    connection: apsw.Connection = open_connection(database, vfs, exclusive=True)
    try:
        connection.execute("BEGIN IMMEDIATE")
        roll_back(connection, TABLES, MIGRATIONS, to_version=SCHEMA, now_ms=now_ms)
        connection.execute("COMMIT")
    finally:
        connection.close(True)

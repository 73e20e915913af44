"""`relaymesh-node` of a release that does not exist yet: it knows one more table, one more column, one more protocol.

Each task submitted to it gets a `mood`, and a row in `diary`.
"""

import dataclasses
import sys

import mesh.protocol
import node.node
import node.storage.store
from mesh.tables import Column, Register, Table
from node import daemon
from node.storage.migrate import Migration, load_migrations
from node.work import tables

migrations = load_migrations()
ME = sys.argv[sys.argv.index("--node-id") + 1]
SCHEMA = migrations[-1].version + 1
TASKS = dataclasses.replace(tables.TASKS, columns=(*tables.TASKS.columns, Column("mood", since=SCHEMA)))
DIARY = Table("diary", Register.LWW, (Column("entry"),), since=SCHEMA)


def write_diary(tx, before, after):
    if before is None and after.node == ME:
        tx.put("tasks", after.namespace, after.key, {"mood": "sunny"})
        tx.put("diary", after.namespace, after.key, {"entry": "a task came"})


class Store(node.storage.store.Store):
    def __init__(self, env, work_tables, **options):
        known = [TASKS if table.name == "tasks" else table for table in work_tables]
        newer = (*migrations, Migration(SCHEMA, "of tomorrow", "", ""))
        super().__init__(env, [*known, DIARY], migrations=newer, **options)
        self.watch("tasks", write_diary)


mesh.protocol.NEWEST += 1
node.node.Store = Store
daemon.main()

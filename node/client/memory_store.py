"""The tables of a node in a database that no disk holds, for one thread at a time. Its clock is virtual.

The schema, the rows and their order are those of a node (node/storage); what makes a node's store durable is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import apsw

from mesh.hlc import HybridClock
from mesh.ids import Origin
from node.storage.migrate import load_migrations
from node.storage.origins import OriginTable
from node.storage.reader import Reader
from node.storage.schema import table_sql
from node.storage.schema_changes import upgrade
from node.storage.transaction import Hook, Ledger, Transaction
from node.work.tables import WORK_TABLES

T = TypeVar("T")


class MemoryStore:
    """One replica. `hooks` are called for every version of a row of their table, as of `Store.watch`."""

    def __init__(self, node_id: str, hooks: dict[str, list[Hook]]) -> None:
        connection = apsw.Connection(":memory:")
        self.now_ms = int(time.time() * 1000)
        """Virtual time in milliseconds since 1970. It moves only when somebody raises it."""
        connection.execute("BEGIN")
        upgrade(connection, WORK_TABLES, load_migrations(), now_ms=self.now_ms)
        self._ledger = Ledger(
            connection=connection,
            tables={table.name: table_sql(table) for table in WORK_TABLES},
            origins=OriginTable(),
            hlc=HybridClock(),
            hooks=hooks,
            origin=Origin(node_id, int.from_bytes(os.urandom(8), "big") >> 1 or 1),
        )
        self._ledger.origins.load(connection)
        connection.execute("COMMIT")

    def write(self, fn: Callable[[Transaction], T]) -> T:
        """Run `fn` in a transaction. What it raises undoes it, and is raised here."""
        ledger = self._ledger
        ledger.now_ms = self.now_ms
        first_seq = ledger.next_seq
        transaction = Transaction(ledger)
        ledger.connection.execute("BEGIN")
        try:
            result = fn(transaction)
        except BaseException:
            ledger.connection.execute("ROLLBACK")
            ledger.next_seq = first_seq
            ledger.origins.load(ledger.connection)
            raise
        finally:
            ledger.rows.clear()
        ledger.connection.execute("COMMIT")
        return result

    def read(self, fn: Callable[[Reader], T]) -> T:
        """The result of `fn`, which only reads."""
        return fn(Reader(self._ledger.connection, self._ledger.tables, self._ledger.origins))

"""Declarations of replicated tables: a name, typed columns and the register kind that decides conflicts.

The engine knows nothing else about a table. Every row also has a namespace, a text key and the metadata of `mesh.rows`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

ColumnKind = Literal["text", "int", "real", "blob"]
Value = str | int | float | bytes | None


class Register(enum.Enum):
    """How two versions of one row are compared; `mesh.registers` holds the orders."""

    LWW = "lww"
    """Newest stamp wins; equal stamps fall to epochs, then to the lexically lower node id."""
    LIFECYCLE = "lifecycle"
    """Finished beats unfinished within one generation; a higher epoch beats a later stamp."""
    IMMUTABLE = "immutable"
    """First content stays. Other content under the same key is a conflict, kept in quarantine."""
    MAX = "max"
    """The highest rank wins; the rank is the value."""
    REMOVE_WINS = "remove-wins"
    """Within a generation a deletion beats every write."""


@dataclass(frozen=True, slots=True)
class Column:
    """One typed column. A missing value is stored as NULL."""

    name: str
    kind: ColumnKind = "text"
    since: int = 1
    """The schema version (the newest migration) of the first release that declares it: a way back leads past it."""


@dataclass(frozen=True, slots=True)
class Parent:
    """Rows of a table belong to rows of another: `column` holds the key of theirs, in the same namespace.

    When a parent's tombstone has become stable, its children are dropped with it, without tombstones of their own.
    """

    table: str
    column: str


@dataclass(frozen=True, slots=True)
class Table:
    """A replicated table's declaration. Adding a column later is a migration; older nodes pass it on unread.

    A release that adds a table or a column also adds a migration, if only an empty one, and names it in `since`.
    """

    name: str
    register: Register
    columns: tuple[Column, ...]
    parent: Parent | None = None
    since: int = 1
    """The schema version of the first release that declares it."""
    kinds: Mapping[str, ColumnKind] = field(init=False, repr=False, compare=False)
    """The kind of each column by name, made once: every write and merge looks here."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", {column.name: column.kind for column in self.columns})
        assert len(self.kinds) == len(self.columns), f"table {self.name} declares a column twice"
        assert self.parent is None or self.kinds.get(self.parent.column) == "text", f"{self.name} names no parent"

    def at(self, schema: int) -> Table:
        """The table as a release of this schema version declares it."""
        assert self.since <= schema, (self.name, schema)
        columns = tuple(column for column in self.columns if column.since <= schema)
        known = any(self.parent is not None and column.name == self.parent.column for column in columns)
        return replace(self, columns=columns, parent=self.parent if known else None)

    def column_names(self) -> tuple[str, ...]:
        """The declared column names, in declaration order."""
        return tuple(column.name for column in self.columns)


def declared_at(tables: Sequence[Table], schema: int) -> tuple[Table, ...]:
    """These declarations as a release of this schema version has them: without what came later."""
    return tuple(table.at(schema) for table in tables if table.since <= schema)

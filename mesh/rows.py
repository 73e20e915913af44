"""One version of one replicated row: what it says, and the metadata by which versions are ordered.

A row is a value. It never changes after it was stamped; a write makes a new version, and merging keeps the greater one.
"""

from __future__ import annotations

import msgspec

from mesh.ids import Origin
from mesh.tables import Value


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A stamped row version.

    `hlc` and `lease_hlc` are hybrid stamps (`ms << 16 | counter`); all rows of one request share one `hlc`.
    `lease_hlc` is the stamp of the write that opened the current lease epoch. `node` is the writer's node id.
    `(origin, seq)` is the version's dot: unique for ever, dense per origin.
    `values` holds declared and unknown columns alike: a newer version's columns are kept and passed on.
    """

    table: str
    namespace: str
    key: str
    generation: int = 0
    deleted: bool = False
    rank: int = 0
    cluster_epoch: int = 0
    lease_epoch: int = 0
    lease_hlc: int = 0
    hlc: int
    node: str
    origin: Origin
    seq: int
    values: dict[str, Value]

    def text(self, column: str) -> str:
        """The column as text; an absent or NULL column is the empty string."""
        value = self.values.get(column)
        assert value is None or isinstance(value, str), (column, value)
        return value or ""

    def integer(self, column: str) -> int:
        """The column as an integer; an absent or NULL column is 0."""
        value = self.values.get(column)
        assert value is None or isinstance(value, int), (column, value)
        return value or 0

    def blob(self, column: str) -> bytes | None:
        """The column as bytes, or None when it is absent or NULL."""
        value = self.values.get(column)
        assert value is None or isinstance(value, bytes), (column, value)
        return value

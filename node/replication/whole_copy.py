"""A whole copy of a peer's rows over our own: for a node that was away for so long that news cannot mend it.

The peer sends every row that it has. What we hold and it has no more, although it has seen it, was deleted meanwhile,
and the memory of that is gone everywhere: it is dropped. What only we have seen stays, and peers fetch it from us; only
rows that belong to a row which is gone go with it. What was here and is forgotten comes back through no copy either:
the peer may know less of it than we do.
"""

from __future__ import annotations

import logging

from mesh.rows import Row
from mesh.stability import Stable
from mesh.version_vector import VersionVector
from node.storage.garbage import row_name
from node.storage.store import Store
from node.storage.transaction import Transaction

log = logging.getLogger(__name__)


class Copy:
    """One copy under way. It forgets nothing before its last part, so an interrupted one has done no harm."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sent: set[int] = set()

    async def add(self, rows: list[Row], stable: Stable | None, vector: VersionVector | None) -> None:
        """Apply a part. With the last one comes the peer's vector, and what it lacks is dropped."""
        self._sent.update(row_name(row.table, row.namespace, row.key) for row in rows)

        def apply(tx: Transaction) -> int:
            for row in rows:
                tx.merge(row)
            dropped = 0
            if vector is not None:
                seen = vector.copy()
                seen.join(self._store.stable.collapsed if stable is None else stable.collapsed)
                dropped = tx.drop_unsent(self._sent, seen)
                tx.join(vector)
            if stable is not None and vector is not None:
                tx.adopt(stable)
            return dropped

        dropped = await self._store.write(apply, remote=True, rows=max(1, len(rows)))
        if dropped:
            log.warning("%d rows that the mesh deleted while this node was away are gone here, too", dropped)

"""The version vector as the database keeps it: ranges of sequence numbers by an origin's number."""

from __future__ import annotations

import apsw

from mesh.version_vector import VersionVector
from node.storage.origins import OriginTable


def load_vector(connection: apsw.Connection, origins: OriginTable) -> VersionVector:
    """What this database has seen, as of its current transaction."""
    vector = VersionVector()
    for oid, lo, hi in connection.execute("SELECT oid, lo, hi FROM vector ORDER BY oid, lo"):
        vector.add(origins.origin(oid), lo, hi)
    return vector


def store_vector(connection: apsw.Connection, origins: OriginTable, vector: VersionVector, seen: VersionVector) -> None:
    """Add `seen` to the stored `vector`, inside the caller's transaction.

    Only ranges that changed are written: mostly one row, whose end moved.
    """
    for origin in seen.origins():
        old = vector.ranges(origin)
        grown = VersionVector({origin: old})
        for lo, hi in seen.ranges(origin):
            grown.add(origin, lo, hi)
        new = dict(grown.ranges(origin))
        oid = origins.intern(connection, origin)
        for lo, _ in old:
            if lo not in new:
                connection.execute("DELETE FROM vector WHERE oid = ? AND lo = ?", (oid, lo))
        known = dict(old)
        for lo, hi in new.items():
            if known.get(lo) != hi:
                connection.execute("INSERT OR REPLACE INTO vector VALUES (?, ?, ?)", (oid, lo, hi))


def remove_dots(connection: apsw.Connection, origins: OriginTable, gone: VersionVector) -> None:
    """Take these dots out of the stored vector, inside the caller's transaction."""
    for origin in gone.origins():
        oid = origins.number(origin)
        if oid is None:
            continue
        found = list(connection.execute("SELECT lo, hi FROM vector WHERE oid = ?", (oid,)))
        left = VersionVector({origin: found}).without(gone).ranges(origin)
        if left != found:
            connection.execute("DELETE FROM vector WHERE oid = ?", (oid,))
            connection.executemany("INSERT INTO vector VALUES (?, ?, ?)", [(oid, lo, hi) for lo, hi in left])

"""Who stamps this database's rows, and how a node notices that its database is not the one it last wrote.

An origin's sequence numbers must never name two contents. A database that went back in time (a restored backup, a copy,
a power cut on a disk that lies) would reuse numbers that peers have seen, and the peers would silently ignore the new
rows. So such a database gets a new origin. Beside the database lies a marker, the file `origin`, with the incarnation
and a sequence number that was committed when it was written: a database that knows less has been replaced.

Every doubt mints a new origin. That costs one entry in everybody's vector; the opposite error loses rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import apsw

from mesh.ids import Origin

NO_ORIGIN = Origin("", 0)
"""Sorts before every origin; a database that has none yet."""

_MARKER_FLAGS = apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_READWRITE
# A super-journal is the one kind of file whose first sync also syncs the folder, which makes its name durable.
_MARKER_BYTES = 96
"""Within one disk sector, so that a marker is written whole or not at all."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What the file beside the database says."""

    incarnation: int
    head: int
    """A sequence number of that incarnation that is certainly in the database."""


class MarkerFile:
    """The marker, reached through the database's own VFS, so that a simulated disk treats it like one of its files."""

    def __init__(self, database: Path, vfs: str) -> None:
        self._path = str(database.with_name("origin"))
        self._vfs = vfs

    def read(self) -> Marker | None:
        """The marker; None when there is none or it cannot be believed."""
        data = self._read_bytes()
        fields = data.rstrip(b"\n").decode("ascii", "replace").split(" ")
        if len(data) != _MARKER_BYTES or len(fields) < 4 or fields[3] != _checksum(fields[:3]):
            return None
        return Marker(incarnation=int(fields[1], 16), head=int(fields[2]))

    def _read_bytes(self) -> bytes:
        try:
            file = self._open()
        except apsw.CantOpenError:
            return b""
        try:
            return file.xRead(min(file.xFileSize(), _MARKER_BYTES), 0)
        finally:
            file.xClose()

    def write(self, marker: Marker) -> None:
        """Replace the marker durably. Raises apsw errors."""
        fields = ["relaymesh-origin-1", f"{marker.incarnation:016x}", str(marker.head)]
        text = " ".join([*fields, _checksum(fields)])
        file = self._open()
        try:
            # The padding stands before the newline, so that the file is one line for whoever looks at it.
            file.xWrite(text.ljust(_MARKER_BYTES - 1).encode("ascii") + b"\n", 0)
            file.xSync(apsw.SQLITE_SYNC_FULL)
        finally:
            file.xClose()

    def _open(self) -> apsw.VFSFile:
        return apsw.VFSFile(self._vfs, self._path, [_MARKER_FLAGS, 0])


def _checksum(fields: list[str]) -> str:
    return hashlib.blake2b(" ".join(fields).encode(), digest_size=8, person=b"relaymesh-origin").hexdigest()


class OriginTable:
    """The small numbers by which this database's rows name origins."""

    def __init__(self) -> None:
        self._numbers: dict[Origin, int] = {}
        self._origins: dict[int, Origin] = {}

    def load(self, connection: apsw.Connection) -> None:
        """Forget everything and read the table again."""
        found = [(int(oid), Origin(node, inc)) for oid, node, inc in connection.execute("SELECT * FROM origins")]
        # Assigned whole, since the reading thread looks up numbers at any time.
        self._numbers = {origin: oid for oid, origin in found}
        self._origins = dict(found)

    def origin(self, oid: int) -> Origin:
        """The origin behind a number of this database."""
        return self._origins[oid]

    def number(self, origin: Origin) -> int | None:
        """The number of an origin, None when no row or range ever named it."""
        return self._numbers.get(origin)

    def intern(self, connection: apsw.Connection, origin: Origin) -> int:
        """The number of an origin, made in the current transaction if needed; `load` after that is rolled back."""
        oid = self._numbers.get(origin)
        if oid is None:
            oid = max(self._origins, default=0) + 1
            connection.execute("INSERT INTO origins VALUES (?, ?, ?)", (oid, origin.node, origin.incarnation))
            self._numbers[origin] = oid
            self._origins[oid] = origin
        return oid

"""A donor's side of a snapshot: one copy of its database, made when it is asked for, served in pieces, gone again soon.

A peer that lacks much is faster with a file than with rows, and one that was away for longer than deletions are
remembered must not merge what it has into what others forgot. The copy is an online backup: the donor goes on
committing, and what it commits afterwards the receiver pulls. All who ask share one copy: the disk holds at most one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import apsw
import msgspec
import trio

from mesh.errors import LimitError, NotFoundError, StoreError
from mesh.version_vector import VersionVector
from node.env import Env
from node.replication.calls import decode
from node.storage.database import DISK_ERRORS
from node.storage.database_copy import CopyFile, remove_copy
from node.storage.store import Store

log = logging.getLogger(__name__)

CHUNK_BYTES = 60_000
"""One chunk and its digest fit into one frame."""
READ_BYTES = 16 * CHUNK_BYTES
"""What is read from the disk, or written to it, in one call."""
KEEP_S = 300.0
"""A copy that nobody asked for during this long is deleted."""
MISSING_SHARE_MIN = 0.3
"""A peer that lacks less than this of all that was ever written is faster with rows: much of the file would be old."""
DIGEST_BYTES = 16


class SnapshotWish(msgspec.Struct, array_like=True):
    """A peer wants a snapshot."""

    done: str = ""
    """The id of one that it has adopted already, and that was not enough."""


class SnapshotOffer(msgspec.Struct, array_like=True):
    """What there is to fetch."""

    id: str
    """BLAKE2b of the whole file, in hex."""
    bytes: int


class ChunkRequest(msgspec.Struct, array_like=True):
    """The rest of a snapshot, from this byte on."""

    id: str
    offset: int


class Chunk(msgspec.Struct, array_like=True):
    """The next bytes, at most CHUNK_BYTES, and their digest."""

    data: bytes
    digest: bytes


def chunk_digest(data: bytes) -> bytes:
    """What a chunk's bytes must have."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def is_far_behind(mine: VersionVector, theirs: VersionVector, *, rows_min: int) -> bool:
    """Whether the holder of `theirs` lacks so much of `mine` that a snapshot serves it better than rows.

    Counted in sequence numbers: a version that was overwritten since costs a pull nothing, so this is an upper bound.
    """
    missing = VersionVector(theirs.missing_from(mine)).count()
    return missing >= rows_min and missing > MISSING_SHARE_MIN * mine.count()


@dataclass(slots=True)
class _Kept:
    offer: SnapshotOffer
    file: CopyFile
    used_at: float


class SnapshotDonor:
    """Makes, serves and deletes the copy. `run` must be running, or it is never deleted."""

    def __init__(self, env: Env, store: Store) -> None:
        self._env = env
        self._store = store
        self._path = store.path.with_name(f"{store.path.name}.snapshot")
        self._kept: _Kept | None = None
        self._making = trio.Lock()
        self._made = trio.Event()
        self.made_total = 0
        self.bytes_total = 0

    async def run(self) -> None:
        """Delete the copy of a former process, and each later one when it was not asked for during KEEP_S."""
        await self._env.reader_thread.run(self._remove)
        while True:
            await self._made.wait()
            while (kept := self._kept) is not None:
                rest_s = kept.used_at + KEEP_S - self._env.clock.monotonic()
                if rest_s > 0:
                    await self._env.clock.sleep(rest_s)
                    continue
                async with self._making:
                    await self._drop()
            self._made = trio.Event()

    async def handle_offer(self, body: bytes) -> bytes:
        """Answer a `SnapshotWish`. LimitError without room for a copy, StoreError when the disk fails."""
        wish = decode(body, SnapshotWish)
        async with self._making:
            if self._kept is not None and self._kept.offer.id == wish.done:
                await self._drop()
            kept = self._kept or await self._make()
            kept.used_at = self._env.clock.monotonic()
            return msgspec.msgpack.encode(kept.offer)

    async def handle_chunks(self, body: bytes, send: Callable[[bytes], Awaitable[None]]) -> bytes:
        """Send the rest of a snapshot as `Chunk`s. NotFoundError when that one is not kept any more."""
        request = decode(body, ChunkRequest)
        offset = request.offset
        while True:
            kept = self._kept
            if kept is None or kept.offer.id != request.id:
                raise NotFoundError("this snapshot is not kept here any more: ask for an offer again")
            if not 0 <= offset < kept.offer.bytes:
                return b""
            kept.used_at = self._env.clock.monotonic()
            data = await self._read(kept.file, offset)
            for start in range(0, len(data), CHUNK_BYTES):
                piece = data[start : start + CHUNK_BYTES]
                await send(msgspec.msgpack.encode(Chunk(piece, chunk_digest(piece))))
            offset += len(data)
            self.bytes_total += len(data)

    async def _read(self, file: CopyFile, offset: int) -> bytes:
        try:
            data = await self._env.reader_thread.run(lambda: file.read(offset, READ_BYTES))
        except (*DISK_ERRORS, apsw.VFSFileClosedError) as error:
            raise StoreError(f"the snapshot cannot be read: {error}") from error
        if not data:
            raise StoreError("the snapshot is shorter than it was: ask for an offer again")
        return data

    async def _make(self) -> _Kept:
        ((size,),) = await self._store.read(
            lambda reader: reader.sql("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        )
        if self._env.disk.free_bytes() < 2 * size:
            raise LimitError(f"no room for a copy of {size} bytes here: ask another node, or free some disk")
        await self._env.reader_thread.run(self._remove)
        await self._store.copy_to(self._path)
        try:
            file, total = await self._env.reader_thread.run(self._open)
        except DISK_ERRORS as error:
            raise StoreError(f"the snapshot cannot be read: {error}") from error
        whole, offset = hashlib.blake2b(digest_size=DIGEST_BYTES), 0
        try:
            while offset < total:
                data = await self._read(file, offset)
                whole.update(data)
                offset += len(data)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._env.reader_thread.run(file.close)
                await self._env.reader_thread.run(self._remove)
            raise
        self._kept = _Kept(SnapshotOffer(whole.hexdigest(), total), file, self._env.clock.monotonic())
        self.made_total += 1
        self._made.set()
        log.info("made a snapshot of %d bytes for peers that are far behind", total)
        return self._kept

    async def _drop(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            await self._env.reader_thread.run(kept.file.close)
            await self._env.reader_thread.run(self._remove)

    def _open(self) -> tuple[CopyFile, int]:
        file = CopyFile(self._path, self._env.disk.vfs)
        try:
            return file, file.size()
        except BaseException:
            file.close()
            raise

    def _remove(self) -> None:
        remove_copy(self._env.disk, self._path)

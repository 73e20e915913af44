"""A receiver's side of a snapshot: fetch a peer's database, check it, and put it in the place of one's own.

Needed when a peer has far more than this node (a new disk), or has forgotten what this node missed (`required`). The
part that has arrived outlives a broken stream: the same donor is asked on from there. Nothing of this node changes
until the whole file is here and sound; then `Store.replace_database` keeps what only this node had, and takes a new
origin. What the donor committed meanwhile, an ordinary pull brings.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import msgspec
import trio

from mesh.errors import ConfigError, FrameError, LimitError, NotFoundError, RelayMeshError, StoreError
from mesh.ids import Address
from mesh.rows import Row
from node.env import Env
from node.replication.calls import Caller, decode
from node.replication.snapshot import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    READ_BYTES,
    Chunk,
    ChunkRequest,
    SnapshotOffer,
    SnapshotWish,
    chunk_digest,
)
from node.storage.database import DISK_ERRORS
from node.storage.database_copy import CopyFile, remove_copy
from node.storage.reader import Reader
from node.storage.store import Store
from node.storage.transaction import Transaction

log = logging.getLogger(__name__)

TELL_EVERY_S = 2.0
PAUSE_S = 1.0
"""Between two tries."""
TRIES_MAX = 5
"""Tries in a row that brought no byte, after which snapshots are left alone for a while."""
REFUSED_S = 300.0
HEARD_ROWS_MAX = 500


@dataclass(slots=True)
class _Part:
    """What has arrived of one snapshot."""

    offer: SnapshotOffer
    file: CopyFile
    arrived: int = 0
    buffer: bytearray = field(default_factory=bytearray)
    whole: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=DIGEST_BYTES))


class _Wish(NamedTuple):
    peer: str
    reason: str
    is_order: bool


class Bootstrap:
    """Fetches at most one snapshot at a time. `run` does the work; `required` asks for it."""

    def __init__(
        self,
        env: Env,
        store: Store,
        calls: Caller,
        *,
        address_of: Callable[[str], Address | None],
        on_answered: Callable[[], None],
        on_adopted: Callable[[str], None],
        heed: Callable[[Reader, Reader], list[Row]],
    ) -> None:
        """`heed` reads our database and the other one, and returns the rows that must be merged before the exchange.

        `on_answered` is called while a donor answers, `on_adopted` with the donor once its database is ours."""
        self._env = env
        self._store = store
        self._calls = calls
        self._address_of = address_of
        self._on_answered = on_answered
        self._on_adopted = on_adopted
        self._heed = heed
        self._path = store.path.with_name(f"{store.path.name}.part")
        self._part: _Part | None = None
        self._wanted: _Wish | None = None
        self._news = trio.Event()
        self._refused_until = float("-inf")
        self._told_at = float("-inf")
        self._adopted = ""
        self._from = ""
        self.adopted_total = 0

    @property
    def is_possible(self) -> bool:
        """Whether peers may point this node to a snapshot; after failures they send rows for a while."""
        return self._env.clock.monotonic() >= self._refused_until

    @property
    def is_wanted(self) -> bool:
        """Whether a snapshot is being fetched, or is about to be."""
        return self._wanted is not None

    def progress(self) -> dict[str, Any] | None:
        """`from`, `bytes` so far, `total` and `atMs` while a snapshot is fetched; None otherwise."""
        if self._part is None:
            return None
        part = self._part
        return {
            "from": self._from,
            "bytes": part.arrived,
            "total": part.offer.bytes,
            "atMs": self._store.physical_ms(),
        }

    def required(self, peer: str, reason: str) -> None:
        """This peer says that only a snapshot brings this node up to date. Never blocks; one wish at a time counts."""
        if self._wanted is None and self.is_possible:
            self._want(_Wish(peer, reason, is_order=False))

    def _want(self, wish: _Wish) -> None:
        self._wanted = wish
        self._news.set()

    def asked_for(self, peer: str) -> bool:
        """An operator wants this peer's snapshot, whatever failed before; False when one is wanted already."""
        if self._wanted is not None:
            return False
        self._refused_until = float("-inf")
        self._want(_Wish(peer, "an operator asked for it", is_order=True))
        return True

    async def run(self) -> None:
        """Fetch and adopt what is wanted, until cancelled."""
        await self._env.reader_thread.run(self._remove)
        while True:
            await self._news.wait()
            self._news = trio.Event()
            assert self._wanted is not None, "news is a wish"
            log.info("fetching a snapshot from %s: %s", self._wanted.peer, self._wanted.reason)
            await self._try_hard(self._wanted)
            self._wanted = None

    async def _try_hard(self, wish: _Wish) -> None:
        peer, tries = wish.peer, 0
        while tries < TRIES_MAX:
            before = self._part.arrived if self._part is not None else 0
            try:
                await self._bootstrap(wish)
                return
            except (ConfigError, LimitError) as error:
                if not self._store.is_open:
                    raise
                log.warning("the snapshot of %s is of no use, rows are pulled instead: %s", peer, error)
                break
            except RelayMeshError as error:
                log.info("fetching a snapshot from %s failed: %s", peer, error)
            # A donor that cannot be reached may be gone: whichever peer is heard next points to its own snapshot.
            if self._address_of(peer) is None:
                return
            arrived = self._part.arrived if self._part is not None else 0
            tries = 0 if arrived > before else tries + 1
            await self._env.clock.sleep(PAUSE_S)
        await self._discard()
        self._refused_until = self._env.clock.monotonic() + REFUSED_S

    async def _bootstrap(self, wish: _Wish) -> None:
        peer = wish.peer
        address = self._address_of(peer)
        if address is None:
            return
        body = msgspec.msgpack.encode(SnapshotWish(self._adopted))
        answer = await self._calls.call(address, "snapshot-offer", body, expect=peer)
        self._on_answered()
        offer = decode(answer, SnapshotOffer)
        part = await self._part_of(offer)
        part.buffer.clear()  # what a broken stream left of a piece is sent again
        self._from = peer

        async def take(data: bytes) -> None:
            await self._take(part, decode(data, Chunk))

        request = ChunkRequest(offer.id, part.arrived)
        try:
            await self._calls.call(
                address, "snapshot-chunk", msgspec.msgpack.encode(request), expect=peer, on_part=take
            )
        except NotFoundError:
            await self._discard()
            raise
        await self._adopt(wish, part)

    async def _part_of(self, offer: SnapshotOffer) -> _Part:
        if self._part is not None and self._part.offer == offer:
            return self._part
        await self._discard()
        if offer.bytes <= 0 or self._env.disk.free_bytes() < 2 * offer.bytes:
            raise LimitError(f"no room for a snapshot of {offer.bytes} bytes: free some disk")
        try:
            file = await self._env.reader_thread.run(lambda: CopyFile(self._path, self._env.disk.vfs))
        except DISK_ERRORS as error:
            raise StoreError(f"cannot make {self._path}: {error}") from error
        self._part = _Part(offer, file)
        return self._part

    async def _take(self, part: _Part, chunk: Chunk) -> None:
        self._on_answered()
        arrived = part.arrived + len(part.buffer) + len(chunk.data)
        if not 0 < len(chunk.data) <= CHUNK_BYTES or arrived > part.offer.bytes:
            raise FrameError("a chunk of the snapshot has a wrong size")
        if chunk_digest(chunk.data) != chunk.digest:
            raise FrameError("a chunk of the snapshot is not what was sent")
        part.buffer += chunk.data
        if len(part.buffer) >= READ_BYTES or arrived == part.offer.bytes:
            await self._write(part)
            self._tell(part)

    async def _write(self, part: _Part) -> None:
        data, offset = bytes(part.buffer), part.arrived
        part.buffer.clear()
        try:
            await self._env.reader_thread.run(lambda: part.file.write(offset, data))
        except DISK_ERRORS as error:
            raise StoreError(f"cannot write {self._path}: {error}") from error
        part.whole.update(data)
        part.arrived = offset + len(data)

    def _tell(self, part: _Part) -> None:
        now = self._env.clock.monotonic()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            log.info("snapshot from %s: %d of %d bytes", self._from, part.arrived, part.offer.bytes)

    async def _adopt(self, wish: _Wish, part: _Part) -> None:
        if part.arrived < part.offer.bytes:
            raise FrameError("the snapshot ended early")
        if part.whole.hexdigest() != part.offer.id:
            await self._discard()
            raise FrameError("the snapshot is not what its donor announced")
        await self._env.reader_thread.run(part.file.close)
        self._part = None
        try:
            is_adopted = await self._exchange(always=wish.is_order)
        finally:
            with trio.CancelScope(shield=True):
                await self._env.reader_thread.run(self._remove)
        if not is_adopted:
            log.info("the snapshot of %s holds nothing that is missing here: rows are pulled instead", wish.peer)
            # Asked again, the donor would send the same copy, older than what is missing, and never a row.
            self._refused_until = self._env.clock.monotonic() + REFUSED_S
            return
        self._adopted = part.offer.id
        self.adopted_total += 1
        log.info("this node goes on with the snapshot of %s, %d bytes, under a new origin", wish.peer, part.offer.bytes)
        self._on_adopted(wish.peer)

    async def _exchange(self, *, always: bool) -> bool:
        """Hear of what concerns us, then take the place; False when it brings nothing new, unless `always`."""

        def read(ours: Reader, theirs: Reader) -> list[Row] | None:
            is_news = always or not ours.vector().includes(theirs.vector().without(ours.stable().collapsed))
            return self._heed(ours, theirs) if is_news else None

        rows = await self._store.prepare_copy(self._path, read)
        if rows is None:
            return False
        for start in range(0, len(rows), HEARD_ROWS_MAX):
            piece = rows[start : start + HEARD_ROWS_MAX]
            await self._store.write(partial(_merge, rows=piece), remote=True, rows=len(piece))
        await self._store.replace_database(self._path)
        return True

    async def _discard(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            await self._env.reader_thread.run(part.file.close)
            await self._env.reader_thread.run(self._remove)

    def _remove(self) -> None:
        remove_copy(self._env.disk, self._path)


def _merge(tx: Transaction, *, rows: list[Row]) -> None:
    for row in rows:
        tx.merge(row)

"""Anti-entropy of rows: one round trip brings everything that a peer has and we have not.

The requester sends its version vector. The responder streams whole requests (a request is never split), and with the
last chunk the vector that was true in the very transaction in which that chunk was read. Rows mark only their own dots;
the vector is joined with the last chunk. A vector that ran ahead of its rows would make them unasked for ever.

In front of the rows of each part stands what the responder knew to be stable when it read them, if the requester does
not know it (`mesh.stability`). Whoever was away for too long gets no rows but a word, and takes a whole copy instead.
Until then it gives no news either: what it wrote to rows that were deleted meanwhile would be new to all who forgot
them.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import msgspec
import trio

from mesh.errors import FrameError, RelayMeshError, UnavailableError
from mesh.hlc import DRIFT_MAX_MS
from mesh.ids import Address, Origin
from mesh.row_codec import CHUNK_LIMITS, decode_rows, encode_rows
from mesh.rows import Row
from mesh.stability import Stable, may_adopt, was_away_too_long
from mesh.version_vector import VersionVector
from node.env import Env
from node.replication.calls import Caller, decode
from node.replication.snapshot import is_far_behind
from node.replication.whole_copy import Copy
from node.storage.reader import Chunk, PullCursor, Reader
from node.storage.store import Store
from node.storage.transaction import Transaction

log = logging.getLogger(__name__)

CHUNK_ROWS_MAX = 500
"""Rows that travel together, and are applied in one transaction: local writers wait a few milliseconds behind it."""
PULLS_AT_ONCE_MAX = 3
PAUSE_S = 0.05
"""Two pulls from one peer are at least this far apart, so that a busy peer is asked for many rows at a time."""
BACKOFF_MIN_S, BACKOFF_MAX_S = 1.0, 15.0


class PullPart(msgspec.Struct):
    """Rows behind what was known to be stable as they were read."""

    rows: bytes
    stable: bytes = b""
    """Empty when it did not change since the last part."""


class PullEnd(msgspec.Struct, array_like=True):
    """The last word of a pull: the final rows, and the vector that they complete."""

    rows: bytes
    vector: bytes
    """All of it, or without what the requester had seen before, whichever is shorter."""
    known_of_you: int
    """The highest sequence that the responder has seen of the requester's own origin."""
    physical_ms: int
    """The responder's time, as its stamps have it: compared, never obeyed."""
    stable: bytes = b""
    away_too_long: bool = False
    """The requester may hold rows whose tombstones are gone: no news can mend that, only a whole copy."""
    need_snapshot: str = ""
    """Why rows cannot or should not bring the requester up to date: then nothing of the above is of use."""
    tell_collapsed: bool = False
    """Both have collapsed other dots, so the vectors cannot be compared: ask again, with all of them."""
    tell_complete: bool = False
    """The requester knows other things to be stable: ask again, with what they are."""
    is_behind: bool = False
    """The responder was away for too long by what the requester knows: it has no news before it took a copy."""


class PullRequest(msgspec.Struct, array_like=True):
    """What the requester has, and under which origin it writes."""

    vector: bytes
    origin: tuple[str, int]
    stable: bytes = b""
    """The digest of what it knows to be stable; empty from a release that knows of no such thing."""
    snapshots: bool = False
    """Whether the requester can take a snapshot where that is faster than rows."""
    collapsed: bytes = b""
    """`Stable.collapsed_digest`: what the vector leaves out."""
    collapsed_vector: bytes = b""
    """All of that, when the responder asked for it."""
    heeds_behind: bool = False
    """Whether the requester understands `tell_complete` and `is_behind`."""
    complete: bytes = b""
    """`Stable.complete`, when the responder asked for it."""


async def serve_pull(
    store: Store, body: bytes, send: Callable[[bytes], Awaitable[None]], *, snapshot_rows_min: int | None
) -> bytes:
    """Answer one pull: parts of whole requests, then `PullEnd`.

    Who lacks at least `snapshot_rows_min` rows (None: never), and much of all there is, is pointed to a snapshot if it
    can take one.
    """
    request = decode(body, PullRequest)
    theirs = VersionVector.from_wire(request.vector)
    if request.collapsed_vector:
        theirs.join(VersionVector.from_wire(request.collapsed_vector))
    origin = Origin(*request.origin)
    nothing = VersionVector().to_wire()
    compares_collapsed = bool(request.stable) and not request.collapsed_vector and not theirs.is_empty
    if compares_collapsed and store.stable.collapsed_digest() != request.collapsed:
        # Before anything is judged by the vectors: what the requester has collapsed would seem to be missing there.
        return msgspec.msgpack.encode(PullEnd(encode_rows([]), nothing, 0, 0, tell_collapsed=True))
    if (
        request.snapshots
        and snapshot_rows_min is not None
        and is_far_behind(store.vector, theirs, rows_min=snapshot_rows_min)
    ):
        return need_snapshot(store, origin, "most of what there is, is missing here")
    cursor: PullCursor | None = None
    told = request.stable
    while True:
        chunk, stable = await store.read(partial(read_chunk, theirs=theirs, rows_max=CHUNK_ROWS_MAX, after=cursor))
        compared = stable
        if compares_collapsed:
            if stable.collapsed_digest() != request.collapsed:
                return msgspec.msgpack.encode(PullEnd(encode_rows([]), nothing, 0, 0, tell_collapsed=True))
            compared = Stable(stable.settled, stable.complete)
        if was_away_too_long(theirs, origin, compared, same_stable=stable.digest() == request.stable):
            return msgspec.msgpack.encode(
                PullEnd(encode_rows([]), nothing, 0, store.physical_ms(), stable.to_wire(), away_too_long=True)
            )
        if cursor is None and request.heeds_behind and not theirs.is_empty and request.stable != stable.digest():
            if not request.complete:
                if request.stable != Stable().digest():
                    return msgspec.msgpack.encode(PullEnd(encode_rows([]), nothing, 0, 0, tell_complete=True))
            elif _is_behind(store, stable, VersionVector.from_wire(request.complete)):
                return msgspec.msgpack.encode(PullEnd(encode_rows([]), nothing, 0, 0, is_behind=True))
        rows = encode_rows(chunk.rows)
        news = b"" if stable.digest() == told else stable.to_wire()
        told = stable.digest()
        if chunk.vector is not None:
            head = max(chunk.vector.head(origin), stable.collapsed.head(origin))
            # What was missed as many gaps is told faster by what there is now.
            vector = min(chunk.vector.without(theirs).to_wire(), chunk.vector.to_wire(), key=len)
            return msgspec.msgpack.encode(PullEnd(rows, vector, head, store.physical_ms(), news))
        await send(msgspec.msgpack.encode(PullPart(rows, news)) if request.stable else rows)
        cursor = chunk.cursor


def _is_behind(store: Store, stable: Stable, theirs: VersionVector) -> bool:
    """Whether this node may have rows whose tombstones are gone at a peer to which all of this is complete."""
    return not may_adopt(store.vector, store.origin, Stable(complete=theirs.without(stable.collapsed)))


def read_chunk(
    reader: Reader, *, theirs: VersionVector, rows_max: int, after: PullCursor | None
) -> tuple[Chunk, Stable]:
    """Rows for a peer, and what was known to be stable in the very transaction that read them."""
    return reader.rows_missing_from(theirs, rows_max=rows_max, after=after), reader.stable()


def need_snapshot(store: Store, origin: Origin, reason: str) -> bytes:
    """The answer to a pull that rows cannot or should not serve."""
    nothing = VersionVector().to_wire()
    head = max(store.vector.head(origin), store.stable.collapsed.head(origin))
    end = PullEnd(encode_rows([]), nothing, head, store.physical_ms(), need_snapshot=reason)
    return msgspec.msgpack.encode(end)


class Puller:
    """Pulls from peers that are known to be ahead, a few at a time, each peer with a back-off of its own."""

    def __init__(
        self,
        env: Env,
        store: Store,
        calls: Caller,
        *,
        address_of: Callable[[str], Address | None],
        is_there: Callable[[str], bool],
        on_started: Callable[[], int],
        on_answered: Callable[[], None],
        on_finished: Callable[[int], None],
        may_snapshot: Callable[[], bool],
        on_snapshot_needed: Callable[[str, str], None],
    ) -> None:
        """A peer that did not answer is tried again while `is_there` says that it should.

        `on_started` gives a token that `on_finished` gets back, `on_answered` is called at every part in between:
        that is how the gate hears of a pull. A peer that points to its snapshot instead, with the reason, is told to
        `on_snapshot_needed`; `may_snapshot` says whether it should when rows would do.
        """
        self._env = env
        self._store = store
        self._calls = calls
        self._address_of = address_of
        self._is_there = is_there
        self._on_started = on_started
        self._on_answered = on_answered
        self._on_finished = on_finished
        self._may_snapshot = may_snapshot
        self._on_snapshot_needed = on_snapshot_needed
        self._wanted: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._active: set[str] = set()
        self._copying = trio.Lock()
        self._offsets_ms: dict[str, int] = {}
        """How far each peer's time was ahead of ours when it last answered."""
        self.pulled_at: dict[str, float] = {}
        """When the last pull from each peer finished, on the boot-time clock."""
        self._wake = trio.Event()
        self.on_copied: Callable[[], None] = lambda: None
        """Called after a whole copy: it may have dropped rows, of which no commit tells."""
        self.pulls_total = 0
        self.rows_total = 0
        self.failures_total = 0

    def want(self, node_id: str) -> None:
        """A pull from this peer may bring news. Never blocks; repeated wishes are one."""
        if node_id not in self._wanted:
            pause_s = PAUSE_S if node_id not in self._failures else self._backoff_s(node_id)
            self._wanted[node_id] = self._env.clock.monotonic() + pause_s
            self._wake.set()

    def want_at_once(self, node_id: str) -> None:
        """The same, forgetting an earlier failure: the peer has just shown that it is there."""
        self._failures.pop(node_id, None)
        self._wanted[node_id] = self._env.clock.monotonic()
        self._wake.set()

    def _backoff_s(self, node_id: str) -> float:
        doublings = max(0, self._failures.get(node_id, 0) - 1)
        return float(min(BACKOFF_MAX_S, BACKOFF_MIN_S * (1 << min(doublings, 10))))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pull when wanted, until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                now = self._env.clock.monotonic()
                for node_id, due in list(self._wanted.items()):
                    if due <= now and node_id not in self._active and len(self._active) < PULLS_AT_ONCE_MAX:
                        del self._wanted[node_id]
                        self._active.add(node_id)
                        nursery.start_soon(self._pull_guarded, node_id)
                due_s = [due - now for node_id, due in self._wanted.items() if node_id not in self._active]
                # While no more may run, the end of one is what to wait for.
                pause_s = min(due_s, default=float("inf")) if len(self._active) < PULLS_AT_ONCE_MAX else float("inf")
                with trio.move_on_after(max(0.005, pause_s)):
                    await self._wake.wait()

    async def _pull_guarded(self, node_id: str) -> None:
        try:
            await self.pull(node_id)
            self._failures.pop(node_id, None)
        except RelayMeshError as error:
            self.failures_total += 1
            self._failures[node_id] = self._failures.get(node_id, 0) + 1
            log.info("pull from %s failed: %s", node_id, error)
            if self._is_there(node_id):
                self.want(node_id)
            else:
                del self._failures[node_id]  # when it comes back, it is wanted at once
        finally:
            self._active.discard(node_id)
            self._wake.set()

    async def pull(
        self, node_id: str, *, afresh: bool = False, tells_all: bool = False, tells_complete: bool = False
    ) -> int:
        """Pull once from this peer; returns the rows received. Raises what the call raised.

        `afresh` fetches everything that the peer has, and drops what it has no more. `tells_all`: the peer wants to
        know what is collapsed here; `tells_complete`: what is complete here. UnavailableError while the peer itself has
        to catch up by a copy first.
        """
        address = self._address_of(node_id)
        if address is None:
            return 0
        token = self._on_started()
        received = 0

        async def apply_part(data: bytes) -> None:
            nonlocal received
            self._on_answered()
            part = _part(data)
            rows = decode_rows(part.rows, limits=CHUNK_LIMITS)
            received += len(rows)
            await self._apply(rows, part.stable, copy=copy)

        origin = self._store.origin
        copy = None if not afresh else Copy(self._store)
        vector = self._store.vector if copy is None else VersionVector()
        me = (origin.node, origin.incarnation)
        may_snapshot = copy is None and self._may_snapshot()
        stable = self._store.stable
        collapsed = stable.collapsed.to_wire() if tells_all else b""
        request = PullRequest(
            vector.to_wire(),
            me,
            stable.digest(),
            may_snapshot,
            stable.collapsed_digest(),
            collapsed,
            heeds_behind=True,
            complete=stable.complete.to_wire() if tells_complete else b"",
        )
        answer = await self._calls.call(
            address, "pull", msgspec.msgpack.encode(request), expect=node_id, on_part=apply_part
        )
        end = decode(answer, PullEnd)
        if end.away_too_long:
            return await self._catch_up(node_id, Stable.from_wire(end.stable))
        if end.tell_collapsed:
            if tells_all:
                raise FrameError(f"{node_id} asks again for what it was told")
            return received + await self.pull(node_id, tells_all=True, tells_complete=tells_complete)
        if end.tell_complete:
            if tells_complete:
                raise FrameError(f"{node_id} asks again for what it was told")
            return received + await self.pull(node_id, tells_all=tells_all, tells_complete=True)
        if end.is_behind:
            raise UnavailableError(f"{node_id} was away for too long, and takes a copy before it has news")
        if end.need_snapshot:
            self._on_answered()
            self._on_snapshot_needed(node_id, end.need_snapshot)
            return received
        if origin == self._store.origin and end.known_of_you > self._store.vector.head(origin):
            # Somebody was told more by us than we remember: our disk lost a tail. Those numbers must never be reused.
            await self._store.mint_origin(f"{node_id} knows more of this node than its own database does")
        rows = decode_rows(end.rows, limits=CHUNK_LIMITS)
        received += len(rows)
        await self._apply(rows, end.stable, VersionVector.from_wire(end.vector), copy=copy)
        self._keep_time(node_id, end.physical_ms)
        self.pulled_at[node_id] = self._env.clock.monotonic()
        self.pulls_total += 1
        self.rows_total += received
        self._on_finished(token)
        return received

    async def _catch_up(self, node_id: str, stable: Stable) -> int:
        """Pull again from a peer that said that news would not do: all rows, if that is still so when it is our turn.

        One copy at a time: what the first brought mostly saves the others, which every peer asks for at once.
        """
        async with self._copying:
            # The request may be older than what the peer has learned meanwhile, our own answer among it.
            if not self._store.may_adopt(stable):
                log.warning("this node was away for too long to catch up by news: it copies all rows of %s", node_id)
                received = await self.pull(node_id, afresh=True)
                self.on_copied()
                return received
        await self._store.adopt(stable)
        return await self.pull(node_id)

    def offset_ms(self, node_id: str) -> int | None:
        """How far this peer's time was ahead of ours when it last answered a pull; None when it never did."""
        return self._offsets_ms.get(node_id)

    def offsets_ms(self, nodes: Iterable[str]) -> list[int]:
        """The same of each of these that ever answered one."""
        return [self._offsets_ms[node] for node in nodes if node in self._offsets_ms]

    def _keep_time(self, node_id: str, their_ms: int) -> None:
        """Compare clocks with a peer that just answered, and follow the host's date where the peers agree with it.

        A host without a clock chip starts in 1970 and may never learn better: when the peers' median is further ahead
        than a stamp may be, this node follows the median instead. Forward only, and stamps never go back anyway.
        """
        clock, now = self._store.physical_clock, self._env.clock.monotonic()
        ours_ms = clock.now_ms(now)
        self._offsets_ms[node_id] = their_ms - ours_ms
        median_ms = ours_ms + int(statistics.median(self._offsets_ms.values()))
        moved_ms = 0
        if clock.reanchor(int(self._env.clock.wall() * 1000), now, median_ms):
            moved_ms = clock.now_ms(now) - ours_ms
        elif median_ms - ours_ms > DRIFT_MAX_MS:
            clock.reanchor(median_ms, now, None)
            moved_ms = median_ms - ours_ms
            log.warning("this host's date is wrong: its stamps follow the peers' median, %d s ahead", moved_ms // 1000)
        for peer in self._offsets_ms:
            self._offsets_ms[peer] -= moved_ms

    async def _apply(
        self, rows: list[Row], stable: bytes, vector: VersionVector | None = None, *, copy: Copy | None
    ) -> None:
        known = Stable.from_wire(stable) if stable else None
        if copy is not None:
            await copy.add(rows, known, vector)
            return
        if known is not None:
            await self._store.adopt(known)
        # A chunk holds whole requests, so it is applied whole.
        if rows or (vector is not None and self._store.lacks(vector)):
            await self._store.write(partial(_merge_all, rows=rows, vector=vector), remote=True, rows=len(rows))


def _part(data: bytes) -> PullPart:
    # A release that knows of no stable vectors sends the rows alone: an array, where ours is a map.
    return decode(data, PullPart) if data[:1] in _MAPS else PullPart(data)


_MAPS = tuple(bytes([0x80 + size]) for size in range(16))


def _merge_all(tx: Transaction, *, rows: list[Row], vector: VersionVector | None) -> None:
    for row in rows:
        tx.merge(row)
    if vector is not None:
        tx.join(vector)

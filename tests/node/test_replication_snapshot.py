"""Filling a node by a peer's database: what is served, what is checked, what survives a broken stream."""

from __future__ import annotations

from typing import Any, cast

import apsw
import msgspec
import pytest
import trio
import trio.testing

from mesh.errors import FrameError, NotFoundError, StoreError, UnavailableError
from mesh.ids import Address, Origin
from mesh.stability import Stable
from mesh.version_vector import VersionVector
from node.replication import bootstrap, snapshot
from node.replication.bootstrap import REFUSED_S, Bootstrap
from node.replication.pull import PullEnd, PullRequest, serve_pull
from node.replication.snapshot import Chunk, ChunkRequest, SnapshotDonor, SnapshotOffer, SnapshotWish, is_far_behind
from node.storage.adoption import prepare_copy
from node.storage.migrate import load_migrations
from tests.node.conftest import STORE_TABLES

SOMEWHERE = Address("donor", 1)


class Line:
    """Calls a donor in this process; `breaks_after` parts once, and `altered` changes one chunk."""

    def __init__(self, donor: SnapshotDonor) -> None:
        self.donor = donor
        self.breaks_after: int | None = None
        self.altered = False
        self.offsets: list[int] = []
        self.offers = 0

    async def call(self, address, verb, body, *, expect, on_part=None):
        if verb == "snapshot-offer":
            self.offers += 1
            return await self.donor.handle_offer(body)
        self.offsets.append(msgspec.msgpack.decode(body, type=ChunkRequest).offset)
        sent = 0

        async def send(part: bytes) -> None:
            nonlocal sent
            if sent == self.breaks_after:
                self.breaks_after = None
                raise UnavailableError("the stream broke")
            sent += 1
            if self.altered:
                self.altered = False
                chunk = msgspec.msgpack.decode(part, type=Chunk)
                part = msgspec.msgpack.encode(Chunk(chunk.data[:-1] + b"!", chunk.digest))
            await on_part(part)

        return await self.donor.handle_chunks(body, send)


class Pair:
    """A donor with rows, and an empty node that can be filled."""

    def __init__(self, source, target) -> None:
        self.source, self.target = source, target
        self.donor = SnapshotDonor(source._env, source)
        self.line = Line(self.donor)
        self.adopted: list[str] = []
        self.bootstrap = Bootstrap(
            target._env,
            target,
            cast(Any, self.line),
            address_of=lambda _peer: SOMEWHERE,
            on_answered=lambda: None,
            on_adopted=self.adopted.append,
            heed=lambda _ours, _theirs: [],
        )

    async def fill(self, *, ordered: bool = False) -> None:
        """Ask for the donor's snapshot and wait until it is adopted or given up."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.donor.run)
            nursery.start_soon(self.bootstrap.run)
            await trio.testing.wait_all_tasks_blocked()
            if ordered:
                self.bootstrap.asked_for("donor")
            else:
                self.bootstrap.required("donor", "a test")
            with trio.fail_after(60):
                while self.bootstrap.is_wanted:  # noqa: ASYNC110 - its end tells nobody
                    await trio.sleep(0.2)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def pair(make_world, monkeypatch):
    for module in (snapshot, bootstrap):
        monkeypatch.setattr(module, "READ_BYTES", 2 * snapshot.CHUNK_BYTES)
    async with make_world("a").opened() as source, make_world("b").opened("node-b") as target:
        for number in range(40):
            await source.write(lambda tx, n=number: tx.put("notes", "default", f"{n:03}", {"text": "x" * 9_000}))
        yield Pair(source, target)


async def keys(store) -> list[str]:
    return await store.read(lambda reader: [row.key for row in reader.select("notes", order="key")])


@pytest.mark.parametrize("fails", ["free_bytes", "open", "read"])
async def test_a_donor_whose_disk_fails_says_so_and_keeps_nothing(pair, autojump_clock, monkeypatch, fails):
    def broken(*_: object) -> None:
        raise StoreError("no") if fails == "free_bytes" else apsw.IOError("no")

    if fails == "free_bytes":
        monkeypatch.setattr(pair.source._env.disk, "free_bytes", broken)
    elif fails == "open":
        monkeypatch.setattr(snapshot.CopyFile, "__init__", broken)
    else:
        monkeypatch.setattr(snapshot.CopyFile, "read", broken)
    with pytest.raises(StoreError):
        await pair.donor.handle_offer(msgspec.msgpack.encode(SnapshotWish()))
    if fails == "read":
        assert not pair.donor._path.exists()


async def test_a_filled_node_has_all_that_both_had_and_its_own_rows_keep_their_names(pair, autojump_clock):
    mine = await pair.target.write(lambda tx: tx.put("notes", "default", "mine", {"text": "only here"}))
    await pair.fill()
    assert await keys(pair.target) == [*(f"{number:03}" for number in range(40)), "mine"]
    assert not pair.target.vector.missing_from(pair.source.vector)
    kept = await pair.target.read(lambda reader: reader.get("notes", "default", "mine"))
    assert (kept.origin, kept.seq) == (mine.origin, mine.seq)
    assert pair.target.origin.node == "node-b"
    assert pair.target.origin not in (mine.origin, pair.source.origin)


async def test_a_snapshot_that_brings_nothing_new_is_thrown_away_unless_an_operator_asked_for_it(pair, autojump_clock):
    rows = await pair.source.read(lambda reader: reader.select("notes"))
    await pair.target.write(lambda tx: [tx.merge(row) for row in rows], remote=True, rows=len(rows))
    origin = pair.target.origin
    await pair.fill()
    assert pair.adopted == []
    assert pair.target.origin == origin
    assert not pair.target.path.with_name("relaymesh.db.part").exists()
    assert not pair.bootstrap.is_possible  # the donor would send the same copy for ever: rows are pulled instead
    await pair.fill(ordered=True)
    assert pair.adopted == ["donor"]
    assert pair.target.origin != origin


async def test_the_greater_version_of_a_row_stays_whichever_database_it_was_in(pair, autojump_clock):
    old = await pair.target.write(lambda tx: tx.put("notes", "default", "both", {"text": "older"}))
    await trio.sleep(1)
    await pair.source.write(lambda tx: tx.put("notes", "default", "both", {"text": "newer"}))
    await trio.sleep(1)
    await pair.target.write(lambda tx: tx.put("notes", "default", "000", {"text": "newest"}))
    await pair.fill()
    both, first = await pair.target.read(
        lambda reader: [reader.get("notes", "default", key).text("text") for key in ("both", "000")]
    )
    assert (both, first) == ("newer", "newest")
    assert pair.target.vector.covers(old.origin, old.seq)


async def test_a_row_that_was_put_aside_stays_aside(pair, autojump_clock):
    def reject(_tx, _before, after):
        assert after.values.get("text") != "poison"

    pair.target.watch("notes", reject)
    good = (await pair.source.read(lambda reader: reader.select("notes", limit=1)))[0]
    poison = msgspec.structs.replace(good, key="poison", origin=Origin("evil", 1), seq=1, values={"text": "poison"})
    assert await pair.target.write(lambda tx: tx.merge(poison), remote=True) == "quarantined"
    await pair.fill()
    assert await keys(pair.target) == [f"{number:03}" for number in range(40)]
    aside = await pair.target.read(lambda reader: reader.sql("SELECT key, reason FROM quarantine"))
    assert aside == [("poison", "rejected")]
    assert pair.target.vector.covers(Origin("evil", 1), 1)


async def test_after_a_broken_stream_only_the_rest_is_asked_for(pair, autojump_clock):
    pair.line.breaks_after = 5
    await pair.fill()
    assert pair.adopted == ["donor"]
    first, second = pair.line.offsets
    assert (first, second) == (0, 4 * snapshot.CHUNK_BYTES)
    assert pair.donor.made_total == 1


async def test_an_altered_chunk_is_refused_and_asked_for_again(pair, autojump_clock):
    pair.line.altered = True
    await pair.fill()
    assert pair.adopted == ["donor"]
    assert pair.line.offsets == [0, 0]


async def test_a_snapshot_of_a_newer_release_is_left_alone_and_rows_are_pulled(pair, autojump_clock):
    await pair.source.write(
        lambda tx: tx.execute("INSERT INTO schema_migrations VALUES (99, 'from the future', 'x', 1, 1)")
    )
    origin = pair.target.origin
    await pair.fill()
    assert not pair.adopted
    assert not pair.bootstrap.is_possible
    assert (pair.target.origin, await keys(pair.target)) == (origin, [])
    await trio.sleep(REFUSED_S)
    assert pair.bootstrap.is_possible
    assert sorted(path.name for path in pair.target.path.parent.iterdir() if "part" in path.name) == []


async def test_a_donor_deletes_its_copy_when_nobody_asks_any_more(pair, autojump_clock):
    root = pair.source.path.parent
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.donor.run)
        offer = msgspec.msgpack.decode(await pair.donor.handle_offer(wish()), type=SnapshotOffer)
        assert (root / "relaymesh.db.snapshot").stat().st_size == offer.bytes
        await trio.sleep(snapshot.KEEP_S + 1)
        assert not (root / "relaymesh.db.snapshot").exists()
        nursery.cancel_scope.cancel()
    with pytest.raises(NotFoundError, match="ask for an offer again"):
        await pair.donor.handle_chunks(msgspec.msgpack.encode(ChunkRequest(offer.id, 0)), cast(Any, None))


async def test_peers_share_one_copy_until_one_says_that_it_was_not_enough(pair):
    first = await pair.donor.handle_offer(wish())
    assert await pair.donor.handle_offer(wish()) == first
    await pair.source.write(lambda tx: tx.put("notes", "default", "later", {}))
    done = msgspec.msgpack.decode(first, type=SnapshotOffer).id
    assert await pair.donor.handle_offer(wish(done)) != first
    assert pair.donor.made_total == 2


@pytest.mark.parametrize("body", [b"", b"\xc1", msgspec.msgpack.encode([1, 2])])
async def test_nonsense_is_one_clear_error(pair, body):
    with pytest.raises(FrameError):
        await pair.donor.handle_offer(body)
    with pytest.raises(FrameError):
        await pair.donor.handle_chunks(body, cast(Any, None))


def wish(done: str = "") -> bytes:
    return msgspec.msgpack.encode(SnapshotWish(done))


async def test_a_store_goes_on_committing_while_it_is_copied(make_world):
    async with make_world("a", threads=True).opened() as source:
        await source.write(
            lambda tx: [tx.put("notes", "default", f"{n:04}", {"text": "x" * 3_000}) for n in range(900)]
        )
        written: list[str] = []
        async with trio.open_nursery() as nursery:

            async def go_on_writing() -> None:
                while True:
                    key = f"new-{len(written):04}"
                    await source.write(lambda tx, key=key: tx.put("notes", "default", key, {}))
                    written.append(key)

            nursery.start_soon(go_on_writing)
            before = len(written)
            copy = source.path.with_name("copy")
            await source.copy_to(copy)
            assert len(written) > before
            nursery.cancel_scope.cancel()
        prepare_copy(copy, "", STORE_TABLES, load_migrations()[:1], now_ms=1)
        connection = apsw.Connection(str(copy))
        assert connection.execute("SELECT count(*) FROM notes WHERE key < 'new'").get == 900
        connection.close()


async def test_a_killed_process_leaves_no_copy_open(make_world):
    store = make_world("a").store()
    await store.open()
    copy = store._writer.begin_copy(store.path.with_name("copy"))
    store.abandon()
    assert copy.is_over
    with pytest.raises(apsw.ConnectionClosedError):
        copy.finish()


def vector(**heads: int) -> VersionVector:
    return VersionVector({Origin(node, 1): [(1, head)] for node, head in heads.items()})


def test_far_behind_is_many_rows_and_a_large_share_of_all():
    everything = vector(a=1_000, b=1_000)
    assert is_far_behind(everything, vector(a=1_000), rows_min=1_000)
    assert not is_far_behind(everything, vector(a=1_000), rows_min=1_001)
    assert not is_far_behind(everything, vector(a=1_000, b=500), rows_min=100)
    assert not is_far_behind(VersionVector(), vector(a=9), rows_min=1)


@pytest.mark.parametrize(("able", "rows_min", "pointed"), [(True, 40, True), (True, 41, False), (False, 1, False)])
async def test_a_pull_points_to_a_snapshot_only_who_lacks_much_and_can_take_it(pair, able, rows_min, pointed):
    parts: list[bytes] = []

    async def send(part: bytes) -> None:
        parts.append(part)

    request = PullRequest(VersionVector().to_wire(), ("node-b", 1), snapshots=able)
    answer = await serve_pull(pair.source, msgspec.msgpack.encode(request), send, snapshot_rows_min=rows_min)
    end = msgspec.msgpack.decode(answer, type=PullEnd)
    assert bool(end.need_snapshot) is pointed
    assert (VersionVector.from_wire(end.vector) == VersionVector()) is pointed


async def test_who_was_away_for_too_long_gives_no_news_before_it_took_a_copy(pair):
    theirs = VersionVector({Origin("node-b", 1): [(1, 1)]})
    stable = Stable(complete=VersionVector({Origin("node-c", 1): [(1, 9)]}))
    await pair.source.write(lambda tx: tx.join(VersionVector({Origin("node-c", 1): [(1, 3)]})), remote=True)
    parts: list[bytes] = []

    async def send(part: bytes) -> None:
        parts.append(part)

    async def ask(**more) -> PullEnd:
        request = PullRequest(theirs.to_wire(), ("node-b", 1), stable.digest(), **more)
        answer = await serve_pull(pair.source, msgspec.msgpack.encode(request), send, snapshot_rows_min=None)
        return msgspec.msgpack.decode(answer, type=PullEnd)

    assert (await ask(heeds_behind=True)).tell_complete
    assert (await ask(heeds_behind=True, complete=stable.complete.to_wire())).is_behind
    assert parts == []
    covered = await ask(heeds_behind=True, complete=VersionVector().to_wire())
    assert not covered.is_behind
    assert VersionVector.from_wire(covered.vector).head(pair.source.origin)
    of_an_older_release = await ask()
    assert not of_an_older_release.tell_complete

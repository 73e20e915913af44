"""Pulls: whole requests in order, and a vector that never claims more than what was sent."""

from __future__ import annotations

import random

from mesh.ids import Origin
from mesh.rows import Row
from mesh.version_vector import VersionVector


async def write_requests(store, sizes):
    """One request per size, its rows spread over two tables."""
    for number, size in enumerate(sizes):

        def request(tx, number=number, size=size):
            for index in range(size):
                tx.put(("notes", "jobs")[index % 2], "default", f"r{number}-{index}", {})

        await store.write(request)


async def pull(source, vector, *, rows_max, between=None):
    """All chunks of one pull, with `between()` awaited after each."""
    chunks, cursor = [], None
    while True:
        chunk = await source.read(
            lambda reader, cursor=cursor: reader.rows_missing_from(vector, rows_max=rows_max, after=cursor)
        )
        chunks.append(chunk)
        cursor = chunk.cursor
        assert (cursor is None) == (chunk.vector is not None)
        if cursor is None:
            return chunks
        if between is not None:
            await between()


async def apply(store, chunks):
    for chunk in chunks:

        def merge(tx, chunk=chunk):
            for row in chunk.rows:
                tx.merge(row)
            if chunk.vector is not None:
                tx.join(chunk.vector)

        await store.write(merge, remote=True, rows=len(chunk.rows))


async def test_chunks_hold_whole_requests_in_order(world):
    async with world.opened() as store:
        await write_requests(store, [1, 3, 2, 5, 1, 1])

        chunks = await pull(store, VersionVector(), rows_max=2)

        # A chunk is full at 2 rows but ends only where a request does; a request of 5 goes whole.
        assert [[row.seq for row in chunk.rows] for chunk in chunks] == [
            [1, 2, 3, 4],
            [5, 6],
            [7, 8, 9, 10, 11],
            [12, 13],
        ]
        assert chunks[-1].vector == store.vector


async def test_only_what_is_missing_is_sent(world):
    async with world.opened() as store:
        await write_requests(store, [1] * 10)
        known = VersionVector({store.origin: [(1, 3), (6, 8)]})

        chunks = await pull(store, known, rows_max=100)

        assert [row.seq for chunk in chunks for row in chunk.rows] == [4, 5, 9, 10]
        assert [len(chunk.rows) for chunk in await pull(store, store.vector, rows_max=100)] == [0]


async def test_a_chunk_also_ends_by_bytes(world):
    async with world.opened() as store:
        for number in range(4):
            await store.write(lambda tx, n=number: tx.put("notes", "default", f"k{n}", {"body": bytes(10_000)}))

        chunk = await store.read(
            lambda reader: reader.rows_missing_from(VersionVector(), rows_max=100, bytes_max=15_000)
        )

        assert len(chunk.rows) == 2


async def test_an_empty_store_answers_with_an_empty_last_chunk(world):
    async with world.opened() as store:
        chunks = await pull(store, VersionVector({Origin("x", 1): [(1, 5)]}), rows_max=10)

        assert [(chunk.rows, chunk.vector) for chunk in chunks] == [([], store.vector)]


async def test_rows_overwritten_during_a_pull_arrive_in_their_new_form(make_world):
    """The last vector covers the old dots, so without their successors the receiver would miss them for ever."""
    async with make_world("a").opened() as source, make_world("b").opened("node-b") as target:
        await write_requests(source, [1] * 6)
        late = [f"r{number}-0" for number in (5, 4, 3)]

        async def overwrite():
            if late:
                key = late.pop()
                await source.write(lambda tx: tx.put("notes", "default", key, {"text": "new"}))

        chunks = await pull(source, target.vector.copy(), rows_max=2, between=overwrite)
        await apply(target, chunks)

        assert not late
        assert target.vector == source.vector
        assert await target.read(lambda reader: reader.sums()) == await source.read(lambda reader: reader.sums())


async def test_pulls_under_writes_of_several_nodes_never_lose_a_row(make_world):
    """Random writes everywhere and pulls in all directions, each pull disturbed by further writes and merges."""
    rng = random.Random(11)
    worlds = [make_world(name) for name in "abc"]
    async with (
        worlds[0].opened("node-a") as a,
        worlds[1].opened("node-b") as b,
        worlds[2].opened("node-c") as c,
    ):
        stores = [a, b, c]

        async def write_somewhere(store):
            key = f"k{rng.randrange(8)}"
            await store.write(lambda tx: [tx.put("notes", "default", f"{key}-{n}", {"size": 1}) for n in range(2)])

        async def sync(source, target, depth=0):
            async def disturb():
                await write_somewhere(source)
                if depth == 0 and rng.random() < 0.3:
                    await sync(rng.choice([each for each in stores if each is not source]), source, 1)

            await apply(target, await pull(source, target.vector.copy(), rows_max=3, between=disturb))

        for _ in range(25):
            await write_somewhere(rng.choice(stores))
            source, target = rng.sample(stores, 2)
            await sync(source, target)
            if source.vector == target.vector:
                assert await source.read(lambda r: r.sums()) == await target.read(lambda r: r.sums())
        for source, target in ((a, b), (b, c), (c, a), (a, b), (b, c), (c, a)):
            await apply(target, await pull(source, target.vector.copy(), rows_max=1_000))

        assert a.vector == b.vector == c.vector
        sums = [await store.read(lambda reader: reader.sums()) for store in stores]
        assert sums[0] == sums[1] == sums[2]
        for store in stores:
            assert await store.read(lambda reader: reader.vector()) == store.vector


async def test_quarantined_rows_are_handed_on(make_world):
    """The next node may know the table, and nobody else would be asked for a dot that counts as seen here."""
    origin = Origin("node-z", 1)
    row = Row(
        table="of_tomorrow", namespace="default", key="k", hlc=5, node="node-z", origin=origin, seq=1, values={"x": 1}
    )
    async with make_world("a").opened() as store:
        await store.write(lambda tx: tx.merge(row), remote=True)

        chunks = await pull(store, VersionVector(), rows_max=10)

        assert chunks[-1].rows == [row]
        assert await store.read(lambda reader: reader.rows_in_range(origin, 1, 9)) == [row]

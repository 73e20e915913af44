"""Origins of former processes: they leave the vectors once no row is left of them, and nothing is lost by it."""

from __future__ import annotations

import msgspec
import pytest

from mesh.ids import Origin
from mesh.rows import Row
from mesh.stability import Stable
from mesh.version_vector import VersionVector
from node.replication import stability_rounds
from tests.node.simulated_env import simulated_world

ALL = {"doneRetentionMs": 0, "deadRetentionMs": 0}
OLD = Origin("node-b", 7)


@pytest.fixture
async def mesh(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


def origins(host) -> list[Origin]:
    return host.node.store.vector.origins()


async def live(world, host, lives: int) -> None:
    """Work under several origins in turn, all of it deleted afterwards."""
    for _ in range(lives):
        await host.node.store.mint_origin("a test")
        await host.wait(await host.submit(input="x"))
    await world.until(world.agree)
    await host.admin("purge", **ALL)


async def test_after_a_purge_the_vectors_are_as_short_as_before(mesh, autojump_clock):
    a, b, c = hosts = [mesh.host(name) for name in "abc"]
    await mesh.up()
    before = len(origins(a))
    await live(mesh, a, 8)
    assert len(origins(b)) > before + 6
    await mesh.until(lambda: all(len(origins(host)) <= before + 1 for host in hosts), 900.0)
    await mesh.until(mesh.agree, 300.0)
    for host in hosts:
        assert host.node.store.vector == await host.node.store.read(lambda reader: reader.vector())
    assert (await a.wait(await c.submit(input="after")))["status"] == "SUCCESS"
    await b.crash()
    await b.start()
    await mesh.until(mesh.agree)
    assert len(origins(b)) <= before + 2


async def test_without_a_deletion_many_old_origins_are_worth_a_round(mesh, autojump_clock, monkeypatch):
    monkeypatch.setattr(stability_rounds, "OLD_ORIGINS_MAX", 4)
    a, b = [mesh.host(name) for name in "ab"]
    await mesh.up()
    await mesh.until(mesh.agree)
    assert a.node.stability.rounds_total == b.node.stability.rounds_total == 0
    for _ in range(6):  # each writes one row over what the one before wrote
        await a.node.store.mint_origin("a test")
        await a.admin("cluster-epoch-bump", reason="a test")
    await mesh.until(mesh.agree)
    await mesh.until(lambda: len(origins(a)) <= 5 and len(origins(b)) <= 5, 900.0)


async def test_nodes_that_have_collapsed_other_dots_pull_from_each_other_all_the_same(mesh, autojump_clock):
    a, b = [mesh.host(name) for name in "ab"]
    await mesh.up()
    for host, number in ((a, 1), (b, 2)):
        for node in (a, b):
            await node.node.store.write(lambda tx, n=number: tx.mark(Origin("gone", n), 1, 9))
        await host.node.store.adopt(Stable(collapsed=VersionVector({Origin("gone", number): [(1, 9)]})))
    mesh.network.cut("a", "b")
    tasks = [await a.submit(input="from a"), await b.submit(input="from b")]
    mesh.network.heal()
    await mesh.until(mesh.agree, 120.0)
    for host in (a, b):
        assert {row.key for row in await host.rows("tasks")} >= set(tasks)
        assert [origin for origin in origins(host) if origin.node == "gone"] == []
        assert host.node.store.stable.collapsed.covers(Origin("gone", 1), 9)
        assert host.node.store.stable.collapsed.covers(Origin("gone", 2), 9)


def old_row(seq: int) -> Row:
    return Row(
        table="notes", namespace="default", key="n", hlc=1000 + seq, node="node-b", origin=OLD, seq=seq, values={}
    )


@pytest.fixture
async def store(world):
    async with world.opened() as store:
        await store.write(lambda tx: tx.mark(OLD, 1, 5))
        await store.adopt(Stable(collapsed=VersionVector({OLD: [(1, 5)]})))
        yield store


async def test_a_late_copy_of_a_collapsed_version_changes_nothing(store):
    assert await store.write(lambda tx: tx.merge(old_row(3))) == "stale"
    assert await store.read(lambda reader: reader.get("notes", "default", "n")) is None
    assert OLD not in store.vector.origins()


async def test_a_later_version_of_a_collapsed_origin_is_news(store):
    assert await store.write(lambda tx: tx.merge(old_row(6))) == "applied"
    assert store.vector.ranges(OLD) == [(6, 6)]
    assert store.vector == await store.read(lambda reader: reader.vector())


async def test_a_peers_vector_brings_back_what_is_not_collapsed_only(store):
    theirs = VersionVector({OLD: [(1, 8)]})
    assert store.lacks(theirs)
    await store.write(lambda tx: tx.join(theirs))
    assert store.vector.ranges(OLD) == [(6, 8)]
    assert not store.lacks(theirs)


async def test_what_is_collapsed_is_so_after_a_restart_and_an_undone_request_collapses_nothing(world):
    async with world.opened() as store:
        await store.write(lambda tx: tx.mark(OLD, 1, 5))

        def fail(tx):
            tx.adopt(Stable(collapsed=VersionVector({OLD: [(1, 5)]})))
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await store.write(fail)
        assert store.vector.ranges(OLD) == [(1, 5)]
        assert store.stable == Stable()
        await store.adopt(Stable(collapsed=VersionVector({OLD: [(1, 4)]})))
        assert store.vector.ranges(OLD) == [(5, 5)]
    async with world.opened() as store:
        assert store.vector.ranges(OLD) == [(5, 5)]
        assert store.stable.collapsed.ranges(OLD) == [(1, 4)]


async def test_an_origin_that_peers_take_for_an_old_one_is_not_written_under_any_more(store):
    row = await store.write(lambda tx: tx.put("notes", "default", "x", {}))
    await store.write(lambda tx: tx.adopt(Stable(collapsed=VersionVector({row.origin: [(1, row.seq)]}))))
    later = await store.write(lambda tx: tx.put("notes", "default", "y", {}))
    assert later.origin != row.origin


async def test_a_peer_says_which_candidates_it_has_no_row_of(store):
    kept = await store.write(lambda tx: tx.merge(msgspec.structs.replace(old_row(1), origin=Origin("node-c", 1))))
    assert kept == "applied"
    await store.write(lambda tx: tx.mark(Origin("node-d", 1), 1, 1))
    candidates = [("node-c", 1), ("node-d", 1), tuple(store.origin), ("unknown", 1)]
    body = msgspec.msgpack.encode(stability_rounds.VectorRequest(Stable().to_wire(), candidates))
    answer = msgspec.msgpack.decode(
        await stability_rounds.serve_vector(store, body), type=stability_rounds.VectorAnswer
    )
    assert answer.empty == [("node-d", 1)]

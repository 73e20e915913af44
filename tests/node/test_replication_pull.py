"""Pulling rows: a vector never runs ahead of its rows, breaks cost nothing, and no peer is asked too often."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import msgspec
import pytest
import trio

from mesh.errors import UnavailableError
from mesh.hlc import DRIFT_MAX_MS
from mesh.ids import Address
from node.env import PeerIdentity
from node.replication import pull as pulling
from node.replication.pull import BACKOFF_MAX_S, PAUSE_S, PULLS_AT_ONCE_MAX, PullEnd, Puller, serve_pull
from node.streams.rpc import RpcPool
from node.streams.rpc_messages import SILENCE_S

SOMEWHERE = Address("b.test", 1)


class Peer:
    """Serves pulls of one store directly. It breaks off after `parts_max` parts, and `changes` its last word."""

    def __init__(self, store) -> None:
        self.store = store
        self.parts_max: int | None = None
        self.changes: dict[str, Any] = {}
        self.parts = 0

    async def call(self, address, verb, body, *, expect, on_part):
        assert (address, verb) == (SOMEWHERE, "pull")
        self.parts = 0

        async def send(part: bytes) -> None:
            if self.parts == self.parts_max:
                raise UnavailableError("the link broke")
            self.parts += 1
            await on_part(part)

        answer = await serve_pull(self.store, body, send, snapshot_rows_min=10_000)
        if self.parts_max is not None:
            raise UnavailableError("the link broke before the last word")
        end = msgspec.msgpack.decode(answer, type=PullEnd)
        return msgspec.msgpack.encode(msgspec.structs.replace(end, **self.changes))


def puller_of(store, calls, told: list[Any] | None = None, *, is_there=lambda _node: True) -> Puller:
    told = [] if told is None else told
    return Puller(
        store._env,
        store,
        cast(Any, calls),
        address_of=lambda node: None if node == "nowhere" else SOMEWHERE,
        is_there=is_there,
        on_started=lambda: told.append("started") or 7,
        on_answered=lambda: told.append("answered"),
        on_finished=told.append,
        may_snapshot=lambda: False,
        on_snapshot_needed=lambda _peer, reason: told.append(reason),
    )


@pytest.fixture
async def pair(make_world, monkeypatch):
    """Six requests of two rows each at the source, which travel one at a time, and an empty target."""
    monkeypatch.setattr(pulling, "CHUNK_ROWS_MAX", 2)
    async with make_world("a").opened() as source, make_world("b").opened("node-b") as target:
        for number in range(6):
            await source.write(lambda tx, n=number: [tx.put("notes", "default", f"{n}-{i}", {}) for i in range(2)])
        yield source, target


async def sums(store):
    return await store.read(lambda reader: reader.sums())


async def keys(store) -> set[str]:
    return {row.key for row in await store.read(lambda reader: reader.select("notes", "1"))}


async def test_one_pull_brings_every_row_and_tells_the_gate_of_each_part(pair):
    source, target = pair
    told: list[Any] = []
    puller = puller_of(target, Peer(source), told)

    assert await puller.pull("node-a") == 12

    assert target.vector == source.vector
    assert await sums(target) == await sums(source)
    assert told == ["started", *["answered"] * (len(told) - 2), 7]
    assert told.count("answered") >= 5
    assert (puller.pulls_total, puller.rows_total) == (1, 12)


@pytest.mark.parametrize("parts", [0, 1, 4, 6])
async def test_a_break_leaves_whole_requests_and_a_vector_of_these_rows_only(pair, parts):
    source, target = pair
    peer = Peer(source)
    told: list[Any] = []
    puller = puller_of(target, peer, told)
    peer.parts_max = parts

    with pytest.raises(UnavailableError):
        await puller.pull("node-a")

    arrived = await keys(target)
    assert len(arrived) == 2 * peer.parts
    assert {key.split("-")[0] for key in arrived} == {str(number) for number in range(peer.parts)}
    covered = sum(hi - lo + 1 for lo, hi in target.vector.ranges(source.origin))
    assert covered == len(arrived)
    assert 7 not in told  # the gate does not open on half an answer
    peer.parts_max = None
    assert await puller.pull("node-a") == 12 - len(arrived)
    assert target.vector == source.vector


async def test_who_is_told_that_its_disk_lost_a_tail_never_uses_those_numbers_again(pair):
    source, target = pair
    await target.write(lambda tx: tx.put("notes", "default", "mine", {}))
    old, peer = target.origin, Peer(source)

    peer.changes = {"known_of_you": 1}
    await puller_of(target, peer).pull("node-a")
    assert target.origin == old

    peer.changes = {"known_of_you": 2}
    await puller_of(target, peer).pull("node-a")
    assert target.origin != old
    row = await target.write(lambda tx: tx.put("notes", "default", "again", {}))
    assert (row.origin, row.seq) == (target.origin, 1)


async def test_equal_replicas_write_nothing_and_a_peer_without_an_address_is_not_asked(pair):
    source, target = pair
    puller = puller_of(target, Peer(source))
    await puller.pull("node-a")
    commits = target.counters()["commits"]

    assert await puller.pull("node-a") == 0
    assert await puller.pull("nowhere") == 0
    assert target.counters()["commits"] == commits


@pytest.mark.parametrize(("ahead_ms", "follows"), [(DRIFT_MAX_MS, False), (DRIFT_MAX_MS + 5_000, True)])
async def test_a_host_with_a_wrong_date_follows_its_peers_and_a_near_one_its_own(pair, ahead_ms, follows):
    source, target = pair
    peer = Peer(source)
    ours_ms = target.physical_ms()
    peer.changes = {"physical_ms": ours_ms + ahead_ms}

    await puller_of(target, peer).pull("node-a")

    assert (target.physical_ms() - ours_ms > DRIFT_MAX_MS) is follows


class Scripted:
    """Notes when each peer is asked; answers like an equal replica, fails, or hangs."""

    def __init__(self, store) -> None:
        self.peer = Peer(store)
        self.fails = False
        self.hangs = False
        self.asked: list[tuple[str, float]] = []

    async def call(self, address, verb, body, **more):
        self.asked.append((more["expect"], trio.current_time()))
        if self.fails:
            raise UnavailableError("nobody")
        if self.hangs:
            await trio.sleep_forever()
        return await self.peer.call(address, verb, body, **more)

    def pauses(self) -> list[float]:
        times = [at for _, at in self.asked]
        return [round(later - earlier, 2) for earlier, later in pairwise(times)]


async def test_a_peer_that_fails_is_asked_less_and_less_and_at_once_when_it_shows_itself(pair, nursery, autojump_clock):
    source, target = pair
    calls = Scripted(source)
    puller = puller_of(target, calls)
    await nursery.start(puller.run)
    calls.fails = True

    puller.want("node-a")
    await trio.sleep(100)
    assert calls.pauses() == [1.0, 2.0, 4.0, 8.0] + [BACKOFF_MAX_S] * 5
    assert puller.failures_total == len(calls.asked)

    calls.fails = False
    before = len(calls.asked)
    puller.want_at_once("node-a")
    await trio.sleep(60)
    assert len(calls.asked) == before + 1
    nursery.cancel_scope.cancel()


class NoPower:
    """Connects to a host that takes every byte, loses its power, and never says anything again."""

    peer = PeerIdentity("node", "node-a", 1)

    async def connect(self, address):
        await trio.lowlevel.checkpoint()
        return self

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes):
        await trio.sleep_forever()

    async def aclose(self):
        await trio.lowlevel.checkpoint()


async def test_a_peer_that_lost_its_power_during_a_pull_is_given_up_like_any_silent_one(pair, autojump_clock):
    _, target = pair
    puller = puller_of(target, RpcPool(cast(Any, NoPower()), b"cluster1"))
    with pytest.raises(UnavailableError, match="sent no byte for 10 s"):
        await puller.pull("node-a")
    assert trio.current_time() == pytest.approx(SILENCE_S, abs=0.1)


async def test_a_peer_that_is_gone_is_not_asked_again(pair, nursery, autojump_clock):
    source, target = pair
    calls = Scripted(source)
    calls.fails = True
    puller = puller_of(target, calls, is_there=lambda _node: False)
    await nursery.start(puller.run)

    puller.want("node-a")
    await trio.sleep(100)

    assert len(calls.asked) == 1
    nursery.cancel_scope.cancel()


async def test_many_wishes_are_one_pull_and_few_pulls_run_at_a_time(pair, nursery, autojump_clock):
    source, target = pair
    calls = Scripted(source)
    puller = puller_of(target, calls)
    await nursery.start(puller.run)

    for _ in range(10):
        puller.want("node-a")
    await trio.sleep(1)
    assert len(calls.asked) == 1
    puller.want("node-a")
    asked_at = trio.current_time()
    await trio.sleep(1)
    assert calls.asked[-1][1] >= asked_at + PAUSE_S

    calls.hangs, calls.asked = True, []
    for number in range(PULLS_AT_ONCE_MAX + 1):
        puller.want(f"peer-{number}")
    await trio.sleep(10)
    assert sorted(name for name, _ in calls.asked) == [f"peer-{number}" for number in range(PULLS_AT_ONCE_MAX)]
    nursery.cancel_scope.cancel()

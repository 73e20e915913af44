"""Who takes, offers and asks when many steps, owners and plans stand in each other's way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import msgspec
import pytest
import trio

from mesh.errors import UnavailableError
from mesh.ids import Address, Origin
from mesh.placement import Offer
from mesh.row_codec import decode_rows, encode_rows
from mesh.rows import Row
from mesh.tables import Value
from mesh.takeover import OwnerState
from node.env import PeerIdentity
from node.storage.transaction import Transaction
from node.work import ownership as module
from node.work.ownership import AskRequest, Ownership, OwnershipTiming
from node.work.tables import MESH_NAMESPACE, Status
from tests.node.test_review_work import Desk, desk, foreign, nap, running, step

__all__ = ["desk"]  # the fixture


@dataclass
class FakeView:
    """What this node believes of the mesh."""

    states: dict[str, OwnerState] = field(default_factory=dict)
    frozen: bool = False
    dwelling: set[str] = field(default_factory=set)

    def owner_state(self, node_id: str) -> OwnerState:
        return OwnerState.PRESENT if node_id == "node-a" else self.states.get(node_id, OwnerState.UNKNOWN)

    def may_reclaim(self) -> bool:
        return not self.frozen

    def usable(self) -> list[str]:
        present = [node for node, state in self.states.items() if state is OwnerState.PRESENT]
        return sorted(["node-a", *present])

    def placeable(self) -> list[str]:
        return [node for node in self.usable() if node not in self.dwelling]

    def rpc_address(self, node_id: str) -> Address | None:
        return Address(node_id, 1)

    def current_life(self, node_id: str) -> int | None:
        return None


@dataclass
class FakeCalls:
    """Answers in place of peers."""

    answer: Callable[[str, str, bytes], bytes]
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def call(
        self,
        address: Address,
        verb: str,
        body: bytes,
        *,
        expect: str | None = None,
        timeout_s: float = 10.0,
        on_part: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked.append((address.host, verb))
        return self.answer(address.host, verb, body)


def nobody(host: str, verb: str, body: bytes) -> bytes:
    raise UnavailableError(f"{host} does not answer")


@dataclass
class Office:
    """A desk with ownership rules."""

    desk: Desk
    view: FakeView
    calls: FakeCalls
    ownership: Ownership

    async def announce(self, node: str, agents: str, seq: int = 900) -> None:
        stamp = await self.desk.store.write(lambda tx: tx.hlc)
        row = Row(
            table="profiles",
            namespace=MESH_NAMESPACE,
            key=node,
            hlc=stamp,
            node=node,
            origin=Origin(node, 7),
            seq=seq,
            values={"agents": agents, "labels": "{}"},
        )
        assert await self.desk.merge(row) == "applied"

    async def owned_by(self, owner: str, count: int = 1, **values: Value) -> list[Row]:
        """Steps of another node, as its rows would have arrived."""
        template = await self.desk.one()
        rows = [
            msgspec.structs.replace(
                foreign(template, owner, seq=index + 1, values={"owner": owner, "dependents": 0, **values}),
                key=f"stp_{owner}_{values.get('agent', 'echo')}_{index:05}",
                hlc=template.hlc + index + 1,
                origin=Origin(owner, self.desk.ids),
            )
            for index in range(count)
        ]
        rows = [
            msgspec.structs.replace(
                row, values={name: value for name, value in row.values.items() if value is not None}
            )
            for row in rows
        ]

        def merge(tx: Transaction) -> None:
            for row in rows:
                assert tx.merge(row) == "applied"

        await self.desk.store.write(merge)
        return rows

    async def owner(self, row: Row) -> str:
        return (await self.desk.row(row.key)).text("owner")

    async def ask(self, want: int, agents: list[str]) -> list[Row]:
        body = msgspec.msgpack.encode(AskRequest(want, agents, {}))
        answer = await self.ownership.handle_ask(PeerIdentity("node", "node-b"), body)
        return [row for row in decode_rows(answer, limits=module.CHUNK_LIMITS) if row.table == "steps"]


@pytest.fixture
async def office(desk) -> Office:
    view, calls = FakeView(), FakeCalls(nobody)
    ownership = Ownership(
        desk.runtime._env,
        desk.store,
        desk.runtime,
        desk.queue,
        desk.runtime._support,
        view,
        cast(Any, calls),
        me="node-a",
        offer=lambda: Offer(node="node-a", abilities=frozenset(desk.executor.agents())),
        timing=OwnershipTiming(tick_s=0.1, dead_time_s=3.0),
    )
    desk.runtime.on_idle = ownership.on_idle
    return Office(desk, view, calls, ownership)


@asynccontextmanager
async def deciding(office: Office) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(office.ownership.run)
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(60):
        while not await condition():  # noqa: ASYNC110 -- the loops' own events are under test
            await trio.sleep(0.05)


# --- taking ---


async def test_thousands_of_steps_nobody_can_run_hide_no_other(office, monkeypatch, autojump_clock):
    monkeypatch.setattr(module, "STEPS_READ_MAX", 20)
    office.view.states["node-b"] = OwnerState.DEAD
    await office.owned_by("node-b", 50, agent="nobody-has-it")
    await office.owned_by("node-b", 50, pin_node="node-c")
    wanted = await office.owned_by("node-b", 45, agent="nap")
    async with deciding(office):
        await until(lambda: _all(office, wanted, "node-a"))


async def _all(office: Office, rows: list[Row], owner: str) -> bool:
    return all([await office.owner(row) == owner for row in rows])


async def test_a_plan_of_an_earlier_lease_does_not_fire_for_the_next(office, autojump_clock):
    # Somebody else stands before us, so we wait our turn: for each lease anew.
    await office.announce("node-c", '["echo"]')
    office.view.states |= {"node-b": OwnerState.DEAD, "node-c": OwnerState.PRESENT}
    rows = await office.owned_by("node-b", 20)
    behind = [row for row in rows if office.ownership.candidates(row)[0] == "node-c"]
    assert behind
    await office.ownership.take_now()
    moved = [
        foreign(row, "node-c", seq=100 + index, lease_epoch=1, lease_hlc=row.hlc + 1, values={"owner": "node-c"})
        for index, row in enumerate(behind)
    ]
    for row in moved:
        assert await office.desk.merge(row) == "applied"
    for _ in range(10):
        await trio.sleep(1)
        assert office.desk.runtime.gate_is_open()

    await office.announce("node-d", '["echo"]')
    office.view.states |= {"node-c": OwnerState.DEAD, "node-d": OwnerState.PRESENT}
    later = [row for row in moved if office.ownership.candidates(row)[0] == "node-d"]
    assert later
    await office.ownership.take_now()

    assert not any([await office.owner(row) == "node-a" for row in later])


async def test_an_unknown_owner_beside_a_dead_one_is_taken_over_in_its_time(office, autojump_clock):
    office.view.states["node-b"] = OwnerState.DEAD
    await office.owned_by("node-b", 1, agent="nobody-has-it")
    (step,) = await office.owned_by("node-x", 1)
    async with deciding(office):
        await trio.sleep(2.0)
        assert await office.owner(step) == "node-x"
        await until(lambda: _all(office, [step], "node-a"))


async def test_steps_that_were_due_when_a_freeze_began_are_taken_after_it(office, autojump_clock, monkeypatch):
    office.view.states["node-b"] = OwnerState.DEAD
    (step,) = await office.owned_by("node-b", 1)
    looks = iter([True, False])  # between the look before the round and the one before the write
    monkeypatch.setattr(office.view, "may_reclaim", lambda: next(looks, True))
    async with deciding(office):
        await until(lambda: _all(office, [step], "node-a"))


async def test_a_paused_node_takes_nothing(office, autojump_clock):
    office.view.states["node-b"] = OwnerState.DEAD
    (step,) = await office.owned_by("node-b", 1)
    office.desk.runtime.paused = "identity conflict"
    async with deciding(office):
        await trio.sleep(5.0)
        assert await office.owner(step) == "node-b"
        office.desk.runtime.paused = None
        await until(lambda: _all(office, [step], "node-a"))


async def test_an_owner_held_dead_whose_rows_come_in_gets_time_to_show_itself(office, autojump_clock):
    # A cut heals: a peer brings rows that the other side wrote, before that side itself is heard.
    office.view.states["node-b"] = OwnerState.DEAD
    async with deciding(office):
        steps = await office.owned_by("node-b", 3)
        await trio.sleep(2.0)
        assert await _all(office, steps, "node-b")
        office.view.states["node-b"] = OwnerState.PRESENT
        for _ in range(10):
            await trio.sleep(1.0)
            assert office.desk.runtime.gate_is_open()
        assert await _all(office, steps, "node-b")

        office.view.states["node-b"] = OwnerState.DEAD
        office.ownership.on_member_changed()
        began = trio.current_time()
        await until(lambda: _all(office, steps, "node-a"))
        assert trio.current_time() - began < 1.0


# --- placing ---


async def test_steps_pinned_to_an_absent_node_hide_none_that_another_could_run(office, monkeypatch, autojump_clock):
    monkeypatch.setattr(module, "OFFER_BATCH_MAX", 2)
    office.view.states["node-b"] = OwnerState.PRESENT
    await office.announce("node-b", '["echo"]')
    for _ in range(30):
        await office.desk.one(node="node-gone")
    wanted = await office.desk.one(node="node-b")
    office.calls.answer = lambda host, verb, body: msgspec.msgpack.encode(1)
    async with deciding(office):
        await until(lambda: _all(office, [wanted], "node-b"))


async def test_a_step_that_its_parents_end_makes_ready_is_offered_at_once(office, autojump_clock):
    office.view.states["node-b"] = OwnerState.PRESENT
    await office.announce("node-b", '["echo"]')
    office.calls.answer = lambda host, verb, body: msgspec.msgpack.encode(1)
    async with deciding(office):
        task_id = await office.desk.submit(
            step("first", "rare"), step("then", "echo", depends_on=("first",), node="node-b")
        )
        parent, child = await office.desk.steps(task_id)
        await trio.sleep(5.0)
        await office.desk.merge(
            foreign(
                parent, "node-b", seq=500, rank=Status.SUCCESS.rank, values={"status": "SUCCESS", "owner": "node-b"}
            )
        )
        await until(lambda: _all(office, [child], "node-b"))


async def test_a_dwell_window_withholds_nothing_that_only_that_member_can_run(office, autojump_clock):
    office.view.states |= {"node-b": OwnerState.PRESENT, "node-c": OwnerState.PRESENT}
    office.view.dwelling.add("node-b")
    await office.announce("node-b", '["echo", "rare"]')
    await office.announce("node-c", '["rare"]')
    pinned = await office.desk.one(node="node-b")
    free = await office.desk.one("rare")
    office.calls.answer = lambda host, verb, body: msgspec.msgpack.encode(1)
    async with deciding(office):
        await until(lambda: _all(office, [pinned], "node-b"))
        await until(lambda: _all(office, [free], "node-c"))


@pytest.mark.parametrize("answer", [b"\xc1", b"", msgspec.msgpack.encode("all"), msgspec.msgpack.encode(-1)])
async def test_a_senseless_answer_to_an_offer_moves_nothing(office, answer, autojump_clock):
    office.view.states["node-b"] = OwnerState.PRESENT
    await office.announce("node-b", '["echo"]')
    wanted = [await office.desk.one(node="node-b") for _ in range(3)]
    office.calls.answer = lambda host, verb, body: answer
    async with deciding(office):
        await trio.sleep(5.0)

    assert office.calls.asked
    assert await _all(office, wanted, "node-a")


# --- asking ---


async def test_an_owner_that_does_not_answer_stops_no_question_to_another(office, autojump_clock):
    office.view.states |= {"node-b": OwnerState.PRESENT, "node-c": OwnerState.PRESENT}
    await office.owned_by("node-b", 5)
    (given,) = await office.owned_by("node-c", 1)
    handed = foreign(given, "node-c", seq=100, lease_epoch=1, lease_hlc=given.hlc + 1, values={"owner": "node-a"})

    def answer(host: str, verb: str, body: bytes) -> bytes:
        return encode_rows([handed]) if host == "node-c" else nobody(host, verb, body)

    office.calls.answer = answer
    async with running(office.desk), deciding(office):
        await office.desk.until(given.key, "SUCCESS")


async def test_a_node_without_room_for_an_agent_asks_for_none_of_its_steps(office, autojump_clock):
    office.view.states["node-b"] = OwnerState.PRESENT
    office.desk.executor.concurrency["nap"] = 1
    busy = await office.desk.one("nap", b"20")
    async with running(office.desk), deciding(office):
        await office.desk.until(busy.key, "RUNNING")
        await office.owned_by("node-b", 1, agent="nap")
        await trio.sleep(10.0)
        assert office.calls.asked == []

        await trio.sleep(15.0)
        assert ("node-b", "ask") in office.calls.asked


@pytest.mark.parametrize(("want", "given"), [(-1, 0), (0, 0), (2, 2)])
async def test_an_ask_gives_no_more_than_is_wanted(office, want, given):
    office.view.states["node-b"] = OwnerState.PRESENT
    for _ in range(6):
        await office.desk.one()

    assert len(await office.ask(want, ["echo"])) == given


# --- an agent's concurrency ---


async def test_claims_of_one_commit_keep_an_agents_concurrency(desk, autojump_clock):
    desk.executor.concurrency["nap"] = 1
    steps = [await desk.one("nap", b"1") for _ in range(4)]
    async with running(desk):
        for step in steps:
            await desk.until(step.key, "SUCCESS")

    assert desk.executor.most == 1


async def test_a_freed_agent_wakes_a_slot_that_had_found_it_full(desk, autojump_clock):
    desk.executor.concurrency["nap"] = 1
    desk.executor.handlers["long"] = partial(_for_ever)
    first, second = await desk.one("nap", b"5"), await desk.one("nap", b"5")
    async with running(desk):
        await desk.until(first.key, "RUNNING")
        await trio.sleep(4.9)
        await desk.one("long", priority=0)
        with trio.fail_after(20):
            await desk.until(second.key, "SUCCESS")


async def _for_ever(job: Any) -> Any:
    await trio.sleep(10_000)
    return await nap(job)


async def test_an_owner_that_had_nothing_is_asked_again_soon_when_it_has_news(office, autojump_clock):
    office.view.states["node-b"] = OwnerState.PRESENT
    office.calls.answer = lambda host, verb, body: encode_rows([])
    async with running(office.desk), deciding(office):
        await office.owned_by("node-b", 1, agent="nap")
        await until(lambda: _has(office.calls.asked))
        await office.owned_by("node-b", 8)  # its backlog grew just after it was asked
        began, office.calls.asked[:] = trio.current_time(), []
        await until(lambda: _has(office.calls.asked))
        assert trio.current_time() - began < 2 * module.ASK_EMPTY_PAUSE_S


async def _has(asked: list[tuple[str, str]]) -> bool:
    return bool(asked)

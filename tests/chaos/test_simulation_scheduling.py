from __future__ import annotations

import contextlib
import contextvars

import pytest
import trio
from trio._core import _run

from chaos.simulation.clock import WorldClock
from chaos.simulation.event_heap import EventHeap
from chaos.simulation.fingerprint import Fingerprint
from chaos.simulation.scheduling import HOST, check_trio, install_holding_queue, seeded_scheduling


def in_virtual_time(main, seed: int = 1):
    """What `main(heap)` returned, the clock and the fingerprint."""
    heap = EventHeap()
    clock, fingerprint = WorldClock(heap), Fingerprint(heap)

    async def rooted():
        with clock.running():
            return await main(heap)

    with seeded_scheduling(seed):
        result = trio.run(rooted, clock=clock, instruments=[fingerprint])
    return result, clock, fingerprint.hexdigest()


async def crowd(heap: EventHeap) -> list[int]:
    order: list[int] = []

    async def member(number: int) -> None:
        for _ in range(3):
            await trio.sleep(1)
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(member, number)
    return order


def test_this_trio_has_what_repeatable_runs_need():
    check_trio()


def test_one_seed_is_one_order_of_tasks_and_another_seed_another():
    runs = [in_virtual_time(crowd, seed) for seed in (1, 1, 2)]
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert runs[0][2] == runs[1][2] != runs[2][2]


def test_virtual_time_passes_at_once():
    async def main(heap: EventHeap) -> float:
        await trio.sleep(3_600)
        return heap.now

    assert in_virtual_time(main)[0] == 3_600


def test_tasks_and_appointments_share_one_time():
    async def main(heap: EventHeap) -> list[float]:
        seen: list[float] = []
        heap.at(1.5, lambda: seen.append(heap.now))
        await trio.sleep(1)
        seen.append(heap.now)
        await trio.sleep(1)
        seen.append(heap.now)
        return seen

    assert in_virtual_time(main)[0] == [1, 1.5, 2]


def test_a_world_in_which_nothing_can_ever_happen_again_is_ended_as_a_deadlock():
    async def wait(heap: EventHeap) -> None:
        await trio.sleep_forever()

    _, clock, _ = in_virtual_time(wait)
    assert clock.stuck.startswith("deadlock")


def test_tasks_that_run_on_while_no_time_passes_are_ended_as_a_livelock():
    async def spin(heap: EventHeap) -> None:
        while True:
            await trio.lowlevel.checkpoint()

    _, clock, _ = in_virtual_time(spin)
    assert clock.stuck.startswith("livelock")


def test_a_wait_too_short_for_a_float_ends():
    async def main(heap: EventHeap) -> float:
        heap.now = 1e6
        wanted = heap.now + 1e-9
        while heap.now < wanted:
            with trio.move_on_after(1e-15):
                await trio.sleep_forever()
        return heap.now

    assert in_virtual_time(main)[0] < 1e6 + 1


def test_no_line_of_a_held_host_runs_until_it_is_released():
    async def main(heap: EventHeap) -> list[float]:
        queue, seen = install_holding_queue(), []

        async def ticks() -> None:
            for _ in range(4):
                await trio.sleep(1)
                seen.append(heap.now)

        async with trio.open_nursery() as nursery:
            context = contextvars.copy_context()
            context.run(HOST.set, "a")
            context.run(nursery.start_soon, ticks)
            await trio.sleep(1.5)
            queue.hold("a")
            assert queue.holds("a")
            await trio.sleep(5)
            queue.release("a")
        return seen

    assert in_virtual_time(main)[0] == pytest.approx([1, 6.5, 7.5, 8.5])


CROWD = 60
"""In a set of so many, whose order is that of their addresses, it is never that of their beginning."""


def notes_its_abort(number: int, order: list[int]):
    async def member(scope: trio.CancelScope) -> None:
        def abort(_raise: object) -> trio.lowlevel.Abort:
            order.append(number)
            return trio.lowlevel.Abort.SUCCEEDED

        with scope:
            await trio.lowlevel.wait_task_rescheduled(abort)

    return member


@pytest.mark.parametrize("how", ["tasks", "scopes", "deadlines"])
def test_the_order_of_cancelling_at_one_instant_follows_from_the_order_of_beginning(how):
    async def main(heap: EventHeap) -> list[int]:
        order: list[int] = []
        # Later ones lie at lower addresses as often as at higher ones.
        scopes = [trio.CancelScope(deadline=5.0 if how == "deadlines" else float("inf")) for _ in range(CROWD)]
        ballast = [trio.CancelScope() for _ in range(CROWD)]
        async with trio.open_nursery() as nursery:
            for number, scope in enumerate(reversed(scopes)):
                member = notes_its_abort(number, order)
                if how == "tasks":
                    nursery.start_soon(_without_scope, member)
                else:
                    nursery.start_soon(member, scope)
                await trio.sleep(0.01)
                del ballast[:1]
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        return order

    in_order = list(range(CROWD))
    # Trio goes through nested scopes from the last to the first.
    assert in_virtual_time(main)[0] == (in_order[::-1] if how == "scopes" else in_order)


async def _without_scope(member) -> None:
    await member(contextlib.nullcontext())


def test_trio_is_left_as_it_was_found():
    before = _run.CancelStatus.__init__, _run.Deadlines.add
    with seeded_scheduling(1):
        assert before[0] is not _run.CancelStatus.__init__
    assert before == (_run.CancelStatus.__init__, _run.Deadlines.add)

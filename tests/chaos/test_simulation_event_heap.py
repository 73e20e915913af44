from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chaos.simulation.event_heap import FOREVER, EventHeap


@given(st.lists(st.floats(0, 100)))
def test_appointments_happen_by_time_and_at_one_time_in_the_order_in_which_they_were_made(whens):
    heap, seen = EventHeap(), []
    for number, when in enumerate(whens):
        heap.at(when, lambda when=when, number=number: seen.append((when, number)))
    heap.run_until(200)
    assert seen == sorted(seen)
    assert len(seen) == len(whens)


def test_a_cancelled_appointment_does_not_happen_and_does_not_hold_time_up():
    heap, seen = EventHeap(), []
    heap.at(5, lambda: seen.append("five")).cancel()
    assert heap.next_at() == FOREVER
    heap.run_until(10)
    assert not seen


def test_what_lies_in_the_past_happens_now():
    heap, seen = EventHeap(), []
    heap.run_until(10)
    heap.at(3, lambda: seen.append(heap.now))
    heap.fire_next_instant()
    assert seen == [10]


def test_what_an_appointment_makes_due_at_once_happens_in_the_same_instant():
    heap, seen = EventHeap(), []
    heap.at(1, lambda: heap.after(0, lambda: seen.append(heap.now)))
    heap.fire_next_instant()
    assert seen == [1]

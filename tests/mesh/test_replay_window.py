from hypothesis import given
from hypothesis import strategies as st

from mesh.replay_window import WINDOW_BITS, ReplayWindow

A = (b"a" * 16, 1, 7)


@given(st.lists(st.integers(0, 3_000), max_size=200))
def test_no_sequence_is_accepted_twice(sequences: list[int]) -> None:
    window = ReplayWindow()
    accepted = [sequence for sequence in sequences if window.accept(*A, sequence)]
    assert len(accepted) == len(set(accepted))


@given(st.permutations(range(60)))
def test_any_order_within_the_window_is_accepted_once(order: list[int]) -> None:
    window = ReplayWindow()
    assert all(window.accept(*A, sequence) for sequence in order)
    assert not any(window.accept(*A, sequence) for sequence in order)


def test_the_oldest_sequence_of_the_window_is_accepted_and_the_one_before_it_is_not() -> None:
    window = ReplayWindow()
    assert window.accept(*A, 10_000)
    assert window.accept(*A, 10_000 - WINDOW_BITS + 1)
    assert not window.accept(*A, 10_000 - WINDOW_BITS)


def test_a_jump_far_ahead_forgets_the_window_but_not_its_edge() -> None:
    window = ReplayWindow()
    assert window.accept(*A, 5)
    assert window.accept(*A, 2**60)
    assert not window.accept(*A, 5)
    assert not window.accept(*A, 2**60)
    assert window.accept(*A, 2**60 - 1)


def test_lives_and_processes_have_windows_of_their_own() -> None:
    window = ReplayWindow()
    assert window.accept(b"a" * 16, 1, 7, 5)
    assert window.accept(b"a" * 16, 2, 7, 5)
    assert window.accept(b"a" * 16, 1, 8, 5)
    assert not window.accept(b"a" * 16, 1, 7, 5)


def test_at_the_limit_all_are_remembered_and_one_more_forgets_the_longest_silent() -> None:
    window = ReplayWindow(senders_max=2)
    assert window.accept(b"a", 1, 1, 1)
    assert window.accept(b"b", 1, 1, 1)
    assert window.accept(b"a", 1, 1, 2)
    assert not window.accept(b"b", 1, 1, 1)
    assert window.accept(b"a", 1, 1, 3)
    assert window.accept(b"c", 1, 1, 1)
    assert len(window) == 2
    assert not window.accept(b"a", 1, 1, 3)
    assert window.accept(b"b", 1, 1, 1)

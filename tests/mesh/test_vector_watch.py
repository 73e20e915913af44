from mesh.vector_watch import VectorWatch

OURS, THEIRS = b"ours....", b"theirs.."


def watch() -> VectorWatch:
    watching = VectorWatch()
    watching.own = OURS
    return watching


def test_the_second_difference_in_a_row_asks_for_a_pull() -> None:
    watching = watch()
    assert [watching.on_exchange("b", THEIRS) for _ in range(4)] == [False, True, False, True]


def test_differences_with_different_peers_add_up() -> None:
    watching = watch()
    assert not watching.on_exchange("b", THEIRS)
    assert watching.on_exchange("c", THEIRS)


def test_equality_in_between_starts_over() -> None:
    watching = watch()
    assert not watching.on_exchange("b", THEIRS)
    assert not watching.on_exchange("b", OURS)
    assert not watching.on_exchange("b", THEIRS)


def test_a_single_peer_that_differs_is_noticed_among_many_that_do_not() -> None:
    watching = watch()
    assert not watching.on_exchange("b", THEIRS)
    assert not watching.on_exchange("c", OURS)
    assert watching.on_exchange("b", THEIRS)


def test_unset_digests_say_nothing_and_a_hint_speaks_at_once() -> None:
    watching = VectorWatch()
    assert not any(watching.on_exchange("b", THEIRS) for _ in range(3))
    watching = watch()
    assert not any(watching.on_exchange("b", b"") for _ in range(3))
    assert watching.on_hint(THEIRS)
    assert not watching.on_hint(OURS)
    assert not watching.on_hint(b"")


def test_a_forgotten_peer_starts_over() -> None:
    watching = watch()
    watching.on_exchange("b", THEIRS)
    watching.on_exchange("c", OURS)
    watching.forget("b")
    assert not watching.on_exchange("b", THEIRS)

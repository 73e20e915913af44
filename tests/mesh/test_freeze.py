from mesh.freeze import MassFailureFreeze

DEAD_S = 10.0


def after_suspects(names: str, active: str, now: float = 100.0) -> MassFailureFreeze:
    freeze = MassFailureFreeze()
    for name in names:
        freeze.on_suspect(name)
        freeze.evaluate(active, DEAD_S, now)
    return freeze


def test_more_than_half_of_three_others_freeze_for_two_dead_times_and_half_do_not() -> None:
    frozen = after_suspects("ab", "abc")
    assert frozen.frozen(100.0)
    assert frozen.frozen(119.9)
    assert not frozen.frozen(120.0)
    assert not after_suspects("ab", "abcd").frozen(100.0)


def test_with_one_or_two_others_there_is_no_freeze() -> None:
    assert not after_suspects("a", "a").frozen(100.0)
    assert not after_suspects("ab", "ab").frozen(100.0)


def test_the_same_failures_do_not_freeze_again() -> None:
    freeze = after_suspects("abc", "abcd")
    for name in "abc":
        freeze.on_dead(name, 121.0)
    freeze.evaluate("d", DEAD_S, 121.0)
    assert not freeze.frozen(121.0)
    assert freeze.freezes == 1


def test_who_recovered_may_fail_into_another_freeze() -> None:
    freeze = after_suspects("abc", "abcd")
    for name in "abc":
        freeze.on_recovered(name)
    freeze.evaluate("abcd", DEAD_S, 130.0)
    assert not freeze.frozen(130.0)
    for name in "abc":
        freeze.on_suspect(name)
    freeze.evaluate("abcd", DEAD_S, 140.0)
    assert freeze.frozen(140.0)


def test_who_fails_during_a_freeze_belongs_to_the_same_event() -> None:
    freeze = after_suspects("abcde", "abcdef")
    freeze.on_suspect("f")
    freeze.evaluate("abcdef", DEAD_S, 105.0)
    freeze.evaluate("abcdef", DEAD_S, 121.0)
    assert not freeze.frozen(121.0)


def test_failures_far_apart_do_not_add_up() -> None:
    freeze = MassFailureFreeze()
    now = 100.0
    active = "abcdef"
    for name in "abcd":
        freeze.on_suspect(name)
        freeze.evaluate(active, DEAD_S, now)
        freeze.on_dead(name, now)
        active = active.replace(name, "")
        now += DEAD_S
    assert freeze.freezes == 0


def test_deaf_to_everybody_counts_as_the_failure_of_all_once() -> None:
    freeze = MassFailureFreeze()
    freeze.evaluate("abc", DEAD_S, 100.0, deaf=True)
    assert freeze.frozen(100.0)
    freeze.evaluate("abc", DEAD_S, 120.0, deaf=True)
    assert not freeze.frozen(120.0)


def test_a_pause_of_our_own_prolongs_it() -> None:
    freeze = after_suspects("ab", "abc")
    freeze.shift(5.0)
    assert freeze.until() == 125.0

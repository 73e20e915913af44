"""The small pure rules: the status fold, the priority wheel, retry delays."""

from __future__ import annotations

import collections
import json
import random

from hypothesis import given
from hypothesis import strategies as st

from chaos.invariants import oracle
from mesh.ids import Origin
from mesh.rows import Row
from node.work.priorities import HIGH, LOW, MAX_CONSECUTIVE_HIGH, NORMAL, PriorityWheel
from node.work.retries import RetryPolicy
from node.work.status import is_runnable, task_status
from node.work.tables import Status


def make_task(step_count: int, *, rank: int = 0) -> Row:
    return Row(
        table="tasks",
        namespace="default",
        key="t",
        rank=rank,
        hlc=1,
        node="a",
        origin=Origin("a", 1),
        seq=1,
        values={"step_count": step_count},
    )


def folded(steps: list[Row]) -> Status:
    """The status of a task all of whose steps are these."""
    return task_status(make_task(len(steps)), steps)


def make_step(name: str, status: Status, *parents: str, deleted: bool = False, on_failure: str | None = None) -> Row:
    values = {"name": name, "status": status.value, "depends_on": json.dumps(parents) if parents else None}
    values["on_failure"] = on_failure
    origin = Origin("a", 1)
    return Row(
        table="steps",
        namespace="default",
        key=name,
        rank=status.rank,
        deleted=deleted,
        hlc=1,
        node="a",
        origin=origin,
        seq=1,
        values={key: value for key, value in values.items() if value is not None},
    )


S, R, T, P, D, C = (
    Status.SUCCESS,
    Status.RUNNING,
    Status.RETRYING,
    Status.PENDING,
    Status.DEAD_LETTER,
    Status.CANCELLED,
)


def test_the_first_rule_that_matches_gives_the_tasks_status():
    def fold(*statuses):
        return folded([make_step(str(n), status) for n, status in enumerate(statuses)])

    assert fold(S, S) is S
    assert fold(S, R, T, P, D, C) is R
    assert fold(S, T, P, D, C) is T
    assert fold(S, P, D, C) is P
    assert fold(S, D, C) is D
    assert fold(S, C) is C
    assert fold() is P  # the steps have not arrived yet


def test_a_step_that_waits_for_a_failed_parent_counts_for_nothing():
    assert folded([make_step("x", D), make_step("y", P, "x")]) is D
    assert folded([make_step("x", C), make_step("y", P, "x"), make_step("z", P, "y")]) is C
    assert folded([make_step("x", S), make_step("y", P, "x")]) is P
    assert folded([make_step("x", P), make_step("y", P, "x")]) is P


def test_a_step_that_continues_runs_once_no_parent_can_come_to_anything():
    def fold(*above: Row) -> Status:
        return folded([*above, make_step("join", P, "x", "y", on_failure="continue")])

    below = make_step("y", P, "x")
    assert fold(make_step("x", D), below) is P  # it may run
    assert fold(make_step("x", C), make_step("y", S)) is P
    assert fold(make_step("x", D), make_step("y", T)) is T
    assert not is_runnable(make_step("j", P, "x", on_failure="continue"), {"x": make_step("x", T)})
    assert not is_runnable(make_step("j", P, "x", on_failure="continue"), {})
    ended = [make_step("x", D), below, make_step("join", S, "x", "y", on_failure="continue")]
    assert folded(ended) is D  # what failed has failed, whatever came after it


def test_a_long_chain_below_a_failure_is_followed_without_recursion():
    chain = {f"s{n}": make_step(f"s{n}", P, f"s{n - 1}") for n in range(1, 1000)}
    last = make_step("last", P, "s999", on_failure="continue")
    assert is_runnable(last, {"s0": make_step("s0", D), **chain, "last": last})
    assert not is_runnable(last, {"s0": make_step("s0", P), **chain, "last": last})


@given(st.data())
def test_the_oracle_and_the_product_agree_about_which_step_may_run(data):
    """Two programs of the same rule: the product's is linear, the oracle's looks until it finds nothing more."""
    names = [f"s{n}" for n in range(data.draw(st.integers(1, 7)))]
    by_name = {}
    for number, name in enumerate(names):
        parents = data.draw(st.lists(st.sampled_from(names[:number]), unique=True)) if number else []
        policy = data.draw(st.sampled_from([None, "continue"]))
        status = data.draw(st.sampled_from(list(Status)))
        by_name[name] = make_step(name, status, *parents, deleted=data.draw(st.booleans()), on_failure=policy)
    for step in by_name.values():
        assert is_runnable(step, by_name) == oracle.may_run(step, by_name)


def test_deleted_steps_are_not_counted_and_are_no_parents():
    assert task_status(make_task(1), [make_step("x", S), make_step("y", P, deleted=True)]) is S
    gone = make_step("x", S, deleted=True)
    assert not is_runnable(make_step("y", P, "x"), {"x": gone})
    assert not is_runnable(make_step("y", P, "x"), {})


@given(st.lists(st.sampled_from(list(Status)), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_a_task_is_success_only_if_every_step_is_and_order_does_not_matter(statuses, rng):
    steps = [
        make_step(str(n), status, *rng.sample([str(m) for m in range(n)], rng.randint(0, n)))
        for n, status in enumerate(statuses)
    ]
    status = folded(steps)
    assert (status is S) == all(status is S for status in statuses)
    assert (status is R) == (R in statuses)
    rng.shuffle(steps)
    assert folded(steps) is status


def test_a_task_has_not_ended_while_steps_of_it_are_missing_here_unless_it_was_cancelled():
    for known, once_cancelled in (([S], P), ([D], D), ([C], C), ([S, C], C), ([], P)):
        steps = [make_step(str(n), status) for n, status in enumerate(known)]
        assert task_status(make_task(3), steps) is P
        assert task_status(make_task(3, rank=1), steps) is once_cancelled
    assert task_status(make_task(3), [make_step("x", R)]) is R
    assert task_status(make_task(3, rank=1), [make_step("x", T)]) is T


def test_ranks_follow_the_lifecycle_order():
    assert [status.rank for status in (P, R, T, D, C, S)] == [0, 0, 0, 1, 2, 3]
    assert [status.is_terminal for status in (P, R, T, D, C, S)] == [False, False, False, True, True, True]


# --- priorities ---


def serve(wheel: PriorityWheel, waiting: set[int], count: int) -> list[int]:
    served = []
    for _ in range(count):
        chosen = next(priority for priority in wheel.order() if priority in waiting)
        wheel.claimed(chosen)
        served.append(chosen)
    return served


def test_full_queues_are_served_eight_to_three_to_one():
    served = serve(PriorityWheel(), {HIGH, NORMAL, LOW}, 1200)
    assert collections.Counter(served) == {HIGH: 800, NORMAL: 300, LOW: 100}


def test_an_empty_class_leaves_its_turns_to_the_next():
    assert collections.Counter(serve(PriorityWheel(), {NORMAL, LOW}, 1200)) == {NORMAL: 1100, LOW: 100}
    assert set(serve(PriorityWheel(), {LOW}, 50)) == {LOW}
    assert collections.Counter(serve(PriorityWheel(), {HIGH, LOW}, 1200)) == {HIGH: 1100, LOW: 100}


def test_looking_does_not_turn_the_wheel():
    wheel = PriorityWheel()
    assert wheel.order() == wheel.order() == (HIGH, NORMAL, LOW)


def test_high_claims_in_a_row_are_bounded():
    wheel = PriorityWheel()
    serve(wheel, {HIGH}, MAX_CONSECUTIVE_HIGH - 1)
    assert wheel.order()[-1] != HIGH
    serve(wheel, {HIGH}, 1)
    assert wheel.order() == (LOW, NORMAL, HIGH)
    wheel.claimed(LOW)
    assert wheel.order() != (LOW, NORMAL, HIGH)


@given(st.lists(st.sets(st.sampled_from([HIGH, NORMAL, LOW]), min_size=1), max_size=200))
def test_a_waiting_low_step_starts_within_twelve_claims(arrivals):
    wheel, since_low = PriorityWheel(), 0
    for waiting in arrivals:
        chosen = serve(wheel, waiting | {LOW}, 1)[0]
        since_low = 0 if chosen == LOW else since_low + 1
        assert since_low < 12


# --- retries ---


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(0, 100_000), st.integers(0, 2**32))
def test_a_delay_lies_between_nothing_and_its_bound(attempt, base_ms, most_ms, seed):
    policy = RetryPolicy(base_backoff_ms=base_ms, max_backoff_ms=most_ms)
    assert 0 <= policy.delay_ms(attempt, random.Random(seed)) <= min(most_ms, base_ms * 2 ** min(attempt - 1, 40))


def test_delays_spread_over_the_whole_range():
    policy, rng = RetryPolicy(base_backoff_ms=1000, max_backoff_ms=60_000), random.Random(5)
    for attempt, bound in ((1, 1000), (4, 8000), (30, 60_000)):
        delays = [policy.delay_ms(attempt, rng) for _ in range(2000)]
        assert min(delays) < bound * 0.02
        assert max(delays) > bound * 0.98
        assert abs(sum(delays) / 2000 - bound / 2) < bound * 0.05

from hypothesis import given
from hypothesis import strategies as st

from mesh.rumors import PACKETS_PER_TICK_MAX, RumorDedup, RumorQueue, plan_tick


def name(number: int) -> tuple[bytes, int, int]:
    return b"o" * 16, 1, number


def queue_of(*items: bytes) -> RumorQueue:
    queue = RumorQueue()
    for item in items:
        queue.push(item, subject=item, now=0.0)
    return queue


def order(queue: RumorQueue) -> list[bytes]:
    return [rumor.item for rumor in queue.in_order()]


def test_a_rumor_is_new_once_within_the_window_and_again_after_it() -> None:
    dedup = RumorDedup(entries_max=10, window_s=60.0)
    assert dedup.is_new(name(1), 0.0)
    assert not dedup.is_new(name(1), 59.9)
    assert dedup.is_new(name(1), 60.0)


def test_at_the_limit_all_are_remembered_and_one_more_forgets_the_oldest() -> None:
    dedup = RumorDedup(entries_max=4_096, window_s=60.0)
    assert all(dedup.is_new(name(number), 0.0) for number in range(4_096))
    assert not dedup.is_new(name(0), 1.0)
    assert dedup.is_new(name(4_096), 1.0)
    assert len(dedup) == 4_096
    assert not dedup.is_new(name(1), 1.0)
    assert dedup.is_new(name(0), 1.0)


def test_least_sent_goes_first_and_newest_among_equals() -> None:
    queue = queue_of(b"old", b"new")
    assert order(queue) == [b"new", b"old"]
    queue.sent([next(queue.in_order())], receivers=3, budget=12)
    assert order(queue) == [b"old", b"new"]
    queue.push(b"newest", b"newest", now=0.0)
    assert order(queue) == [b"newest", b"old", b"new"]


def test_a_rumor_is_forgotten_when_its_budget_is_spent() -> None:
    queue = queue_of(b"x")
    for _ in range(3):
        assert len(queue) == 1
        queue.sent(list(queue.in_order()), receivers=4, budget=12)
    assert len(queue) == 0
    assert order(queue) == []
    assert not queue.has(b"x")


def test_newer_news_of_a_subject_replaces_older_and_a_record_clears_its_claims() -> None:
    queue = RumorQueue()
    queue.push(b"claim by a", b"s", b"a", now=0.0)
    queue.push(b"claim by b", b"s", b"b", now=0.0)
    queue.push(b"claim by b again", b"s", b"b", now=0.0)
    assert order(queue) == [b"claim by b again", b"claim by a"]
    queue.push(b"record", b"s", clears=True, now=0.0)
    assert order(queue) == [b"record"]
    queue.push(b"claim", b"s", b"a", now=0.0)
    queue.drop_variants()
    assert order(queue) == [b"record"]
    queue.drop(b"s")
    assert len(queue) == 0


def test_a_full_queue_drops_what_was_sent_most_and_counts_it() -> None:
    queue = RumorQueue(rumors_max=2)
    queue.push(b"a", b"a", now=0.0)
    queue.push(b"b", b"b", now=0.0)
    assert queue.dropped == 0
    queue.sent([rumor for rumor in queue.in_order() if rumor.item == b"b"], receivers=1, budget=12)
    queue.push(b"c", b"c", now=0.0)
    assert order(queue) == [b"c", b"a"]
    assert queue.dropped == 1


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=30, unique=True),
    st.lists(st.binary(min_size=1, max_size=40), max_size=30, unique=True),
)
def test_a_plan_keeps_every_packet_within_its_space_and_says_nothing_twice(news: list, topics: list) -> None:
    membership, other = queue_of(*news), queue_of(*topics)
    plan = plan_tick([b"first"], membership, other, space=100, items_max=6)
    assert len(plan.packets) <= PACKETS_PER_TICK_MAX
    assert all(sum(map(len, packet)) <= 100 and len(packet) <= 6 for packet in plan.packets)
    assert plan.packets[0][0] == b"first"
    said = [item for packet in plan.packets for item in packet]
    planned = [b"first"] + [rumor.item for rumor in plan.membership + plan.topics]
    assert sorted(said) == sorted(planned)


def test_a_flood_of_either_kind_leaves_room_for_the_other() -> None:
    many = [bytes((n,)) * 90 for n in range(50)]
    flooded = plan_tick([], queue_of(*many), queue_of(b"t" * 90), space=100, items_max=64)
    assert [rumor.item for rumor in flooded.topics] == [b"t" * 90]
    assert len(flooded.membership) == PACKETS_PER_TICK_MAX - 1
    other = plan_tick([], queue_of(b"m" * 90), queue_of(*many), space=100, items_max=64)
    assert [rumor.item for rumor in other.membership] == [b"m" * 90]


def test_a_small_rumor_fills_the_room_that_a_large_one_leaves() -> None:
    plan = plan_tick([], queue_of(b"s" * 10), queue_of(b"l" * 90), space=100, items_max=64)
    assert plan.packets == [[b"s" * 10, b"l" * 90]]


def test_old_rumors_are_given_up_whatever_their_budget():
    queue = RumorQueue()
    for number in range(5):
        queue.push(b"%d" % number, b"%d" % number, now=float(number))
    queue.expire(before=3.0)
    assert [rumor.item for rumor in queue.in_order()] == [b"4", b"3"]
    assert queue.expired == 3
    assert not queue.has(b"0")

"""Every change of a task or a step, on real stores; two desks stand for two nodes that meet by `pull`."""

from __future__ import annotations

import pytest
import trio

from mesh.errors import ConflictError, LimitError, NotFoundError
from mesh.fences import Fence
from mesh.ids import make_life
from mesh.placement import Offer
from mesh.takeover import LOST_LEASES_MAX
from node.env import Outcome
from node.work import transitions
from node.work.definition import Definition
from node.work.history import Action
from node.work.payloads import INLINE_BYTES_MAX, load_payload, store_payload
from node.work.tables import Status
from node.work.transitions import FORGOTTEN_LEASES
from node.work.work_queue import Queued
from tests.node.work_desk import DONE, FAILED, SPACE, desks, step, workflow


@pytest.fixture
async def a(tmp_path):
    async with desks(tmp_path, "a") as (a,):
        yield a


@pytest.fixture
async def pair(tmp_path):
    async with desks(tmp_path, "a", "b") as (a, b):
        yield a, b


# --- submit ---


async def test_the_same_submit_again_is_the_same_task_and_writes_nothing(a):
    first = await a.submit(workflow(x=[], y=["x"]))
    vector = a.store.vector.copy()
    again = await a.submit(workflow(x=[], y=["x"]))

    assert (first.deduplicated, again.deduplicated) == (False, True)
    assert (first.task_id, first.trace_id) == (again.task_id, again.trace_id)
    assert a.store.vector == vector


@pytest.mark.parametrize("has_ended", [False, True])
async def test_a_submit_leaves_steps_that_came_before_their_task_to_their_owner(pair, has_ended):
    # A claim's row fits a datagram, which may overtake the pull that brings the task and a large input.
    a, b = pair
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    if has_ended:
        await a.finish(claimed)
    theirs = await a.step(task_id)
    await b.store.write(lambda tx: tx.merge(theirs), remote=True)

    assert await b.one() == task_id
    assert await b.step(task_id) == theirs
    assert await b.queued() == {}


async def test_a_key_with_another_definition_is_a_conflict_that_names_its_task(a):
    first = await a.one(payload=b"1")
    with pytest.raises(ConflictError, match=first):
        await a.one(payload=b"2")
    assert len(await a.store.read(lambda reader: reader.select("tasks"))) == 1


async def test_the_same_key_in_another_namespace_is_another_task(a):
    definition = Definition((step("only"),))
    assert definition.task_id("one", "k") != definition.task_id("two", "k")


async def test_two_nodes_that_do_not_hear_each_other_make_the_same_task_and_steps(pair):
    a, b = pair
    assert await a.one() == await b.one()
    task_id = await a.one()
    assert (await a.step(task_id)).key == (await b.step(task_id)).key
    await a.pull(b)
    await b.pull(a)
    assert await a.sums() == await b.sums()
    assert (await a.step(task_id)).text("owner") in "ab"


async def test_a_task_made_again_over_its_tombstone_is_a_new_generation(a):
    task_id = await a.one()
    await a.run(await a.step(task_id))
    key = (await a.step(task_id)).key

    def purge(tx):
        tx.put("tasks", SPACE, task_id, {}, deleted=True)
        tx.put("steps", SPACE, key, {}, deleted=True)

    await a.write(purge)
    with pytest.raises(NotFoundError):
        await a.task(task_id)
    assert await a.one() == task_id
    assert (await a.task(task_id)).generation == 1
    row = await a.step(task_id)
    assert (row.generation, row.text("status"), row.integer("attempt")) == (1, "PENDING", 0)


# --- claim and finish ---


async def test_a_claim_opens_a_lease_epoch_of_its_own(a):
    row = await a.step(await a.one())
    claimed = await a.claim(row)

    assert claimed.step.lease_epoch == row.lease_epoch + 1
    assert claimed.step.lease_hlc == claimed.step.hlc
    assert (claimed.step.text("status"), claimed.step.integer("attempt")) == ("RUNNING", 1)
    assert claimed.step.integer("claim_life") == a.life
    assert claimed.job.fence == Fence.of(claimed.step, "a").encode()
    assert claimed.job.traceparent == f"00-{'ab' * 16}-{row.key[-16:]}-01"
    assert await a.queued() == {}


async def test_the_first_claim_under_a_new_origin_opens_no_lease_that_may_have_been_open_before(a):
    task_id = await a.one()
    row = await a.step(task_id)
    await a.store.mint_origin("a test")
    claimed = await a.claim(row)
    assert claimed.step.lease_epoch == row.lease_epoch + 1 + FORGOTTEN_LEASES
    await a.finish(claimed, FAILED)
    again = await a.claim(await a.step(task_id))
    assert again.step.lease_epoch == claimed.step.lease_epoch + 1


async def test_a_step_of_another_owner_or_an_ended_one_is_not_claimed(pair):
    a, b = pair
    task_id = await a.one()
    await b.pull(a)
    assert await b.claim(await b.step(task_id)) is None
    await a.run(await a.step(task_id))
    assert await a.claim(await a.step(task_id)) is None


async def test_a_child_gets_its_parents_outputs_and_remembers_which_it_used(a):
    task_id = (await a.submit(workflow(x=[], y=["x"]))).task_id
    await a.run(await a.step(task_id, "x"), Outcome(kind="success", result=b"from x"))
    claimed = await a.claim(await a.step(task_id, "y"))
    assert dict(claimed.job.parents) == {"x": b"from x"}
    assert claimed.step.text("parents_used") == '{"x": [0, 1]}'


async def test_a_clean_run_leaves_no_history(a):
    task_id = await a.one()
    finished = await a.run(await a.step(task_id))
    assert finished.accepted
    assert finished.step.blob("result") == b"done"
    assert await a.status(task_id) is Status.SUCCESS
    assert await a.actions(task_id) == []


async def test_failures_are_retried_and_end_as_a_dead_letter_that_keeps_the_reason(a):
    task_id = await a.one()
    for attempt in (1, 2):
        await a.run(await a.step(task_id), FAILED)
        row = await a.step(task_id)
        assert (row.text("status"), row.integer("attempt")) == ("RETRYING", attempt)
        assert 0 <= row.integer("retry_delay_ms") <= 1000 << (attempt - 1)
    await a.run(await a.step(task_id), FAILED)

    row = await a.step(task_id)
    assert (row.text("status"), row.integer("attempt"), row.text("last_error")) == ("DEAD_LETTER", 3, "no luck")
    assert await a.actions(task_id) == ["failed"] * 3


async def test_a_rejected_attempt_is_never_retried(a):
    task_id = await a.one()
    await a.run(await a.step(task_id), Outcome(kind="rejected", error="bad input"))
    row = await a.step(task_id)
    assert (row.text("status"), row.integer("attempt")) == ("DEAD_LETTER", 1)


async def test_a_result_is_refused_and_recorded_once_the_lease_has_moved(pair):
    a, b = pair
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    await b.pull(a)
    taken = await b.take_over(await b.step(task_id))
    await a.pull(b)
    finished = await a.finish(claimed, Outcome(kind="success", result=b"late"))

    assert not finished.accepted
    assert await a.step(task_id) == taken
    (row,) = await a.store.read(lambda reader: reader.select("history", "action = 'superseded'"))
    view = transitions.json.loads(row.text("detail"))
    assert (view["outcome"], view["result"], view["winner"]) == ("success", "late", "b")


async def test_the_end_of_a_run_after_a_pause_opens_a_new_epoch(a):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    finished = await a.finish(claimed, reopen=True)
    assert finished.accepted
    assert finished.step.lease_epoch == claimed.step.lease_epoch + 1


async def test_two_results_made_across_a_cut_end_as_one_and_the_order_says_which(pair, autojump_clock):
    a, b = pair
    task_id = await a.one()
    await a.run(await a.step(task_id), Outcome(kind="success", result=b"from a"))
    await trio.sleep(1)  # leases of one millisecond would be told apart by what comes after them
    await b.one()
    await b.run(await b.step(task_id), Outcome(kind="success", result=b"from b"))
    mine, theirs = await a.step(task_id), await b.step(task_id)
    await a.pull(b)
    await b.pull(a)

    assert await a.step(task_id) == await b.step(task_id)
    winner = await a.step(task_id)
    tie = transitions.describe_tie(mine, theirs)
    assert tie["decidedBy"] == "leaseHlc"
    assert winner == theirs
    assert tie["loserValue"] < tie["winnerValue"]


# --- losing owners ---


async def test_a_take_over_opens_an_epoch_gives_the_attempt_back_and_notes_the_lost_lease(pair):
    a, b = pair
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    await b.pull(a)
    taken = await b.take_over(await b.step(task_id))

    assert (taken.text("owner"), taken.text("status"), taken.integer("attempt")) == ("b", "PENDING", 0)
    assert taken.lease_epoch == claimed.step.lease_epoch + 1
    assert transitions.lost_leases(taken) == [("a", a.life)]
    assert await b.actions(task_id) == ["taken_over"]
    assert list(await b.queued()) == [taken.key]


async def test_taking_over_what_only_waited_is_no_lost_lease(pair):
    a, b = pair
    task_id = await a.one()
    await b.pull(a)
    taken = await b.take_over(await b.step(task_id))
    assert transitions.lost_leases(taken) == []
    assert taken.integer("attempt") == 0


async def test_a_step_that_moved_or_ended_meanwhile_is_not_taken(pair):
    a, b = pair
    task_id = await a.one()
    await b.pull(a)
    seen = await b.step(task_id)
    await a.claim(await a.step(task_id))
    await b.pull(a)
    assert await b.take_over(seen) is None

    await b.take_over(await b.step(task_id))
    assert await b.take_over(await b.step(task_id)) is not None  # one's own row may be reopened
    await b.run(await b.step(task_id))
    assert await b.take_over(await b.step(task_id)) is None


async def test_an_older_owners_later_write_does_not_win_its_lease_back(pair):
    a, b = pair
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    await b.pull(a)
    await b.take_over(await b.step(task_id))
    await a.finish(claimed, FAILED)  # later, and without knowing
    await a.pull(b)
    await b.pull(a)
    assert (await a.step(task_id)).text("owner") == (await b.step(task_id)).text("owner") == "b"


async def test_five_lost_leases_whose_processes_ended_are_poison_and_four_are_not(a):
    task_id = await a.one()
    for life in range(1, LOST_LEASES_MAX + 1):
        a.life = make_life(1, life)
        await a.claim(await a.step(task_id))
        await a.recover(await a.step(task_id))
        expected = "DEAD_LETTER" if life == LOST_LEASES_MAX else "PENDING"
        assert (await a.step(task_id)).text("status") == expected
    assert "poison" in (await a.step(task_id)).text("last_error")
    assert await a.queued() == {}


async def test_lost_leases_of_nodes_that_are_only_away_are_no_poison(a):
    task_id = await a.one()
    for _ in range(LOST_LEASES_MAX + 2):
        await a.claim(await a.step(task_id))
        await a.take_over(await a.step(task_id), lives={"a": a.life})
    row = await a.step(task_id)
    assert row.text("status") == "PENDING"
    assert len(transitions.lost_leases(row)) == LOST_LEASES_MAX + 2


async def test_a_step_keeps_only_its_latest_lost_leases(a):
    task_id = await a.one()
    for _ in range(transitions.LOST_KEPT_MAX + 1):
        await a.claim(await a.step(task_id))
        await a.take_over(await a.step(task_id), lives={"a": a.life})
    assert len(transitions.lost_leases(await a.step(task_id))) == transitions.LOST_KEPT_MAX


async def test_a_node_that_crashed_requeues_its_own_running_step_uncounted(a):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    row = await a.recover(claimed.step)
    assert (row.text("status"), row.integer("attempt"), row.lease_epoch) == ("PENDING", 0, 2)
    assert await a.actions(task_id) == ["lost"]
    assert not (await a.finish(claimed)).accepted


async def test_requeue_gives_a_run_back_uncounted_and_only_under_its_own_lease(a):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    row = await a.write(
        lambda tx: transitions.requeue(tx, claimed.step, me="a", action=Action.RELEASED, why="stopping")
    )
    assert (row.text("status"), row.integer("attempt"), row.lease_epoch) == ("PENDING", 0, 2)
    again = await a.claim(row)
    stale = await a.write(
        lambda tx: transitions.requeue(tx, claimed.step, me="a", action=Action.RELEASED, why="stopping")
    )
    assert stale is None
    assert await a.step(task_id) == again.step


# --- handing over ---


async def test_a_waiting_step_is_handed_over_under_a_new_epoch(pair):
    a, b = pair
    task_id = await a.one()
    row = await a.step(task_id)
    entry = Queued(SPACE, row.key, "echo")
    (moved,) = await a.write(lambda tx: transitions.hand_over(tx, [entry], me="a", to="b", why="asked"))

    assert (moved.text("owner"), moved.lease_epoch, moved.text("status")) == ("b", 1, "PENDING")
    assert await a.queued() == {}
    assert await a.claim(moved) is None
    await b.pull(a)
    assert list(await b.queued()) == [row.key]
    assert (await b.claim(await b.step(task_id))).step.lease_epoch == 2


async def test_a_running_or_ended_step_is_not_handed_over(a):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    entry = Queued(SPACE, claimed.step.key, "echo")
    hand_over = lambda tx: transitions.hand_over(tx, [entry], me="a", to="b", why="asked")  # noqa: E731
    assert await a.write(hand_over) == []
    await a.finish(claimed)
    assert await a.write(hand_over) == []


async def test_only_what_fits_the_asking_nodes_offer_is_found_for_it(a):
    await a.one("1")
    pinned = await a.one("2", node="c")
    await a.one("3", agent="other")
    labelled = await a.one("4", labels={"site": "north"})
    find = lambda offer, limit: a.store.read(  # noqa: E731
        lambda reader: transitions.queued_for(reader, offer, now_ms=1 << 60, limit=limit)
    )

    plain = await find(Offer(node="b", abilities=frozenset({"echo"})), 10)
    assert len(plain) == 1
    north = await find(Offer(node="c", abilities=frozenset({"echo"}), labels={"site": "north"}), 10)
    assert {entry.step_id for entry in north} >= {(await a.step(pinned)).key, (await a.step(labelled)).key}
    assert len(north) == 3
    assert len(await find(Offer(node="c", abilities=frozenset({"echo", "other"})), 2)) == 2
    assert await find(Offer(node="b", abilities=frozenset()), 10) == []


# --- cancel ---


async def test_a_cancel_ends_waiting_steps_at_their_owner(pair):
    a, b = pair
    task_id = (await a.submit(workflow(x=[], y=["x"]))).task_id
    await b.pull(a)
    still_open = await b.cancel(task_id, reason="mistake")
    assert [row.text("name") for row in still_open] == ["x", "y"]
    await b.obey(task_id)
    assert await b.status(task_id) is Status.PENDING  # b owns nothing of it

    await a.pull(b)
    await a.obey(task_id)
    assert await a.status(task_id) is Status.CANCELLED
    assert (await a.step(task_id, "x")).text("last_error") == "cancelled: mistake"
    assert await a.queued() == {}


async def test_a_claim_of_a_cancelled_task_cancels_instead(a):
    task_id = await a.one()
    await a.cancel(task_id)
    assert await a.claim(await a.step(task_id)) is None
    assert await a.status(task_id) is Status.CANCELLED


async def test_a_cancelled_run_ends_as_cancelled_and_a_success_before_it_stays(a):
    task_id = await a.one("1")
    claimed = await a.claim(await a.step(task_id))
    await a.cancel(task_id)
    row = await a.write(lambda tx: transitions.cancel_run(tx, claimed.step, me="a"))
    await a.finish(claimed)  # the handler's last word came too late
    assert await a.step(task_id) == row
    assert row.text("status") == "CANCELLED"

    other = await a.one("2")
    claimed = await a.claim(await a.step(other))
    await a.cancel(other)
    assert (await a.finish(claimed)).accepted
    assert await a.status(other) is Status.SUCCESS
    assert await a.cancel(other) == []


async def test_an_attempt_that_fails_after_a_soft_cancel_is_not_retried(a):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    await a.cancel(task_id, mode="soft")
    await a.finish(claimed, FAILED)
    assert await a.status(task_id) is Status.CANCELLED


async def test_a_soft_cancel_can_be_made_hard_and_not_the_other_way(a):
    task_id = await a.one()
    await a.cancel(task_id, mode="soft")
    await a.cancel(task_id, mode="hard")
    assert (await a.task(task_id)).text("cancel_mode") == "hard"
    await a.cancel(task_id, mode="soft")
    assert (await a.task(task_id)).text("cancel_mode") == "hard"


async def test_cancelling_what_is_not_here_says_where_to_look(a):
    with pytest.raises(NotFoundError, match="check the id and the namespace"):
        await a.cancel("tsk_nothing")


# --- replay ---


async def test_a_replay_begins_a_new_generation_of_what_did_not_succeed(a):
    task_id = (await a.submit(workflow(x=[], y=["x"]))).task_id
    await a.run(await a.step(task_id, "x"))
    await a.run(await a.step(task_id, "y"), Outcome(kind="rejected", error="no"))
    rows = await a.replay(task_id)

    assert [(row.text("name"), row.generation) for row in rows] == [("y", 1)]
    row = await a.step(task_id, "y")
    assert (row.text("status"), row.integer("attempt"), row.text("last_error")) == ("PENDING", 0, "")
    assert row.lease_epoch > 1  # an epoch never begins again, or an old fence could win
    assert list(await a.queued()) == [row.key]
    assert (await a.step(task_id, "x")).generation == 0


async def test_a_replay_lifts_the_cancel(a):
    task_id = await a.one()
    await a.cancel(task_id)
    await a.claim(await a.step(task_id))
    await a.replay(task_id)
    assert await a.claim(await a.step(task_id)) is not None


async def test_a_cancel_reaches_an_owner_that_was_away_also_after_a_replay(pair):
    a, b = pair
    task_id = (await a.submit(Definition((step("here"), step("there"))))).task_id
    there = await a.step(task_id, "there")
    entry = Queued(there.namespace, there.key, there.text("agent"))
    await a.write(lambda tx: transitions.hand_over(tx, [entry], me="a", to="b", why="test"))
    await a.cancel(task_id)
    await a.obey(task_id)
    await a.replay(task_id)
    await b.pull(a)
    await b.obey(task_id)

    assert (await b.step(task_id, "there")).text("status") == "CANCELLED"
    assert (await b.step(task_id, "here")).text("status") == "PENDING"


async def test_a_cancel_that_is_older_than_a_replay_does_not_touch_it(pair):
    a, b = pair
    task_id = await a.one()
    await a.cancel(task_id)
    await a.claim(await a.step(task_id))
    await b.pull(a)
    await a.replay(task_id)
    # The replayed step reaches b before the task's row does.
    replayed = await a.step(task_id)
    await b.store.write(lambda tx: tx.merge(replayed), remote=True)
    assert not transitions.is_cancel_requested(await b.task(task_id), await b.step(task_id))


async def test_one_named_step_can_be_replayed_also_after_success(a):
    task_id = await a.one()
    with pytest.raises(NotFoundError, match="no step 'nothing'"):
        await a.replay(task_id, "nothing")
    with pytest.raises(ConflictError, match="has not ended yet"):
        await a.replay(task_id, "only")
    await a.run(await a.step(task_id))
    with pytest.raises(ConflictError, match="no dead-letter or cancelled step"):
        await a.replay(task_id)
    assert [row.generation for row in await a.replay(task_id, "only")] == [1]


async def test_the_same_replay_on_both_sides_of_a_cut_is_one_generation(pair):
    a, b = pair
    task_id = await a.one()
    await a.run(await a.step(task_id), Outcome(kind="rejected", error="no"))
    await b.pull(a)
    await a.replay(task_id)
    await b.replay(task_id)
    await a.pull(b)
    await b.pull(a)
    row = await a.step(task_id)
    assert row == await b.step(task_id)
    assert row.generation == 1
    owner = a if row.text("owner") == "a" else b
    other = b if owner is a else a
    assert list(await owner.queued()) == [row.key]
    assert await other.queued() == {}


# --- cluster epoch ---


async def test_a_higher_cluster_epoch_ends_leases_and_later_writes_carry_it(a):
    task_id = await a.one()
    claimed = await a.claim(await a.step(task_id))
    assert await a.write(lambda tx: transitions.bump_cluster_epoch(tx, reason="drill", actor="olga")) == (1, 2)
    assert await a.store.read(lambda reader: transitions.holds_lease(reader, claimed.step, "a")) is None
    assert not (await a.finish(claimed)).accepted
    again = await a.claim(await a.step(task_id))
    assert again.step.cluster_epoch == 2
    assert (await a.finish(again)).accepted
    assert await a.write(lambda tx: transitions.bump_cluster_epoch(tx, reason="again", actor="olga")) == (2, 3)
    assert await a.status(task_id) is Status.SUCCESS  # ended rows stay


# --- payloads ---


async def test_small_payloads_stay_in_the_row_and_larger_ones_are_kept_once_by_hash(a):
    small, large = b"s" * INLINE_BYTES_MAX, b"l" * (INLINE_BYTES_MAX + 1)
    assert await a.write(lambda tx: store_payload(tx, SPACE, small)) == (small, None)
    inline, reference = await a.write(lambda tx: store_payload(tx, SPACE, large))
    assert inline is None
    assert await a.write(lambda tx: store_payload(tx, SPACE, large)) == (None, reference)
    assert len(await a.store.read(lambda reader: reader.select("payloads"))) == 1


async def test_a_large_input_reaches_the_handler_and_a_missing_one_says_that_it_is_on_its_way(pair):
    a, b = pair
    large = bytes(range(256)) * 8
    task_id = await a.one(payload=large)
    row = await a.step(task_id)
    assert (await a.claim(row)).job.payload == large

    await b.store.write(lambda tx: tx.merge(row), remote=True)
    with pytest.raises(NotFoundError, match="has not arrived at this node yet"):
        await b.store.read(lambda reader: load_payload(reader, row, "input"))
    assert await b.store.read(lambda reader: load_payload(reader, row, "result")) == b""


async def test_a_payload_beyond_what_a_row_holds_is_refused(a):
    with pytest.raises(LimitError):
        await a.write(lambda tx: store_payload(tx, SPACE, b"x" * ((16 << 20) + 1)))


async def test_a_preview_is_short_and_readable_whatever_the_bytes(a):
    assert transitions.preview(b"ok") == "ok"
    assert len(transitions.preview(b"\xff" * 10_000)) == 120
    assert DONE.result == b"done"

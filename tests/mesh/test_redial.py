from mesh.ids import Address
from mesh.membership import Membership
from mesh.messages import Reason
from mesh.profiles import LOCAL
from mesh.redial import CALLS_MAX, SEEDS_MAX, Redial
from tests.mesh.test_membership import claim, member, record, table

OWN = Address("127.0.0.9", 1)
SEED = Address("127.0.0.2", 1)


def kill(members: Membership, node_id: str) -> None:
    target = member(members, node_id)
    members.accuse(claim(target), "a", 1.0)
    members.declare_dead(target, Reason.SUSPICION_EXPIRED, "a", 2.0)


def called(redial: Redial, members: Membership, now: float) -> list[Address]:
    return [call.address for call in redial.due(members, now)]


def test_a_seed_is_called_faster_at_first_and_for_ever_after() -> None:
    redial, members = Redial(LOCAL, [SEED, SEED, OWN], OWN), table()
    redial.start(0.0)
    times = []
    for _ in range(8):
        times.append(redial.next_deadline(members))
        assert called(redial, members, times[-1]) == [SEED]
    assert times == [0.0, 0.5, 1.5, 3.5, 7.5, 12.5, 17.5, 22.5]


def test_a_seed_that_answered_rests_until_its_member_is_gone() -> None:
    redial, members = Redial(LOCAL, [SEED], OWN), table("b")
    redial.start(0.0)
    (call,) = redial.due(members, 0.0)
    redial.called(call, nonce=7)
    assert not redial.on_answer(8, "b")
    assert redial.on_answer(7, "b")
    assert not redial.on_answer(7, "b")
    assert redial.next_deadline(members) == float("inf")
    kill(members, "b")
    assert redial.next_deadline(members) < float("inf")
    assert sorted(called(redial, members, 5.0)) == sorted([SEED, member(members).address])


def test_a_seed_at_the_address_of_a_member_needs_no_call() -> None:
    redial, members = Redial(LOCAL, [record("b").address], OWN), table("b")
    redial.start(0.0)
    assert redial.next_deadline(members) == float("inf")


def test_an_address_that_turns_out_to_be_ours_is_dropped() -> None:
    redial, members = Redial(LOCAL, [SEED], OWN), table()
    redial.start(0.0)
    (call,) = redial.due(members, 0.0)
    redial.called(call, nonce=7)
    assert redial.on_own_call(7)
    assert not redial.on_own_call(7)
    assert redial.next_deadline(members) == float("inf")


def test_dead_members_are_called_and_left_ones_are_not() -> None:
    redial, members = Redial(LOCAL, [], OWN), table("b", "c")
    members.apply_record(record("c", incarnation=1, left=True), 1.0)
    kill(members, "b")
    redial.start(0.0)
    (call,) = redial.due(members, 0.0)
    assert call.member is member(members)


def test_many_missing_addresses_take_turns() -> None:
    seeds = [Address(f"s{n}", 1) for n in range(CALLS_MAX + 1)]
    members = table()
    exact = Redial(LOCAL, seeds[:CALLS_MAX], OWN)
    assert called(exact, members, 0.0) == seeds[:CALLS_MAX]
    redial = Redial(LOCAL, seeds, OWN)
    first, second = called(redial, members, 0.0), called(redial, members, 1.0)
    assert len(first) == len(second) == CALLS_MAX
    assert sorted({*first, *second}) == sorted(seeds)


def test_seeds_beyond_the_limit_are_not_kept() -> None:
    assert len(Redial(LOCAL, [Address(f"s{n}", 1) for n in range(SEEDS_MAX + 1)], OWN)._seeds) == SEEDS_MAX

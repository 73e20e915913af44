import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulation.credentials import Credentials
from mesh import membership as membership_module
from mesh.ids import Address, node_tag
from mesh.membership import RANK, Member, Membership, Status
from mesh.messages import Claim, Reason
from mesh.own_record import OwnRecord
from mesh.profiles import LOCAL
from mesh.records import MemberRecord, sign_record

MESH = Credentials(1)


def record(
    node_id: str = "b", *, boot: int = 1, incarnation: int = 0, left: bool = False, process: int = 5, port: int = 1
) -> MemberRecord:
    identity = MESH.identity(node_id)
    address = Address("127.0.0.1", port)
    body = OwnRecord(identity, boot=boot, process=process, address=address, rpc_address=address).current.body
    return sign_record(identity, msgspec.structs.replace(body, incarnation=incarnation, left=left))


def table(*others: str, **changes: object) -> Membership:
    members = Membership(record("a"), dataclasses.replace(LOCAL, **changes), now=0.0)
    for other in others:
        members.apply_record(record(other), 0.0)
    return members


def claim(subject: Member | MemberRecord, *, dead: bool = False, incarnation: int | None = None) -> Claim:
    at = subject.incarnation if isinstance(subject, Member) else subject.body.incarnation
    return Claim(
        subject.tag, subject.life, at if incarnation is None else incarnation, bytes(16), Reason.PROBE_TIMEOUT, dead
    )


def member(members: Membership, node_id: str = "b") -> Member:
    found = members.get(node_id)
    assert found is not None
    return found


def test_a_new_record_adds_a_member_and_the_same_record_again_is_no_news() -> None:
    members = table()
    change = members.apply_record(record(), 1.0)
    assert change is not None
    assert (change.before, change.after, change.reason) == (None, Status.ALIVE, "joined")
    assert members.apply_record(record(), 2.0) is None
    assert [m.node_id for m in members.all()] == ["a", "b"]
    assert [m.node_id for m in members.active_others()] == ["b"]


def test_a_claim_suspects_and_a_higher_incarnation_refutes() -> None:
    members = table("b", "c")
    suspected = members.accuse(claim(member(members)), "c", 1.0)
    assert suspected is not None
    assert (suspected.after, suspected.accuser) == (Status.SUSPECT, "c")
    assert member(members).accusers == {"c": "probe-timeout"}
    refuted = members.apply_record(record(incarnation=1), 2.0)
    assert refuted is not None
    assert (refuted.after, refuted.reason) == (Status.ALIVE, "refuted")
    assert member(members).accusers == {}


def test_a_higher_incarnation_refutes_even_death_and_a_higher_life_beats_all() -> None:
    members = table("b", "c")
    members.accuse(claim(member(members)), "a", 1.0)
    members.declare_dead(member(members), Reason.SUSPICION_EXPIRED, "a", 2.0)
    assert members.apply_record(record(), 3.0) is None
    assert member(members).status is Status.DEAD
    assert members.apply_record(record(incarnation=1), 3.0) is not None
    members.apply_record(record(incarnation=2, left=True), 4.0)
    assert member(members).status is Status.LEFT
    assert members.apply_record(record(incarnation=9), 5.0) is None
    assert member(members).status is Status.LEFT
    assert member(members).incarnation == 9
    reborn = members.apply_record(record(boot=2), 6.0)
    assert reborn is not None
    assert (reborn.before, reborn.after, reborn.reason) == (Status.LEFT, Status.ALIVE, "restarted")


def test_an_older_life_or_incarnation_changes_nothing() -> None:
    members = table()
    members.apply_record(record(boot=2, incarnation=3), 0.0)
    assert members.apply_record(record(boot=1, incarnation=9, port=9), 1.0) is None
    assert members.apply_record(record(boot=2, incarnation=2, port=9), 1.0) is None
    assert members.accuse(claim(record(boot=2, incarnation=2)), "c", 1.0) is None
    assert member(members).address.port == 1


def test_a_claim_about_an_incarnation_that_nobody_signed_waits_and_never_raises_it() -> None:
    members = table("b")
    future = claim(member(members), incarnation=7)
    assert members.accuse(future, "c", 1.0) is None
    assert member(members).status is Status.ALIVE
    assert member(members).incarnation == 0
    assert members.take_parked(member(members)) == []
    members.apply_record(record(incarnation=7), 2.0)
    assert members.take_parked(member(members)) == [future]
    assert members.take_parked(member(members)) == []


def test_parked_claims_are_bounded() -> None:
    members = table("b")
    for incarnation in range(1, membership_module.PARKED_MAX + 2):
        members.accuse(claim(member(members), incarnation=incarnation), "c", 1.0)
    assert len(members._parked) == membership_module.PARKED_MAX
    members.apply_record(record(incarnation=1), 2.0)
    assert members.take_parked(member(members)) == []


def test_one_who_says_dead_only_raises_a_suspicion_and_enough_of_them_end_it() -> None:
    members = table("b", "c", "d", "e")
    for accuser, agreed in (("c", False), ("d", False), ("d", False), ("e", True)):
        members.accuse(claim(member(members), dead=True), accuser, 1.0)
        suspicion = member(members).suspicion
        assert suspicion is not None
        assert member(members).status is Status.SUSPECT
        assert suspicion.agreed is agreed
    assert member(members).suspicion.deadline() == 1.0 + LOCAL.refutable_s(5)  # type: ignore[union-attr]


def test_accusers_that_are_gone_do_not_count_towards_death() -> None:
    members = table("b", "c", "d", "e")
    members.apply_record(record("c", incarnation=1, left=True), 0.5)
    for accuser in ("c", "d", "e"):
        members.accuse(claim(member(members), dead=True), accuser, 1.0)
    assert not member(members).suspicion.agreed  # type: ignore[union-attr]


def test_of_two_processes_with_one_life_all_nodes_keep_the_same_one() -> None:
    low, high = record(process=1), record(process=2)
    for order in ((low, high), (high, low)):
        members = table()
        for each in order:
            members.apply_record(each, 0.0)
        assert member(members).process == 2


def test_a_new_key_ring_is_told_as_such_and_an_address_as_an_update() -> None:
    members = table("b")
    base = record(incarnation=1)
    installed = sign_record(MESH.identity("b"), msgspec.structs.replace(base.body, ring=1))
    change = members.apply_record(installed, 1.0)
    assert change is not None
    assert (change.reason, change.visible) == ("installed", True)
    moved = members.apply_record(record(incarnation=2, port=9), 2.0)
    assert moved is not None
    assert (moved.reason, moved.visible) == ("updated", True)


def test_dead_members_are_kept_for_ever_since_they_may_be_behind_a_cut() -> None:
    members = table("b")
    members.accuse(claim(member(members)), "c", 0.0)
    members.declare_dead(member(members), Reason.SUSPICION_EXPIRED, "a", 0.0)
    members.prune(100 * LOCAL.forget_after_s)
    assert member(members).status is Status.DEAD


def test_members_that_left_are_forgotten_after_a_day_and_their_last_record_does_not_bring_them_back() -> None:
    members = table("b")
    members.apply_record(record(incarnation=1, left=True), 0.0)
    members.prune(LOCAL.forget_after_s - 1)
    assert members.get("b") is not None
    members.prune(LOCAL.forget_after_s)
    assert members.get("b") is None
    assert members.take_forgotten() == ["b"]
    assert members.take_forgotten() == []
    assert members.apply_record(record(), 1e6) is None
    assert members.apply_record(record(boot=2), 1e6) is not None


def test_only_a_member_itself_brings_back_what_was_forgotten_of_it_and_as_dead_as_it_was() -> None:
    members = table("b")
    members.accuse(claim(member(members)), "c", 0.0)
    members.declare_dead(member(members), Reason.SUSPICION_EXPIRED, "a", 0.0)
    assert members.forget("b")
    assert members.apply_record(record(), 2.0) is None  # from one who had not forgotten it
    members.recall(record(), 3.0)
    assert member(members).status is Status.DEAD
    change = members.apply_record(record(incarnation=1), 4.0)
    assert change is not None
    assert (change.before, change.after) == (Status.DEAD, Status.ALIVE)


def test_one_that_said_goodbye_or_was_never_here_is_not_recalled() -> None:
    members = table("b")
    members.recall(record("c"), 1.0)
    members.apply_record(record(incarnation=1, left=True), 1.0)
    assert members.forget("b")
    members.recall(record(), 2.0)
    assert [m.node_id for m in members.all()] == ["a"]


def test_a_full_table_makes_room_by_forgetting_the_longest_gone_and_never_the_living() -> None:
    members = table("b", "c", members_max=3)
    assert members.apply_record(record("d"), 1.0) is None
    members.apply_record(record("b", incarnation=1, left=True), 1.0)
    assert members.apply_record(record("d"), 2.0) is not None
    assert [m.node_id for m in members.all()] == ["a", "c", "d"]


def test_accusers_shown_are_bounded() -> None:
    members = table("b")
    for index in range(membership_module.ACCUSERS_MAX + 1):
        members.accuse(claim(member(members)), f"x{index}", 1.0)
    assert len(member(members).accusers) == membership_module.ACCUSERS_MAX


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.booleans()), max_size=12), st.randoms())
def test_records_in_any_order_and_number_end_in_the_same_table(parts: list, rng: object) -> None:
    # LEFT and ALIVE of one incarnation cannot both exist: a leave always takes the next one.
    records = {(b, i): record(boot=b, incarnation=i, left=left) for b, i, left in parts}
    shuffled = list(records.values()) * 2
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = table(), table()
    for each in records.values():
        one.apply_record(each, 0.0)
    for each in shuffled:
        other.apply_record(each, 0.0)
    views = [
        [
            (m.node_id, m.life, RANK[m.status]) + (() if m.status is Status.LEFT else (m.incarnation, m.record))
            for m in t.all()
        ]
        for t in (one, other)
    ]
    assert views[0] == views[1]


@given(st.lists(st.tuples(st.sampled_from(["record", "claim"]), st.integers(1, 2), st.integers(0, 3)), max_size=30))
def test_the_known_life_and_incarnation_never_go_back(steps: list) -> None:
    members = table("c")
    highest = (0, -1)
    for kind, boot, incarnation in steps:
        news = record(boot=boot, incarnation=incarnation)
        if kind == "record":
            members.apply_record(news, 0.0)
        else:
            members.accuse(claim(news), "c", 0.0)
        known = members.get("b")
        if known is not None:
            assert (known.life, known.incarnation) >= highest
            highest = (known.life, known.incarnation)


def test_the_own_record_is_changed_by_ourselves_only() -> None:
    members = table()
    members.replace_own(record("a", incarnation=1, left=True), 1.0)
    assert members.own.status is Status.LEFT
    with pytest.raises(AssertionError):
        members.apply_record(record("a", boot=2), 2.0)
    assert members.by_tag(node_tag("a")) is members.own


def test_successors_follow_on_the_ring_of_tags_and_pass_over_the_dead() -> None:
    names = [f"m{index}" for index in range(10)]
    members = table(*names)
    ring = sorted(["a", *names], key=node_tag)
    own = ring.index("a")
    after = [*ring[own + 1 :], *ring[:own]]
    assert [m.node_id for m in members.successors(3)] == after[:3]
    members.accuse(claim(member(members, after[0])), "m1", 1.0)
    assert [m.node_id for m in members.suspected()] == after[:1]
    members.declare_dead(member(members, after[0]), Reason.SUSPICION_EXPIRED, "a", 2.0)
    assert ([m.node_id for m in members.suspected()], [m.node_id for m in members.dead()]) == ([], after[:1])
    assert [m.node_id for m in members.successors(99)] == after[1:]

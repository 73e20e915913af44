import dataclasses
import random

from mesh import codec
from mesh.dissemination import Dissemination
from mesh.membership import Membership
from mesh.messages import Rumor, RumorKind, VectorHint
from mesh.profiles import LOCAL
from tests.mesh.test_membership import claim, member, record, table


def spreading(members: Membership, **changes: object) -> Dissemination:
    return Dissemination(dataclasses.replace(LOCAL, **changes), members, random.Random(1))


def said(news: Dissemination, now: float, vector: bytes = b"") -> list[object]:
    _, plan = news.tick(vector, now)
    return [item for packet in plan.packets for item in codec.decode(codec.join_items(packet))]


def rumor(ttl: int, number: int = 1) -> Rumor:
    return Rumor(bytes(16), 1, number, ttl, RumorKind.TOPIC, 1, b"x")


def test_news_is_due_at_once_after_quiet_and_then_once_an_interval() -> None:
    news = spreading(table("b", "c"))
    assert news.next_deadline() == float("inf")
    news.tell_topic(1, b"x", None, 100.0)
    assert news.next_deadline() <= 100.0
    said(news, 100.0)
    assert news.next_deadline() == 100.0 + LOCAL.gossip_interval_s


def test_a_rumor_leaves_a_node_as_often_as_its_budget_says() -> None:
    members = table("b", "c")
    news = spreading(members)
    news.tell_topic(1, b"x", None, 100.0)
    sends, now = 0, 100.0
    while news.queued:
        receivers, plan = news.tick(b"", now)
        sends += len(receivers) * len(plan.topics)
        now += LOCAL.gossip_interval_s
    assert sends == LOCAL.rumor_sends(3)
    assert news.next_deadline() == float("inf")


def test_a_rumor_is_told_to_each_next_neighbour_on_the_ring_whatever_chance_says() -> None:
    members = table(*(f"m{index}" for index in range(40)))
    news = spreading(members)
    news.tell_topic(1, b"x", None, 100.0)
    told: list[str] = []
    while news.queued:
        receivers, _ = news.tick(b"", 100.0)
        assert len({receiver.node_id for receiver in receivers}) == LOCAL.fanout
        told += [receiver.node_id for receiver in receivers]
    assert {neighbour.node_id for neighbour in members.successors(8)} <= set(told)
    assert len(told) == LOCAL.rumor_sends(41)


def test_without_anyone_to_tell_news_waits() -> None:
    news = spreading(table())
    news.tell_topic(1, b"x", None, 100.0)
    assert news.next_deadline() == float("inf")
    assert news.queued == 1


def test_new_rumors_carry_the_hop_cap_and_relays_one_hop_less() -> None:
    news = spreading(table("b"), hop_ttl_override=2)
    news.tell_topic(1, b"x", None, 100.0)
    (own,) = said(news, 100.0)
    assert isinstance(own, Rumor)
    assert own.ttl == 2
    other = spreading(table("b"))
    other.relay(own, 100.0)
    (passed,) = said(other, 100.0)
    assert passed == Rumor(own.origin, own.life, own.number, 1, own.kind, own.topic, own.payload)


def test_a_rumor_that_claims_more_hops_than_anyone_gives_gets_no_more_than_ours() -> None:
    news = spreading(table("b"))
    news.relay(rumor(ttl=255), 100.0)
    (passed,) = said(news, 100.0)
    assert isinstance(passed, Rumor)
    assert passed.ttl == LOCAL.hop_ttl(2) - 1


def test_a_rumor_on_its_last_hop_is_not_relayed_but_counted() -> None:
    news = spreading(table("b"))
    news.relay(rumor(ttl=1), 100.0)
    news.relay(rumor(ttl=0, number=2), 100.0)
    assert news.queued == 0
    assert news.ttl_exhausted == 2


def test_copies_of_a_rumor_are_no_news_not_even_our_own_coming_back() -> None:
    news = spreading(table("b"))
    assert news.is_new(rumor(ttl=3), 100.0)
    assert not news.is_new(rumor(ttl=2), 101.0)
    news.tell_topic(1, b"x", None, 100.0)
    (own,) = said(news, 100.0)
    assert isinstance(own, Rumor)
    assert not news.is_new(own, 101.0)


def test_a_record_silences_the_claims_about_its_subject() -> None:
    members = table("b", "c")
    news = spreading(members)
    news.tell_claim(claim(member(members)), 100.0)
    news.tell_record(record(incarnation=1).raw, member(members).tag, 100.0)
    (only,) = said(news, 100.0)
    assert isinstance(only, Rumor)
    assert only.kind == RumorKind.RECORD
    assert news.spreading(member(members).tag)
    news.forget(member(members).tag)
    assert not news.spreading(member(members).tag)


def test_hints_become_one_and_are_said_once() -> None:
    news = spreading(table("b"))
    news.hint()
    news.hint()
    assert news.next_deadline() < float("inf")
    assert said(news, 100.0, b"12345678") == [VectorHint(b"12345678")]
    assert news.next_deadline() == float("inf")


def test_accusations_can_be_dropped_without_losing_records() -> None:
    members = table("b", "c")
    news = spreading(members)
    news.tell_claim(claim(member(members)), 100.0)
    news.tell_record(record("c").raw, member(members, "c").tag, 100.0)
    news.forget_claims()
    assert news.queued == 1

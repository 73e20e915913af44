"""Laws of whole meshes, each on virtual time."""

import random

import msgspec
import pytest

from chaos.protocol.engines import Engine, address_of
from chaos.simulation.credentials import Credentials
from chaos.simulation.links import Overlay, towards
from mesh import codec
from mesh.effects import (
    MemberChanged,
    PacketRefused,
    ProbeStream,
    RumorReceived,
    SelfConflict,
    SendDatagram,
    VectorDiffers,
)
from mesh.errors import LimitError
from mesh.gossip import PUBLISH_BYTES_MAX, REMEMBERED_CALLS_MAX, Gossip
from mesh.ids import Address, make_life, node_tag
from mesh.membership import Member, Status
from mesh.messages import CLAIM_BYTES_MAX, Claim, Digest, Item, Ping, Reason, Rumor, RumorKind, SignedRecord
from mesh.own_record import OwnRecord
from mesh.profiles import LOCAL
from mesh.sealing import Sealer, receiver_tag
from tests.mesh.gossip_harness import World

ALIVE, SUSPECT, DEAD, LEFT = Status.ALIVE, Status.SUSPECT, Status.DEAD, Status.LEFT


def member(host: Engine, node_id: str) -> Member:
    found = host.gossip.members.get(node_id)
    assert found is not None
    return found


def changes(world: World, node_id: str) -> list[tuple[str, str | None, str]]:
    return [(e.node_id, e.before, e.after) for e in world.effects(node_id, MemberChanged)]  # type: ignore[union-attr]


def refusals(world: World, node_id: str) -> list[str]:
    return [effect.reason for effect in world.effects(node_id, PacketRefused)]  # type: ignore[union-attr]


class Forger:
    """Somebody who stole the ring key and speaks in the name of a member."""

    def __init__(self, world: World, as_node: str, *, life: int | None = None) -> None:
        self.world = world
        victim = world.engines[as_node].gossip.members.own
        self.sealer = Sealer(
            ring=world.credentials.ring,
            cluster=world.credentials.cluster,
            sender=victim.tag,
            life=victim.life if life is None else life,
            process=victim.process,
        )
        self.sealer._counter = 2**30  # past everything that the true member has sent

    def say(self, to: str, *items: Item) -> None:
        target = self.world.engines[to].gossip.members.own
        data = self.sealer.seal(codec.encode(items), receiver_tag(target.tag, target.life))
        self.world.deliver(to, data, Address("203.0.113.9", 9))


# --- Joining ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "limit_s"), [(2, 0.5), (3, 0.5), (10, 1.0), (40, 3.0)])
def test_nodes_started_together_know_each_other_soon(count: int, limit_s: float) -> None:
    world = World(seed=count)
    names = world.mesh_of(count, settle_s=0)
    world.run_until(lambda: world.all_see(names, names, ALIVE), limit_s)


def test_a_join_is_told_once_with_nothing_before_it() -> None:
    world = World()
    names = world.mesh_of(3)
    for name in names:
        others = sorted(other for other in names if other != name)
        assert sorted(changes(world, name)) == [(other, None, "ALIVE") for other in others]


def test_a_late_joiner_learns_all_members_from_one_seed() -> None:
    world = World()
    names = world.mesh_of(12)
    world.start("late", seeds=names[5:6])
    world.run_until(lambda: world.all_see([*names, "late"], [*names, "late"], ALIVE), 2.0)


def test_joining_succeeds_through_heavy_loss() -> None:
    world = World(seed=4, loss=0.3)
    names = world.mesh_of(6, settle_s=0)
    world.run_until(lambda: world.all_see(names, names, ALIVE), 10.0)


def test_a_seed_that_starts_later_is_found_within_a_redial_period() -> None:
    world = World()
    world.start("a", seeds=["b"])
    world.run(20.0)
    world.start("b")
    world.run_until(lambda: world.all_see("ab", "ab", ALIVE), LOCAL.redial_interval_s + 0.1)


def test_our_own_address_among_the_seeds_is_called_once_under_another_name_and_never_again() -> None:
    world = World()
    host = world.start("a")
    redial = Gossip(
        identity=world.credentials.identity("b"),
        ring=world.credentials.ring,
        profile=LOCAL,
        rng=random.Random(1),
        entropy=random.Random(2).randbytes,
        boot=1,
        address=Address("127.0.0.2", 1),
        rpc_address=Address("127.0.0.2", 2),
        seeds=[Address("localhost", 1)],
    )
    (call,) = redial.start(0.0)
    assert isinstance(call, SendDatagram)
    assert redial.on_datagram(call.data, call.address, 0.1) == []
    assert redial.next_deadline() == float("inf")
    assert host.gossip.next_deadline() == float("inf")


def test_members_remembered_from_an_earlier_run_are_found_without_seeds() -> None:
    world = World()
    names = world.mesh_of(3)
    known = [m.record for m in world.engines[names[0]].gossip.members.all()]
    world.kill(names[0])
    world.run(10.0)
    world.start(names[0], known=known, boot=2)
    world.run_until(lambda: world.all_see(names, names, ALIVE), 1.0)


def test_remembered_members_that_are_gone_are_judged_by_the_normal_suspicion() -> None:
    world = World()
    names = world.mesh_of(3)
    known = [m.record for m in world.engines[names[0]].gossip.members.all()]
    for name in names:
        world.kill(name)
    world.start(names[0], known=known, boot=2)
    assert world.all_see(names[:1], names, ALIVE)
    world.run(LOCAL.dead_after_s(3) - 0.1)
    assert DEAD not in {world.status(names[0], name) for name in names[1:]}
    world.run_until(lambda: world.all_see(names[:1], names, DEAD), 5.0)


# --- Failing and returning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "limit_s"), [(2, 4.0), (3, 4.6), (10, 8.0), (30, 10.0)])
def test_a_crash_is_dead_everywhere_within_bounds_and_nobody_else_is_doubted(count: int, limit_s: float) -> None:
    world = World(seed=count)
    names = world.mesh_of(count)
    *living, victim = names
    world.kill(victim)
    took = world.run_until(lambda: world.all_see(living, [victim], DEAD), limit_s)
    assert took >= LOCAL.dead_after_s(count)
    for name in living:
        assert {who for who, before, _ in changes(world, name) if before is not None} == {victim}
        verdict = world.effects(name, MemberChanged)[-1]
        assert isinstance(verdict, MemberChanged)
        assert verdict.accuser == name
        assert member(world.engines[name], victim).accusers


def test_a_restart_beats_death_and_suspicion_at_once() -> None:
    world = World()
    names = world.mesh_of(4)
    world.kill(names[3])
    world.run_until(lambda: world.all_see(names[:3], names[3:], DEAD), 10.0)
    world.restart(names[3], seeds=names[:1])
    world.run_until(lambda: world.all_see(names, names, ALIVE), 1.0)
    assert member(world.engines[names[0]], names[3]).life == make_life(1, 2)
    assert world.engines[names[0]].gossip.effective.status(names[3], world.now) is DEAD


def test_a_new_enrolment_beats_every_earlier_boot() -> None:
    world = World()
    names = world.mesh_of(3)
    world.kill(names[2])
    world.start(names[2], seeds=names[:1], boot=0, enrolment=2)
    world.run(1.0)
    assert member(world.engines[names[0]], names[2]).life == make_life(2, 0)


@pytest.mark.parametrize(("count", "side"), [(2, 1), (3, 1), (5, 2), (10, 3)])
def test_both_sides_of_a_cut_hold_the_other_dead_and_agree_again_after_it(count: int, side: int) -> None:
    world = World(seed=count)
    names = world.mesh_of(count)
    one, other = names[:side], names[side:]
    world.cut(one, other)
    world.run_until(lambda: world.all_see(one, other, DEAD) and world.all_see(other, one, DEAD), 40.0)
    world.links.heal()
    world.run_until(lambda: world.all_see(names, names, ALIVE), LOCAL.redial_interval_s + 2.0)
    world.run(30.0)
    assert world.all_see(names, names, ALIVE)


def test_a_cut_of_days_still_heals() -> None:
    world = World()
    world.start("a")
    world.start("b", seeds="a")
    world.run(2.0)
    world.cut("a", "b")
    world.run(LOCAL.forget_after_s + 60.0)
    world.links.heal()
    world.run_until(lambda: world.all_see("ab", "ab", ALIVE), 2 * LOCAL.redial_interval_s)


def test_after_a_long_cut_members_do_not_suspect_each_other_on_hearsay() -> None:
    world = World(seed=3)
    names = world.mesh_of(10)
    world.cut(names[:1], names[1:])
    world.run(60.0)
    world.links.heal()
    healed_at = world.now
    world.run(20.0)
    doubted = [
        effect
        for name in names
        for at, effect in world.logs[name]
        if at > healed_at and isinstance(effect, MemberChanged) and effect.after == "SUSPECT"
    ]
    assert doubted == []


def test_a_one_way_cut_with_helpers_kills_nobody() -> None:
    world = World()
    names = world.mesh_of(5)
    world.streams = False
    world.links.lay(Overlay(pairs=towards(names[:1], names[1:2]), blocked=True))
    world.run(60.0)
    assert not any("DEAD" in change for name in names for change in changes(world, name))


@pytest.mark.slow
@pytest.mark.parametrize("streams", [True, False])
def test_five_percent_loss_kills_nobody_in_three_minutes(streams: bool) -> None:
    world = World(seed=5, loss=0.05)
    names = world.mesh_of(10)
    world.streams = streams
    world.run(180.0)
    assert world.all_see(names, names, ALIVE)
    assert not any("DEAD" in change for name in names for change in changes(world, name))


def test_udp_blocked_but_streams_open_raises_no_suspicion() -> None:
    world = World()
    names = world.mesh_of(3)
    world.datagrams = False
    world.run(10.0)
    assert all(before is None for name in names for _, before, _ in changes(world, name))
    assert world.effects(names[0], ProbeStream)


def test_a_paused_node_drains_its_socket_and_blames_nobody_for_its_own_pause() -> None:
    world = World()
    names = world.mesh_of(5)
    world.pause(names[0], 10.0)
    world.run(9.0)
    assert world.all_see(names[1:], names[:1], DEAD)
    world.run(8.0)
    assert world.all_see(names, names, ALIVE)
    assert all(before is None for _, before, _ in changes(world, names[0]))
    statistics = world.engines[names[0]].gossip.statistics()
    assert statistics.stalls == 1
    assert statistics.stall_s_longest == pytest.approx(10.0, abs=0.6)


def test_a_mass_failure_freezes_verdicts_for_two_dead_times_and_then_continues() -> None:
    world = World()
    names = world.mesh_of(6)
    survivor = names[0]
    for name in names[1:]:
        world.kill(name)
    gossip = world.engines[survivor].gossip
    frozen_for = world.run_until(lambda: not gossip.may_reclaim(world.now), 30.0)
    assert DEAD not in {world.status(survivor, name) for name in names[1:]}
    world.run(2 * LOCAL.dead_after_s(6) - 0.2)
    assert DEAD not in {world.status(survivor, name) for name in names[1:]}
    assert frozen_for > 0
    world.run_until(lambda: world.all_see([survivor], names, DEAD), 60.0)
    assert gossip.may_reclaim(world.now)
    assert gossip.statistics().freezes == 1


def test_after_a_freeze_of_a_node_that_heard_nobody_the_next_mass_failure_freezes_again() -> None:
    world = World()
    names = world.mesh_of(16)
    gossip = world.engines[names[0]].gossip
    world.cut(names[:1], names[1:])
    world.run_until(lambda: not gossip.may_reclaim(world.now), 30.0)
    world.links.heal()
    world.run_until(lambda: gossip.may_reclaim(world.now), 30.0)
    world.run_until(lambda: world.all_see(names[:1], names, ALIVE), 30.0)
    world.run(10.0)
    changes = world.effects(names[0], MemberChanged)
    suspected = {change.node_id for change in changes if change.after == SUSPECT.value}
    never_suspected = [name for name in names[1:] if name not in suspected]
    assert len(never_suspected) > 7, "more than half"
    for name in never_suspected:
        world.kill(name)
    world.run_until(lambda: not gossip.may_reclaim(world.now), 30.0)
    assert gossip.statistics().freezes == 2


def test_with_two_others_both_may_die_without_a_freeze() -> None:
    world = World()
    names = world.mesh_of(3)
    for name in names[1:]:
        world.kill(name)
    world.run_until(lambda: world.all_see(names[:1], names, DEAD), 6.0)
    assert world.engines[names[0]].gossip.statistics().freezes == 0


# --- Leaving ----------------------------------------------------------------------------------------------------------


def test_a_signed_leave_is_known_everywhere_and_does_not_end_as_death() -> None:
    world = World()
    names = world.mesh_of(5)
    leaver = world.engines[names[0]].gossip
    assert not leaver.left_done(world.now)
    world.perform(names[0], leaver.leave(world.now))
    world.run_until(lambda: leaver.left_done(world.now), 2.0)
    world.kill(names[0])
    world.run_until(lambda: world.all_see(names[1:], names[:1], LEFT), 1.0)
    world.run(30.0)
    assert world.all_see(names[1:], names[:1], LEFT)
    assert ("ALIVE", "LEFT") in {change[1:] for change in changes(world, names[1])}
    world.restart(names[0], seeds=names[1:2])
    world.run_until(lambda: world.all_see(names, names, ALIVE), 1.0)


def test_leaving_ends_in_time_when_nobody_answers() -> None:
    world = World()
    names = world.mesh_of(3)
    leaver = world.engines[names[0]].gossip
    world.cut(names[:1], names[1:])
    world.perform(names[0], leaver.leave(world.now))
    assert not leaver.left_done(world.now)
    world.run_until(lambda: leaver.left_done(world.now), 3.0)


def test_alone_a_leave_is_done_at_once() -> None:
    world = World()
    host = world.start("a")
    host.gossip.leave(world.now)
    assert host.gossip.left_done(world.now)


# --- News -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "loss"), [(3, 0.0), (30, 0.2)])
def test_a_published_topic_reaches_everyone_exactly_once(count: int, loss: float) -> None:
    world = World(seed=count, loss=loss)
    names = world.mesh_of(count)
    payload = bytes(PUBLISH_BYTES_MAX)
    world.perform(names[0], world.engines[names[0]].gossip.publish(3, payload, world.now))
    world.run(5.0)
    for name in names[1:]:
        (received,) = world.effects(name, RumorReceived)
        assert isinstance(received, RumorReceived)
        assert (received.topic, received.payload) == (3, payload)
        assert received.via in names
    assert world.effects(names[0], RumorReceived) == []


def test_a_topic_with_a_subject_replaces_what_was_not_sent_yet() -> None:
    world = World()
    names = world.mesh_of(2)
    gossip = world.engines[names[0]].gossip
    effects = [*gossip.publish(1, b"old", world.now, subject=b"s"), *gossip.publish(1, b"new", world.now, subject=b"s")]
    world.perform(names[0], effects)
    world.run(2.0)
    assert [e.payload for e in world.effects(names[1], RumorReceived)] == [b"new"]  # type: ignore[union-attr]


def test_one_byte_more_than_a_rumor_carries_is_refused() -> None:
    host = World().start("a")
    host.gossip.publish(1, bytes(PUBLISH_BYTES_MAX), 1_000.0)
    with pytest.raises(LimitError):
        host.gossip.publish(1, bytes(PUBLISH_BYTES_MAX + 1), 1_000.0)


def test_without_news_there_are_no_gossip_ticks() -> None:
    world = World()
    names = world.mesh_of(3, settle_s=30.0)
    before = sum(host.datagrams_sent for host in world.engines.values())
    world.run(60.0)
    sent = sum(host.datagrams_sent for host in world.engines.values()) - before
    probes_and_answers = 2 * 60.0 / LOCAL.probe_interval_s
    digests = 60.0 / LOCAL.sync_interval_s
    assert sent <= len(names) * (probes_and_answers + digests) * 1.05
    assert all(host.gossip.statistics().rumors_queued == 0 for host in world.engines.values())


def test_differing_replicas_are_noticed_through_probes_and_equal_ones_are_not() -> None:
    world = World()
    names = world.mesh_of(3)
    for name in names:
        world.engines[name].gossip.set_vector_digest(b"same....")
    world.run(10.0)
    assert not any(world.effects(name, VectorDiffers) for name in names)
    world.engines[names[0]].gossip.set_vector_digest(b"other...")
    world.run(3.0)
    assert all(world.effects(name, VectorDiffers) for name in names)


def test_a_hint_is_noticed_at_the_next_gossip_tick() -> None:
    world = World()
    names = world.mesh_of(3)
    for name in names[1:]:
        world.engines[name].gossip.set_vector_digest(b"same....")
    gossip = world.engines[names[0]].gossip
    gossip.set_vector_digest(b"new.....")
    world.perform(names[0], [*gossip.hint(world.now), *gossip.hint(world.now)])
    world.run(LOCAL.gossip_interval_s + 0.01)
    for name in names[1:]:
        assert world.effects(name, VectorDiffers)[:1] == [VectorDiffers(names[0])]


def test_nothing_is_signed_after_the_goodbye() -> None:
    world = World()
    names = world.mesh_of(2)
    gossip = world.engines[names[0]].gossip
    gossip.leave(world.now)
    goodbye = gossip.members.own.record
    assert gossip.set_store_failed(True, world.now) == []
    assert gossip.members.own.record == goodbye


def test_a_failed_store_shows_in_everyones_table() -> None:
    world = World()
    names = world.mesh_of(4)
    world.perform(names[0], world.engines[names[0]].gossip.set_store_failed(True, world.now))
    world.run(1.0)
    assert all(member(world.engines[name], names[0]).store_failed for name in names)
    assert world.engines[names[0]].gossip.set_store_failed(True, world.now) == []


# --- Refusing ---------------------------------------------------------------------------------------------------------


def snapshot(host: Engine) -> list[tuple[object, ...]]:
    return [
        (m.node_id, m.life, m.incarnation, m.status, m.address, m.record, m.last_heard)
        for m in host.gossip.members.all()
    ]


def test_bad_datagrams_change_nothing_and_are_counted_by_reason() -> None:
    world = World()
    names = world.mesh_of(3)
    world.wire.clear()
    world.run(2.0)
    real = next(data for _, to, data in world.wire if to == names[0])
    other_mesh, host = Credentials(2), world.engines[names[0]]
    keys = {"ring": world.credentials.ring, "cluster": world.credentials.cluster}
    sealers = {
        "unknown-key": Sealer(**{**keys, "ring": other_mesh.ring}, sender=bytes(16), life=1, process=1),
        "wrong-cluster": Sealer(**{**keys, "cluster": other_mesh.cluster}, sender=bytes(16), life=1, process=1),
        "unknown-sender": Sealer(**keys, sender=bytes(16), life=1, process=1),
    }
    bad = {
        "truncated": b"short",
        "oversized": bytes(1_201),
        "bad-mac": real[:-1] + bytes((real[-1] ^ 1,)),
        "replayed": real,
        **{reason: sealer.seal(codec.encode([]), 0) for reason, sealer in sealers.items()},
        "wrong-receiver": sealers["unknown-sender"].seal(codec.encode([]), 1),
        "malformed": sealers["unknown-sender"].seal(b"\xc1", 0),
    }
    before, deadline = snapshot(host), host.gossip.next_deadline()
    for reason, data in bad.items():
        assert host.gossip.on_datagram(data, Address("x", 1), world.now) == [PacketRefused(reason, Address("x", 1))]
    assert snapshot(host) == before
    assert host.gossip.next_deadline() == deadline


def test_packets_of_an_earlier_life_are_refused_on_either_side() -> None:
    world = World()
    names = world.mesh_of(2)
    world.wire.clear()
    world.run(2.0)
    to_old = [data for _, to, data in world.wire if to == names[1]]
    late = Forger(world, names[1])
    world.restart(names[1], seeds=names[:1])
    world.run(2.0)
    again = [world.engines[names[1]].gossip.on_datagram(data, Address("x", 1), world.now) for data in to_old]
    assert all(effects[-1] == PacketRefused("wrong-receiver", Address("x", 1)) for effects in again)
    # Whoever speaks to the dead is called once in a while, where its own record says.
    calls = [effect for effects in again for effect in effects if isinstance(effect, SendDatagram)]
    assert [call.address for call in calls] == [member(world.engines[names[1]], names[0]).address]
    late.say(names[0], Ping(1, b""))
    assert refusals(world, names[0])[-1] == "stale-life"


def test_two_nodes_that_both_start_again_inside_a_cut_know_each_others_new_lives_after_it() -> None:
    world = World()
    names = world.mesh_of(2)
    known = {name: member(world.engines[name], other).record for name, other in (names, names[::-1])}
    world.datagrams = False  # streams come through, so that neither is ever suspected
    for name in names:
        world.restart(name, known=[known[name]])
    world.run(0.5)
    world.datagrams = True
    world.run(LOCAL.redial_interval_s)
    for mine, other in (names, names[::-1]):
        assert member(world.engines[mine], other).life == world.engines[other].gossip.members.own.life


def test_everything_ever_sent_sent_again_changes_nothing() -> None:
    world = World()
    names = world.mesh_of(4)
    world.wire.clear()
    world.run(5.0)
    before = {name: snapshot(world.engines[name]) for name in names}
    for _, to, data in list(world.wire):
        effects = world.engines[to].gossip.on_datagram(data, Address("x", 1), world.now)
        assert all(isinstance(effect, PacketRefused) for effect in effects)
    assert {name: snapshot(world.engines[name]) for name in names} == before


def test_a_stolen_ring_key_cannot_make_a_member_leave_or_move() -> None:
    world = World()
    names = world.mesh_of(3)
    victim = member(world.engines[names[0]], names[2])
    envelope = bytearray(victim.record)
    envelope[envelope.index(b"n2.sim")] ^= 1  # another address under the same signature
    forger = Forger(world, names[1])
    world.perform(names[0], [])
    before = (victim.address, victim.incarnation, victim.status)
    forger.say(names[0], SignedRecord(bytes(envelope)))
    rumor = Rumor(victim.tag, victim.life, 1, 8, RumorKind.RECORD, 0, bytes(envelope))
    forger.say(names[0], rumor)
    world.run(1.0)
    assert (victim.address, victim.incarnation, victim.status) == before
    assert world.engines[names[0]].gossip.statistics().records_refused == 2


def test_forged_death_is_refuted_and_forged_incarnations_are_never_chased() -> None:
    world = World()
    names = world.mesh_of(5)
    victim = member(world.engines[names[0]], names[2])
    forger = Forger(world, names[1])
    accusation = Claim(victim.tag, victim.life, 0, node_tag(names[1]), Reason.SUSPICION_EXPIRED, True)
    forger.say(names[0], accusation)
    forger.say(names[0], Claim(victim.tag, victim.life, 2**32 - 1, node_tag(names[1]), Reason.OTHER, True))
    assert victim.status is SUSPECT
    world.run(2.0)
    assert all(member(world.engines[name], names[2]).status is ALIVE for name in names)
    assert victim.incarnation == 1
    assert not any("DEAD" in change for name in names for change in changes(world, name))


def test_deaths_forged_in_the_name_of_many_leave_the_time_to_refute() -> None:
    world = World()
    names = world.mesh_of(20)
    victim = member(world.engines[names[0]], names[2])
    accusers = names[3 : 3 + LOCAL.dead_accusers]
    claims = [Claim(victim.tag, victim.life, 0, node_tag(name), Reason.OTHER, True) for name in accusers]
    Forger(world, names[1]).say(names[0], *claims)
    world.run(5.0)
    assert world.all_see(names, names, ALIVE)
    assert not any("DEAD" in change for name in names for change in changes(world, name))


def test_a_flood_of_forged_claims_raises_our_incarnation_no_faster_than_gossip_goes() -> None:
    world = World()
    names = world.mesh_of(2)
    victim = world.engines[names[0]].gossip.members.own
    forger = Forger(world, names[1])
    for incarnation in range(50):
        forger.say(names[0], Claim(victim.tag, victim.life, incarnation, node_tag(names[1]), Reason.OTHER, False))
    assert victim.incarnation == 1


def test_a_window_that_was_run_ahead_takes_no_life_from_the_living() -> None:
    world = World()
    names = world.mesh_of(3)
    for speaker in names:
        forger = Forger(world, speaker)
        forger.sealer._counter = 2**35
        for name in names:
            if name != speaker:
                forger.say(name, Ping(1, b""))
    victim = member(world.engines[names[0]], names[2])
    for name in names[:2]:
        Forger(world, names[1]).say(name, Claim(victim.tag, victim.life, 0, node_tag(names[1]), Reason.OTHER, True))
    world.run(30.0)
    assert world.all_see(names, names, ALIVE)
    assert not any("DEAD" in change for name in names for change in changes(world, name))


@pytest.mark.parametrize("padding", [0, 60, 900, 1_035])
def test_a_padded_claim_stops_nobody(padding: int) -> None:
    world = World()
    names = world.mesh_of(3)
    victim = member(world.engines[names[0]], names[2])
    claim = Claim(victim.tag, victim.life, 0, node_tag(names[1]), Reason.OTHER, False)
    payload = msgspec.msgpack.encode([*msgspec.structs.astuple(claim), bytes(padding)])
    Forger(world, names[1]).say(names[0], Rumor(bytes(16), 1, 1, 8, RumorKind.CLAIM, 0, payload))
    assert (victim.status is SUSPECT) == (len(payload) <= CLAIM_BYTES_MAX)
    world.run(5.0)
    assert world.all_see(names, names, ALIVE)


def test_a_forged_life_locks_nobody_out() -> None:
    world = World()
    names = world.mesh_of(2)
    forger = Forger(world, names[1], life=2**62)
    forger.say(names[0], Ping(1, b""))
    assert refusals(world, names[0])[-1] == "unknown-sender"
    world.run(10.0)
    assert world.all_see(names, names, ALIVE)


def test_an_answer_to_a_call_is_no_larger_than_the_call_and_our_record() -> None:
    world = World()
    names = world.mesh_of(20)
    host = world.engines[names[0]]
    sealer = Sealer(
        ring=world.credentials.ring,
        cluster=world.credentials.cluster,
        sender=node_tag(names[1]),
        life=make_life(1, 1),
        process=9,
    )
    for extra in (0, 100, 400):
        filler = [Digest(bytes(8), bytes(8), False, bytes(21 * (extra // 21)))] if extra else []
        call = sealer.seal(codec.encode([Ping(5, b""), *filler]), 0)
        answers = host.gossip.on_datagram(call, Address("x", 1), world.now)
        sizes = [len(effect.data) for effect in answers if isinstance(effect, SendDatagram)]
        record_item = codec.encode_item(SignedRecord(host.gossip.members.own.record))
        assert len(sizes) == 1
        assert sizes[0] <= len(call) + len(record_item)


def test_answers_go_to_the_signed_address_whatever_the_source_says() -> None:
    world = World()
    names = world.mesh_of(2)
    forger = Forger(world, names[1])
    world.wire.clear()
    forger.say(names[0], Ping(7, b""))
    assert [to for _, to, _ in world.wire] == [names[1]]


@pytest.mark.parametrize("process", [0, 2**28 - 1])
def test_a_cloned_disk_is_noticed_by_both_processes_and_no_war_follows(process: int) -> None:
    world = World()
    names = world.mesh_of(3)
    clone = Gossip(
        identity=world.credentials.identity(names[2]),
        ring=world.credentials.ring,
        profile=LOCAL,
        rng=random.Random(1),
        entropy=lambda count: process.to_bytes(count, "big"),
        boot=1,
        address=address_of("clone"),
        rpc_address=address_of("clone"),
        seeds=[address_of(names[0])],
    )
    world.adopt("clone", clone)
    world.run(10.0)
    assert world.effects("clone", SelfConflict)
    assert world.effects(names[2], SelfConflict)
    world.run(60.0)
    assert member(world.engines[names[0]], names[2]).incarnation < 40


def test_a_disk_restored_to_an_earlier_boot_hears_of_its_later_one() -> None:
    world = World()
    names = world.mesh_of(3)
    world.restart(names[2], seeds=names[:1])
    world.run(2.0)
    world.start(names[2], seeds=names[:1], boot=1)
    world.run(5.0)
    conflicts = world.effects(names[2], SelfConflict)
    assert any("boot 2" in effect.detail for effect in conflicts)  # type: ignore[union-attr]


def test_a_mesh_replays_from_its_seed() -> None:
    logs = []
    for _ in range(2):
        world = World(seed=9, loss=0.1)
        names = world.mesh_of(6)
        world.kill(names[0])
        world.run(10.0)
        logs.append((world.trace_hash(), world.logs))
    assert logs[0] == logs[1]


def test_a_node_that_remembers_a_large_mesh_calls_a_few_of_it_at_once() -> None:
    world = World()
    records = [world.credentials.identity(f"m{index}") for index in range(REMEMBERED_CALLS_MAX + 5)]
    known = [
        OwnRecord(identity, boot=1, process=1, address=address_of(identity.node_id), rpc_address=Address("x", 1))
        for identity in records
    ]
    host = world.start("a", known=[own.current.raw for own in known])
    assert len(world.wire) == REMEMBERED_CALLS_MAX
    assert host.gossip.members.size() == REMEMBERED_CALLS_MAX + 6

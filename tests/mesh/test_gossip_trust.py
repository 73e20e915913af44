"""Members change their keys while they gossip, say which ring they have, and drop whom the CA revoked."""

from __future__ import annotations

from mesh.effects import MemberChanged, PacketRefused
from mesh.key_rotation import add, promote
from mesh.membership import Status
from mesh.revocations import Revocations, RevokedEnrolment
from tests.mesh.gossip_harness import World


def install(world: World, name: str, ring, revocations: int = 0) -> None:
    engine = world.engines[name]
    world.perform(name, engine.gossip.install_trust(ring, revocations, engine.clock(world.now)))


def ring_seen(world: World, viewer: str, name: str) -> int:
    member = world.engines[viewer].gossip.members.get(name)
    assert member is not None
    return member.ring


def test_a_rotation_goes_unnoticed_and_every_step_of_it_is_told_to_all() -> None:
    world = World()
    names = world.mesh_of(3)
    added = add(world.credentials.ring, b"n" * 32)
    following = promote(added, added.keys()[-1].key_id)
    before = len(world.logs[names[0]])
    for ring in (added, following):
        for name in names:
            install(world, name, ring)
            world.run(0.2)
        world.run_until(lambda: all(ring_seen(world, a, b) == ring.number for a in names for b in names), 5)  # noqa: B023
    world.run(5)

    seen = [effect for _, effect in world.logs[names[0]][before:]]
    assert not [effect for effect in seen if isinstance(effect, PacketRefused)]
    changes = [effect for effect in seen if isinstance(effect, MemberChanged)]
    assert {change.after for change in changes} == {"ALIVE"}


def test_whoever_lacks_the_key_refuses_what_it_cannot_open_and_hears_all_once_it_has_it() -> None:
    world = World()
    names = world.mesh_of(3)
    added = add(world.credentials.ring, b"n" * 32)
    following = promote(added, added.keys()[-1].key_id)
    for name in names[:2]:
        install(world, name, following)
    world.run(2)
    refused = world.effects(names[2], PacketRefused)
    assert {effect.reason for effect in refused if isinstance(effect, PacketRefused)} == {"unknown-key"}

    install(world, names[2], following)
    world.run_until(lambda: world.all_see(names, names, Status.ALIVE), 10)


def test_a_revoked_member_is_dropped_told_of_and_never_comes_back_by_its_old_records() -> None:
    world = World()
    names = world.mesh_of(3)
    gone = names[2]
    listed = Revocations().with_more([RevokedEnrolment("node", gone, 1)], [], [])
    for name in names[:2]:
        world.engines[name].gossip.authority.refusal = listed.refusal
        install(world, name, world.credentials.ring, listed.number)
    world.run(20)

    for name in names[:2]:
        assert world.status(name, gone) is None
        left = [each for each in world.effects(name, MemberChanged) if isinstance(each, MemberChanged)]
        assert [(each.after, each.reason) for each in left if each.node_id == gone][-1] == ("LEFT", "revoked")
    assert world.all_see(names[:2], names[:2], Status.ALIVE)
    world.kill(gone)
    world.start(gone, enrolment=2, seeds=names[:1])
    world.run_until(lambda: world.all_see(names, names, Status.ALIVE), 20)


def test_a_node_goes_on_under_a_later_enrolment_and_nobody_doubts_it_meanwhile() -> None:
    world = World()
    names = world.mesh_of(4)
    engine = world.engines[names[1]]
    before = {name: len(world.logs[name]) for name in names}
    world.perform(names[1], engine.gossip.adopt(world.credentials.identity(names[1], 2), engine.clock(world.now)))

    def enrolments() -> list[int]:
        found = [world.engines[name].gossip.members.get(names[1]) for name in names]
        return [member.certificate.enrolment for member in found if member is not None]

    world.run_until(lambda: enrolments() == [2] * len(names), 2)
    world.run(20)
    assert world.all_see(names, names, Status.ALIVE)
    for name in names:
        seen = [effect for _, effect in world.logs[name][before[name] :]]
        assert {effect.after for effect in seen if isinstance(effect, MemberChanged)} <= {"ALIVE"}

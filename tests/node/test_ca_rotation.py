"""Whole nodes while their mesh's CA is rotated: cut off, paused, left behind, or there all the time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.authorities import Authorities, Reissued, add, ca_name, first_authorities, promote, retire, sign_authorities
from mesh.errors import ConfigError, ConflictError
from mesh.identity import content_of, issue
from mesh.key_rotation import add as add_key
from mesh.key_rotation import sign_ring
from mesh.sealing import KeyRing
from node.env import PeerIdentity
from node.trust_fetch import STRANGERS_PAUSE_MAX_S
from tests.node.simulated_env import World, simulated_world


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


class Directory:
    """The mesh directory of a simulated mesh: makes the next list of CAs, and the ring with it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.keys = [world.mesh.ca_key]
        self.now = first_authorities(world.mesh.ca_public_key)
        self.ring = KeyRing([*world.mesh.ring])

    @property
    def newest(self) -> str:
        return ca_name(self.keys[-1].public_key().public_bytes_raw())

    def _said(self, following: Authorities, key: Ed25519PrivateKey) -> dict[str, Any]:
        self.now = following
        return {"statement": sign_authorities(key, self.world.mesh.cluster, following)}

    def _reissued(self, without: str) -> list[Reissued]:
        made = []
        for name in self.world.hosts:
            role, node, enrolment, public_key = content_of(self.world.mesh.identity(name).certificate)
            cluster = self.world.mesh.cluster
            made.append(
                Reissued(
                    issue(
                        self.keys[-1],
                        cluster=cluster,
                        role=role,
                        name=node,
                        enrolment=enrolment,
                        public_key=public_key,
                    )
                )
            )
        return [each for each in made if each.certificate.name != without]

    def rotate_key(self) -> dict[str, Any]:
        """The next key ring, by whoever signs."""
        self.ring = add_key(self.ring, bytes([self.ring.number]) * 32)
        return {"statement": sign_ring(self.keys[-1], self.world.mesh.cluster, self.ring)}

    def add(self) -> dict[str, Any]:
        former = self.keys[-1]
        self.keys.append(self.world.mesh.key(f"ca {len(self.keys)}"))
        return self._said(add(self.now, former, self.keys[-1].public_key().public_bytes_raw()), former)

    def promote(self, without: str = "") -> dict[str, Any]:
        said = self._said(promote(self.now, self.newest, self._reissued(without)), self.keys[-1])
        if self.ring.number:
            self.ring = KeyRing([*self.ring], number=self.ring.number + 1)
            said["ring"] = sign_ring(self.keys[-1], self.world.mesh.cluster, self.ring)
        return said

    def retire(self, without: str = "") -> dict[str, Any]:
        former = self.now.cas[-2].name
        return self._said(retire(self.now, former, self._reissued(without)), self.keys[-1])


async def nobody_lags(world: World, *names: str) -> None:
    """Until each of these hosts shows that all follow its list and have a certificate by its signing CA."""
    for name in names:

        async def settled(name: str = name) -> bool:
            return not (await world.hosts[name].admin("mesh-ca"))["lagging"]

        await world.until(settled)


def has_newest(world: World, directory: Directory, *names: str) -> bool:
    return all(
        world.hosts[name].node.trust.authorities.number == directory.now.number
        and world.hosts[name].node.spec.identity.certificate
        == directory.now.reissued_for(world.mesh.identity(name).certificate).certificate
        for name in names
    )


async def rotate(world: World, directory: Directory, *names: str) -> None:
    """One whole rotation at the first of these hosts, each step of which all of them follow."""
    for step in (directory.add, directory.promote, directory.retire):
        await world.hosts[names[0]].admin("mesh-ca-install", **step())
        await nobody_lags(world, *names)


async def test_a_rotation_goes_unnoticed_by_work_and_membership(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    directory, changes = Directory(world), []
    for host in (a, b, c):
        host.node.loop.on_member_changed.append(changes.append)
    sleeping = await b.submit("sleep", input="5")
    await rotate(world, directory, "a", "b", "c")

    assert has_newest(world, directory, "a", "b", "c")
    assert {change.after for change in changes} == {"ALIVE"}
    for host in (a, b, c):
        assert (await host.wait(await host.submit(input="under the new CA")))["status"] == "SUCCESS"
    assert (await c.wait(sleeping))["steps"][0]["attempt"] == 1
    shown = await c.admin("mesh-ca")
    assert [ca["state"] for ca in shown["cas"]] == ["retired", "signing"]
    assert {each["certificateBy"] for each in shown["members"]} == {directory.newest}


async def test_a_stream_counts_by_who_signed_for_it_or_has_signed_the_same_since(world, autojump_clock):
    a, _ = (world.host(name) for name in "ab")
    await world.up()
    directory, key = Directory(world), world.mesh.identity("b").certificate.public_key
    first = world.mesh.ca_public_key

    def refused(public_key: bytes = key, ca: bytes | None = first, name: str = "b") -> str:
        return a.node.standing.stream_refusal(PeerIdentity("node", name, 1, "", "", public_key, ca)) or ""

    assert refused() == refused(name="x") == refused(ca=b"") == ""  # TLS has followed it to the only CA
    await rotate(world, directory, "a", "b")
    assert refused() == refused(ca=directory.now.signing.public_key, name="x") == refused(ca=None) == ""
    assert "which was retired: enroll b anew" in refused(public_key=bytes(32))
    assert "which was retired: enroll x anew" in refused(name="x")
    asked = a.node.trust_fetch._strangers_from
    assert "of a CA that is not known here" in refused(ca=b"", name="x")
    assert a.node.trust_fetch._strangers_from > asked


async def test_a_mesh_that_never_rotated_says_nothing_of_cas(world, autojump_clock):
    a, _ = (world.host(name) for name in "ab")
    await world.up()
    member = a.node.gossip.members.get("b")
    assert member is not None
    assert member.authorities == 0
    before = len(member.record)
    await a.admin("mesh-ca-install", **Directory(world).add())
    await world.until(lambda: a.node.gossip.members.get("b").authorities == 1)
    assert len(a.node.gossip.members.get("b").record) > before


@pytest.mark.parametrize("rotations", [1, 2])
async def test_a_node_that_was_cut_off_meanwhile_follows_by_its_own_certificate(world, autojump_clock, rotations):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    directory = Directory(world)
    await a.admin("mesh-keys-install", **directory.rotate_key())
    await nobody_lags(world, "a", "b", "c")
    world.network.cut("c", "ab")
    await world.until(lambda: a.sees("c") == b.sees("c") == "DEAD")
    for _ in range(rotations):
        await rotate(world, directory, "a", "b")
        await a.admin("mesh-keys-install", **directory.rotate_key())
        await world.until(lambda: b.node.trust.ring.number == directory.ring.number)
    assert c.node.trust.authorities.number == 0

    world.network.heal()
    # Its life has not changed, so it hears them all the time: what it cannot believe is the only sign.
    await world.until(lambda: has_newest(world, directory, "a", "b", "c"))
    assert c.node.trust.ring.number == directory.ring.number
    await world.until(world.is_whole)
    await nobody_lags(world, "a", "b", "c")
    assert (await a.wait(await c.submit(input="back")))["status"] == "SUCCESS"

    # And as often as it starts again, from its old enrolment and what it stored.
    await c.crash()
    await c.start()
    await world.until(world.is_whole)
    assert has_newest(world, directory, "c")


async def test_the_side_of_a_cut_that_knew_nothing_follows_although_it_was_never_alone(world, autojump_clock):
    a, _, c, _ = (world.host(name) for name in "abcd")
    await world.up()
    directory = Directory(world)
    world.network.cut("ab", "cd")
    await world.until(lambda: a.sees("c") == a.sees("d") == c.sees("a") == c.sees("b") == "DEAD")
    await rotate(world, directory, "a", "b")
    world.network.heal()
    # They believe no record that tells who is ahead: that there is such a record is what makes them ask.
    await world.until(lambda: has_newest(world, directory, *"abcd"))
    await world.until(world.is_whole)


async def test_a_stopped_process_goes_on_after_the_rotation(world, autojump_clock):
    a, _, c = (world.host(name) for name in "abc")
    await world.up()
    directory = Directory(world)
    c.pause()
    await world.until(lambda: a.sees("c") == "DEAD")
    await rotate(world, directory, "a", "b")
    c.resume()
    await world.until(lambda: has_newest(world, directory, "c"))
    await world.until(world.is_whole)


async def test_each_step_waits_for_the_members_that_are_there(world, autojump_clock):
    a, b, _ = (world.host(name) for name in "abc")
    await world.up()
    directory = Directory(world)
    world.network.cut("b", "ac")
    await a.admin("mesh-ca-install", **directory.add())
    added = directory.now
    await world.until(lambda: a.node.gossip.members.get("c").authorities == 1)
    with pytest.raises(ConflictError, match="not followed yet by b:"):
        await a.admin("mesh-ca-install", **directory.promote())
    world.network.heal()
    await nobody_lags(world, "a", "b", "c")

    directory.now = added
    await a.admin("mesh-ca-install", **directory.promote(without="b"))
    await world.until(lambda: all(m.authorities == 2 for m in a.node.gossip.members.active_others()))
    assert (await a.admin("mesh-ca"))["lagging"] == ["b"]
    promoted = directory.now
    with pytest.raises(ConflictError, match="b holds no certificate of a CA that stays"):
        await a.admin("mesh-ca-install", **directory.retire(without="b"))
    # A step that names everybody heals it.
    directory.now = promoted
    await b.crash()
    await world.until(lambda: a.sees("b") == "DEAD")
    with pytest.raises(ConflictError, match="b would be cut off for good"):
        await a.admin("mesh-ca-install", **directory.retire(without="b"))
    directory.now = promoted
    await a.admin("mesh-ca-install", **directory.retire())
    await b.start()
    await world.until(lambda: has_newest(world, directory, "a", "b", "c"))
    await world.until(world.is_whole)


async def test_who_is_left_behind_is_out_says_why_and_keeps_nobody_busy(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    directory = Directory(world)
    await a.admin("mesh-ca-install", **directory.add())
    await nobody_lags(world, "a", "b", "c")
    await a.admin("mesh-ca-install", **directory.promote(without="c"), force=True)
    await world.until(lambda: b.node.trust.authorities.number == 2)
    await a.admin("mesh-ca-install", **directory.retire(without="c"), force=True)

    await world.until(lambda: a.sees("c") is None and b.sees("c") is None and c.node.identity_conflict is not None)
    assert "not trusted here" in c.node.identity_conflict
    asked = []
    call = a.node.trust_fetch._calls.call

    async def counted(address, verb, body, **options):
        asked.append(verb)
        return await call(address, verb, body, **options)

    a.node.trust_fetch._calls = SimpleNamespace(call=counted)
    await trio.sleep(600)
    assert len(asked) <= 2 * 600 / STRANGERS_PAUSE_MAX_S + 20  # c goes on calling, as it does when it is back some day
    await c.crash()
    with pytest.RaisesGroup(ConfigError, flatten_subgroups=True) as refused:
        await c.start()
    assert "Enroll this host anew" in str(refused.value.exceptions)

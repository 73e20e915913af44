"""Those who send what they should not: recorded packets again, made-up ones, and rows that no release could write."""

from __future__ import annotations

import random
from collections import deque

import trio

from chaos.scenario import Fault
from chaos.simulation.datagrams import HOST_SUFFIX
from chaos.simulation.host import GOSSIP_PORT
from chaos.simulation.world import World
from mesh.bundles import make_bundle
from mesh.ids import Address, Origin
from mesh.rows import Row
from node.node import TOPIC_BUNDLE

RECORDED_MAX = 2_000
FUTURE_MS = 3_600_000


class _Tap:
    """Records what goes over the lines while it is open."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.packets: deque[tuple[bytes, Address, Address]] = deque(maxlen=RECORDED_MAX)

    def __enter__(self) -> _Tap:
        self._before = self._world.datagrams.tap
        self._world.datagrams.tap = lambda *packet: self.packets.append(packet) if packet[0] else None
        return self

    def __exit__(self, *_: object) -> None:
        self._world.datagrams.tap = self._before


def _rate(fault: Fault) -> float:
    rate = fault.options["rate"]
    assert isinstance(rate, int | float)
    return float(rate)


def _someone(world: World, draws: random.Random) -> Address:
    return Address(draws.choice(list(world.hosts)) + HOST_SUFFIX, GOSSIP_PORT)


async def replay_packets(world: World, fault: Fault) -> None:
    """Recorded packets come again, to those they were meant for and to others."""
    draws = world.stream(f"replays {fault.at_s}")
    with _Tap(world) as tap, trio.move_on_after(fault.for_s):
        while True:
            await trio.sleep(draws.expovariate(_rate(fault)))
            if tap.packets:
                data, source, target = draws.choice(tap.packets)
                world.datagrams.send(data, source, target if draws.random() < 0.5 else _someone(world, draws))


async def forge_packets(world: World, fault: Fault) -> None:
    """Random bytes, and recorded packets that were altered, cut short or made longer."""
    draws = world.stream(f"forgeries {fault.at_s}")
    with _Tap(world) as tap, trio.move_on_after(fault.for_s):
        while True:
            await trio.sleep(draws.expovariate(_rate(fault)))
            source, target = _someone(world, draws), _someone(world, draws)
            world.datagrams.send(forged(draws, tap.packets), source, target)


def forged(draws: random.Random, recorded: deque[tuple[bytes, Address, Address]]) -> bytes:
    """Random bytes, or a recorded packet that was altered, cut short or made longer."""
    if not recorded or draws.random() < 0.3:
        return draws.randbytes(draws.randint(0, 1_200))
    changed = bytearray(draws.choice(recorded)[0])
    what = draws.randrange(3)
    if what == 0:
        changed[draws.randrange(len(changed))] ^= draws.randint(1, 255)
    elif what == 1:
        del changed[draws.randrange(len(changed)) :]
    else:
        changed += draws.randbytes(draws.randint(1, 1_200 - min(1_199, len(changed))))
    return bytes(changed[:1_200])


async def poison_row(world: World, fault: Fault) -> None:
    """A member, as an unknown release or a thief of its key would, signs a row that no release of ours could write."""
    host = world.hosts[fault.nodes[0]]
    await trio.lowlevel.checkpoint()
    if host.node is None or host.is_paused:
        return
    draws = world.stream(f"poison {fault.at_s}")
    row = _poison(str(fault.options["what"]), host.node_id, draws, host.node.store.hlc.last)
    bundle = make_bundle(world.credentials.identity(host.node_id, host.enrolment), [row], row.seq, row.seq)
    host.node.loop.publish(TOPIC_BUNDLE, bundle, row.seq.to_bytes(8, "big"))


def _poison(what: str, node_id: str, draws: random.Random, hlc: int) -> Row:
    """An origin of its own keeps it from taking a number that the host's own next row will need."""
    values: dict[str, object] = {"task_id": "poison", "name": "poison", "status": "PENDING", "owner": node_id}
    if what == "status":
        values["status"] = "NONSENSE"
    elif what == "garbage":
        values = {"status": 7, "owner": b"\xff", "depends_on": "{", "attempt": -1}
    return Row(
        table="steps",
        namespace="default",
        key=f"poison-{draws.getrandbits(32):08x}",
        rank=99 if what == "rank" else 0,
        hlc=hlc + ((FUTURE_MS << 16) if what == "future-stamp" else 1),
        node=node_id,
        origin=Origin(node_id, draws.getrandbits(62) | 1),
        seq=1,
        values=values,  # type: ignore[arg-type]  # wrong on purpose
    )

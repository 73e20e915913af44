"""How each kind of fault happens in a simulated world of whole nodes: a coroutine that begins it, waits, and ends it.

Kinds, options and limits are those of `fault_menu`. A fault on a host that is down already, or on a process that does
not run, does what it still can: schedules need no exceptions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import msgspec
import trio

from chaos.observations import FaultBegan, FaultEnded, SettingsReloaded
from chaos.scenario import Fault
from chaos.simulation.attackers import forge_packets, poison_row, replay_packets
from chaos.simulation.host import Host
from chaos.simulation.links import Overlay, Pair, between, towards
from chaos.simulation.world import World
from mesh.errors import ConfigError, RelayMeshError

Player = Callable[[World, Fault], Awaitable[None]]

BUMP_WAIT_S = 5.0
ABSENCE_LOOK_S = 5.0


async def play_fault(world: World, fault: Fault) -> None:
    """Let one fault happen, from beginning to end."""
    world.tell(FaultBegan(at_ms=world.now_ms(), fault=fault))
    try:
        await PLAYERS[fault.kind](world, fault)
    finally:
        world.tell(FaultEnded(at_ms=world.now_ms(), fault=fault))


def _number(fault: Fault, option: str) -> float:
    value = fault.options[option]
    assert isinstance(value, int | float), (option, value)
    return float(value)


def _hosts(world: World, fault: Fault) -> list[Host]:
    return [world.hosts[name] for name in fault.nodes]


# --- the network ---


def _lines(world: World, fault: Fault) -> frozenset[Pair] | None:
    """All lines of the named hosts; None, which means all there are, when none is named."""
    return between(fault.nodes, list(world.hosts)) if fault.nodes else None


@contextmanager
def _laid(world: World, overlay: Overlay) -> Iterator[None]:
    world.links.lay(overlay)
    try:
        yield
    finally:
        world.links.lift(overlay)


async def _change_lines(
    overlay_of: Callable[[Fault, frozenset[Pair] | None], Overlay], world: World, fault: Fault
) -> None:
    with _laid(world, overlay_of(fault, _lines(world, fault))):
        await trio.sleep(fault.for_s)


def _cut(pairs: frozenset[Pair]) -> Overlay:
    return Overlay(pairs=pairs, blocked=True)


async def _partition(world: World, fault: Fault) -> None:
    sides = fault.groups
    pairs = frozenset(
        pair for index, side in enumerate(sides) for other in sides[index + 1 :] for pair in between(side, other)
    )
    with _laid(world, _cut(pairs)):
        await trio.sleep(fault.for_s)


async def _one_way(world: World, fault: Fault) -> None:
    with _laid(world, _cut(towards(fault.nodes, fault.groups[0]))):
        await trio.sleep(fault.for_s)


def _isolated(world: World, fault: Fault) -> frozenset[Pair]:
    return between(fault.nodes, [name for name in world.hosts if name not in fault.nodes])


async def _isolate(world: World, fault: Fault) -> None:
    with _laid(world, _cut(_isolated(world, fault))):
        await trio.sleep(fault.for_s)


async def _flap(world: World, fault: Fault) -> None:
    period_s, down_share = _number(fault, "period_s"), _number(fault, "down_share")
    with trio.move_on_after(fault.for_s):
        while True:
            with _laid(world, _cut(_isolated(world, fault))):
                await trio.sleep(period_s * down_share)
            await trio.sleep(period_s * (1 - down_share))


# --- processes ---


async def _kill(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.die("kill")
    await trio.sleep(fault.for_s)
    for host in _hosts(world, fault):
        host.start()


async def _long_absence(world: World, fault: Fault) -> None:
    """While a host is off, its peers delete all that ended, give the host up, and forget both."""
    (host,) = _hosts(world, fault)
    host.die("kill")
    with trio.move_on_after(fault.for_s):
        given_up: dict[str, None] = {}
        while True:
            await trio.sleep(ABSENCE_LOOK_S)
            for peer in world.running():
                try:
                    await peer.call("purge", {"doneRetentionMs": 0, "deadRetentionMs": 0}, BUMP_WAIT_S)
                    if peer.name not in given_up:
                        await peer.call("mesh-prune", {"nodeId": host.node_id}, BUMP_WAIT_S)
                        given_up[peer.name] = None
                except (RelayMeshError, TimeoutError):
                    continue  # it does not hold the host for gone yet, or fails itself
    host.start()


async def _power_cut(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.die("power-cut", image=str(fault.options["image"]))
    await trio.sleep(fault.for_s)
    for host in _hosts(world, fault):
        host.start()


async def _power_cut_at_write(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    image = str(fault.options["image"])
    host.disk.cut_at_write(int(_number(fault, "nth")), lambda: host.die("power-cut", image=image))
    await trio.sleep(fault.for_s)
    host.disk.cut_at_write(None, None)  # it may not have written so often
    host.start()


async def _stop(world: World, fault: Fault) -> None:
    async with trio.open_nursery() as nursery:
        for host in _hosts(world, fault):
            nursery.start_soon(host.stop)
        await trio.sleep(fault.for_s)
    for host in _hosts(world, fault):
        host.start()


async def _pause(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.pause()
    try:
        await trio.sleep(fault.for_s)
    finally:
        for host in _hosts(world, fault):
            host.resume()


async def _starve(world: World, fault: Fault) -> None:
    share, slice_s = _number(fault, "share"), _number(fault, "slice_s")
    hosts = _hosts(world, fault)
    try:
        with trio.move_on_after(fault.for_s):
            while True:
                for host in hosts:
                    host.pause()
                await trio.sleep(slice_s * (1 - share))
                for host in hosts:
                    host.resume()
                await trio.sleep(slice_s * share)
    finally:
        for host in hosts:
            host.resume()


async def _settings(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.settings = {
            **host.settings,
            "gossipFanout": int(_number(fault, "fanout")),
            "gossipPacketTtl": int(_number(fault, "ttl")),
        }
        await host.restart()


async def _settings_reload(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        life = host.lives
        bad_refused = await _is_refused(host, b'{"gossipFanout": 0}')
        host.settings = {
            **host.settings,
            "gossipFanout": int(_number(fault, "fanout")),
            "gossipPacketTtl": int(_number(fault, "ttl")),
        }
        if bad_refused is None or await _is_refused(host, None) is not False:
            continue  # it is down, or fails: it reads the good file when it starts
        node = host.node
        if node is None or host.lives != life:
            continue
        world.tell(
            SettingsReloaded(
                at_ms=world.now_ms(),
                host=host.name,
                bad_refused=bad_refused,
                wanted=host.settings,
                in_force=msgspec.to_builtins(node.spec.settings),
                spread=(node.gossip.profile.fanout, node.gossip.profile.hop_ttl_override),
            )
        )


async def _is_refused(host: Host, bad_file: bytes | None) -> bool | None:
    """What becomes of a reload while the host's settings file is a bad one, or not; None when nobody knows."""
    host.bad_settings = bad_file
    try:
        await host.call("reload-settings", {}, BUMP_WAIT_S)
    except ConfigError:
        return True
    except (RelayMeshError, TimeoutError):
        return None
    finally:
        host.bad_settings = None
    return False


async def _upgrade(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    await host.upgrade()
    await trio.sleep(fault.for_s)
    await host.roll_back()


# --- disks ---


async def _lying_sync(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    host.disk.lying_sync = True
    await trio.sleep(fault.for_s)
    await host.lose_disk()
    host.disk.lying_sync = False
    host.start()


async def _sync_error(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    host.disk.sync_errors += int(_number(fault, "count"))
    await trio.lowlevel.checkpoint()


async def _io_error(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    host.disk.io_error_share = _number(fault, "share")
    await trio.sleep(fault.for_s)
    host.disk.io_error_share = 0.0


async def _disk_full(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    host.disk.quota_bytes = host.disk.used_bytes() + int(_number(fault, "free_kib")) * 1024
    await trio.sleep(fault.for_s)
    host.disk.quota_bytes = None


async def _read_only(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    host.disk.read_only = True
    await trio.sleep(fault.for_s)
    host.disk.read_only = False


async def _slow_disk(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    extra_s = _number(fault, "latency_ms") / 1000
    host.extra_latency_s += extra_s
    await trio.sleep(fault.for_s)
    host.extra_latency_s -= extra_s


async def _bit_flip(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    host.die("kill")
    await host.until_ended()
    host.durable_lost = True
    draws = world.stream(f"bit flip {fault.at_s}")
    for number in range(int(_number(fault, "bits"))):
        # In the log, too: newer pages there would hide what is wrong with those in the file.
        host.disk.flip_bit(draws, "relaymesh.db-wal" if number % 2 else "relaymesh.db")
    await trio.sleep(fault.for_s)
    host.start()


async def _stale_image(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    image = host.disk.snapshot()
    await trio.sleep(fault.for_s)
    await host.lose_disk()
    host.disk.restore(image)
    host.start()


async def _wipe(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    await host.lose_disk()
    host.disk.wipe()
    host.enrolment += 1
    await trio.sleep(fault.for_s)
    host.start()


async def _clone(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    twin = world.add(f"{host.name}-twin-{int(fault.at_s * 1000)}", node_id=host.node_id)
    twin.enrolment = host.enrolment
    twin.disk.restore(host.disk.snapshot())
    twin.start()
    await trio.sleep(fault.for_s)
    twin.die("kill")
    await twin.until_ended()
    # The operator has seen the alarm, removed the copy, and restarts the one that is meant to be.
    await host.restart()


# --- clocks ---


async def _clock_skew(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.clock.jump(_number(fault, "skew_s"))
    await trio.sleep(fault.for_s)
    for host in _hosts(world, fault):
        host.clock.jump(-_number(fault, "skew_s"))


async def _clock_jump(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.clock.jump(_number(fault, "jump_s"))
        # What a process believes of the date it learns at its start.
        await host.restart()


async def _clock_drift(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.clock.drift(_number(fault, "ppm"))
    await trio.sleep(fault.for_s)
    for host in _hosts(world, fault):
        host.clock.drift(0.0)


async def _clock_freeze(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.clock.freeze(True)
    await trio.sleep(fault.for_s)
    for host in _hosts(world, fault):
        host.clock.freeze(False)


async def _no_clock(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.die("power-cut")
        await host.until_ended()
        host.clock.lose_date()
    await trio.sleep(fault.for_s)
    for host in _hosts(world, fault):
        host.start()


# --- operators ---


async def _epoch_bump(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    try:
        await host.call("cluster-epoch-bump", {"reason": "chaos"}, BUMP_WAIT_S)
    except (RelayMeshError, TimeoutError):
        return  # it is down or cut off from its disk: nothing is bumped, or nobody knows


async def _key_rotation(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    for _ in range(int(_number(fault, "rotations"))):
        await world.key_operator.rotate(host)


async def _ca_rotation(world: World, fault: Fault) -> None:
    (host,) = _hosts(world, fault)
    for _ in range(int(_number(fault, "rotations"))):
        await world.ca_operator.rotate(host)


PLAYERS: Mapping[str, Player] = {
    "loss": partial(_change_lines, lambda fault, pairs: Overlay(pairs=pairs, loss=_number(fault, "share"))),
    "duplicate": partial(_change_lines, lambda fault, pairs: Overlay(pairs=pairs, duplicate=_number(fault, "share"))),
    "reorder": partial(_change_lines, lambda fault, pairs: Overlay(pairs=pairs, reorder=_number(fault, "share"))),
    "mutate": partial(_change_lines, lambda fault, pairs: Overlay(pairs=pairs, mutate=_number(fault, "share"))),
    "delay": partial(
        _change_lines,
        lambda fault, pairs: Overlay(
            pairs=pairs, delay_s=_number(fault, "delay_ms") / 1000, jitter_s=_number(fault, "jitter_ms") / 1000
        ),
    ),
    "bandwidth": partial(
        _change_lines, lambda fault, pairs: Overlay(pairs=pairs, bandwidth_bytes_s=_number(fault, "bytes_s"))
    ),
    "clog": partial(_change_lines, lambda fault, pairs: Overlay(pairs=pairs, clogged=True)),
    "partition": _partition,
    "one-way": _one_way,
    "isolate": _isolate,
    "long-absence": _long_absence,
    "flap": _flap,
    "replay-packets": replay_packets,
    "forge-packets": forge_packets,
    "kill": _kill,
    "stop": _stop,
    "pause": _pause,
    "starve": _starve,
    "power-cut": _power_cut,
    "power-cut-at-write": _power_cut_at_write,
    "settings": _settings,
    "settings-reload": _settings_reload,
    "upgrade": _upgrade,
    "lying-sync": _lying_sync,
    "sync-error": _sync_error,
    "io-error": _io_error,
    "disk-full": _disk_full,
    "read-only": _read_only,
    "slow-disk": _slow_disk,
    "bit-flip": _bit_flip,
    "stale-image": _stale_image,
    "wipe": _wipe,
    "clone": _clone,
    "clock-skew": _clock_skew,
    "clock-jump": _clock_jump,
    "clock-drift": _clock_drift,
    "clock-freeze": _clock_freeze,
    "no-clock": _no_clock,
    "epoch-bump": _epoch_bump,
    "poison-row": poison_row,
    "key-rotation": _key_rotation,
    "ca-rotation": _ca_rotation,
}

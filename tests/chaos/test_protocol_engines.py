import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.protocol.engines import ProtocolWorld, address_of
from chaos.simulation.datagrams import RECEIVE_BUFFER_DATAGRAMS
from chaos.simulation.links import Conditions, Overlay, between, towards
from mesh.effects import MemberChanged, PacketRefused, ProbeStream, RumorReceived
from mesh.membership import Status
from mesh.profiles import LOCAL

ALIVE, DEAD, LEFT = Status.ALIVE, Status.DEAD, Status.LEFT


def whole(count: int, seed: int = 1, **options: object) -> tuple[ProtocolWorld, list[str]]:
    world = ProtocolWorld(seed, profile=LOCAL, **options)
    names = world.start_whole(count)
    world.run(2.0)
    return world, names


def changes(world: ProtocolWorld) -> list[tuple[str, str, str]]:
    seen: list[tuple[str, str, str]] = []

    def hear(engine, effect):
        if isinstance(effect, MemberChanged):
            seen.append((engine.name, effect.node_id, effect.after))

    world.on_effect.append(hear)
    return seen


def busy_hash(seed: int, **options: object) -> str:
    world = ProtocolWorld(seed, profile=LOCAL, conditions=Conditions(loss=0.1, mutate=0.05, duplicate=0.1), **options)
    names = world.start_mesh(8)
    world.run(3.0)
    world.kill(names[1])
    world.pause(names[2], 4.0)
    world.set_drift(names[3], 5_000)
    world.run(8.0)
    world.restart(names[1], seeds=names[:1])
    world.leave(names[4])
    world.run(3.0)
    return world.trace_hash()


def test_a_run_follows_from_its_seed_whoever_shares_what_was_worked_out() -> None:
    assert busy_hash(1) == busy_hash(1, share_crypto=True)
    assert busy_hash(1) != busy_hash(2)


def test_a_run_is_the_same_under_another_hash_seed() -> None:
    code = "from tests.chaos.test_protocol_engines import busy_hash; print(busy_hash(3))"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert hashes == {busy_hash(3) + "\n"}


def test_a_mesh_that_is_started_whole_knows_all_its_members_and_asks_nobody_twice() -> None:
    world, names = whole(10)
    assert world.all_see(names, names, ALIVE)
    seen = changes(world)
    world.run(20.0)
    assert seen == []


def test_a_killed_node_is_dead_to_all_and_alive_again_after_its_restart() -> None:
    world, names = whole(6)
    world.kill(names[0])
    assert world.run_until(lambda: world.all_see(names[1:], names[:1], DEAD), 10.0) is not None
    world.restart(names[0], seeds=names[1:2])
    assert world.run_until(lambda: world.all_see(names, names, ALIVE), 3.0) is not None


def test_a_node_that_leaves_says_goodbye_and_ends() -> None:
    world, names = whole(5)
    world.leave(names[0])
    world.run(3.0)
    assert not world.engines[names[0]].up
    assert world.all_see(names[1:], names[:1], LEFT)


def test_a_paused_node_hears_what_lay_in_its_socket_before_it_judges_anybody() -> None:
    world, names = whole(5)
    seen = changes(world)
    world.pause(names[0], 12.0)
    world.run(10.0)
    assert len(world.engines[names[0]].inbox) > 0
    world.run(6.0)
    assert [change for change in seen if change[0] == names[0]] == []
    assert world.all_see(names, names, ALIVE)


def test_a_socket_nobody_reads_keeps_only_so_much() -> None:
    world, names = whole(2)
    world.pause(names[0], 60.0)
    for _ in range(RECEIVE_BUFFER_DATAGRAMS + 10):
        world.deliver(names[0], b"x", address_of(names[1]))
    assert len(world.engines[names[0]].inbox) == RECEIVE_BUFFER_DATAGRAMS


def test_a_starved_node_runs_in_slices_until_it_is_fed() -> None:
    world, names = whole(4)
    world.starve(names[0], share=0.25, slice_s=2.0, for_s=8.0)
    ran = 0
    for _ in range(80):
        world.run(0.1)
        ran += world.engines[names[0]].runs
    assert 15 <= ran <= 25
    world.run(1.0)
    assert world.engines[names[0]].runs


def test_a_fast_clock_probes_more_often_and_shows_no_jump() -> None:
    world, names = whole(3)
    fast = world.engines[names[0]]
    before = fast.clock(world.now)
    world.set_drift(names[0], 200_000)
    assert fast.clock(world.now) == pytest.approx(before)
    probes = fast.gossip.statistics().probes
    world.run(60.0)
    slow_probes = 60.0 / LOCAL.probe_interval_s
    assert fast.gossip.statistics().probes - probes == pytest.approx(1.2 * slow_probes, abs=3)


@pytest.mark.parametrize(
    ("blocked", "suspected"), [("udp-only", False), ("both", True), ("their-way", True), ("streams-off", True)]
)
def test_a_stream_probe_answers_only_over_open_lines_of_a_running_node(blocked: str, suspected: bool) -> None:
    world, names = whole(2)
    seen = changes(world)
    asked: list[str] = []
    world.on_effect.append(
        lambda engine, effect: asked.append(engine.name) if isinstance(effect, ProbeStream) else None
    )
    if blocked == "both":
        world.links.lay(Overlay(pairs=between(names[:1], names[1:]), blocked=True))
    elif blocked == "their-way":
        world.links.lay(Overlay(pairs=towards(names[1:], names[:1]), blocked=True))
    else:
        world.links.lay(Overlay(pairs=None, loss=1.0))
        world.links.segment_delay_s = lambda *_: 0.01  # type: ignore[method-assign]
        world.streams = blocked == "udp-only"
    world.run(4.0)
    assert asked
    assert any(change[2] == "SUSPECT" for change in seen) == suspected


def test_clogged_packets_come_when_the_clog_ends() -> None:
    world, names = whole(2)
    heard: list[object] = []
    world.on_effect.append(lambda _, effect: heard.append(effect) if isinstance(effect, RumorReceived) else None)
    clog = Overlay(pairs=None, clogged=True)
    world.links.lay(clog)
    world.publish(names[0], 1, b"news")
    world.run(1.0)
    assert heard == []
    world.links.lift(clog)
    world.run(0.1)
    assert len(heard) == 1


def test_a_changed_packet_is_refused() -> None:
    world, _ = whole(2)
    refused: list[str] = []
    world.on_effect.append(lambda _, e: refused.append(e.reason) if isinstance(e, PacketRefused) else None)
    world.links.lay(Overlay(pairs=None, mutate=1.0))
    world.run(3.0)
    assert refused
    assert all(reason != "malformed" for reason in refused)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_every_world_comes_to_know_itself(seed: int, count: int) -> None:
    world = ProtocolWorld(seed, profile=LOCAL)
    names = world.start_mesh(count)
    assert world.run_until(lambda: world.all_see(names, names, ALIVE), 10.0) is not None
    assert world.engines[names[0]].bytes_sent > 0

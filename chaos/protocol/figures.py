"""How fast and how quietly the membership protocol works: figures over many seeds, against their aims.

`python -m chaos.protocol.figures [--quick]` prints them. Everything follows from the seeds, so a figure changes only
with the protocol. All of them are of the `lan` profile, with delays of a local network (0.2 ms and more, mean 1 ms).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chaos.protocol.engines import Engine, ProtocolWorld
from chaos.simulation.links import Conditions, Overlay, between
from chaos.simulation.seeds import stream
from mesh.effects import Effect, MemberChanged, RumorReceived
from mesh.membership import Status

WARM_UP_S = 10.0
DATAGRAM_HEADERS_BYTES = 28
"""Of UDP and IPv4, which is how the network counts."""
MISSED = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure. `aim` is what it must not exceed; None where nothing is promised."""

    what: str
    value: float
    unit: str
    aim: float | None
    of: str
    """What it was measured over."""

    @property
    def held(self) -> bool:
        """Whether it is as good as it must be."""
        return self.aim is None or self.value <= self.aim


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is simulated: enough for a look, or for the figures that are published."""

    seeds: int
    rumors: int
    hours_light: float
    hours_heavy: float
    join_nodes: tuple[int, ...]


QUICK = Effort(seeds=10, rumors=20, hours_light=0.1, hours_heavy=0.05, join_nodes=(10, 50, 100))
FULL = Effort(seeds=100, rumors=200, hours_light=2.0, hours_heavy=0.5, join_nodes=(10, 50, 100, 1_000))


def _whole(count: int, seed: int, *, loss: float = 0.0) -> tuple[ProtocolWorld, list[str]]:
    world = ProtocolWorld(seed, conditions=Conditions(loss=loss), share_crypto=True)
    names = world.start_whole(count)
    # How long before the crash the probes began differs, as it does between real crashes.
    world.run(WARM_UP_S + stream(seed, "warm up").random() * world.profile.probe_interval_s)
    return world, names


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def crash_to_dead_s(count: int, seed: int) -> float:
    """Seconds from the crash of one member until the last of the others holds it DEAD."""
    world, names = _whole(count, seed)
    victim = names[stream(seed, "victim").randrange(count)]
    others = [name for name in names if name != victim]
    world.kill(victim)
    taken_s = world.run_until(lambda: world.all_see(others, [victim], Status.DEAD), 120.0)
    return MISSED if taken_s is None else taken_s


def rumor_to_all_s(count: int, seed: int, *, loss: float, rumors: int) -> list[float]:
    """Seconds until the last member has it, for each of some rumors; infinite when one never gets it."""
    world, names = _whole(count, seed, loss=loss)
    heard: dict[bytes, list[float]] = {}

    def hear(_engine: Engine, effect: Effect) -> None:
        if isinstance(effect, RumorReceived):
            heard.setdefault(effect.payload, []).append(world.now)

    world.on_effect.append(hear)
    taken_s: list[float] = []
    draws = stream(seed, "rumors")
    for number in range(rumors):
        payload, told_at = b"rumor %d" % number, world.now
        world.publish(draws.choice(names), 1, payload)
        world.run(4.0)
        arrivals = heard.pop(payload, [])
        taken_s.append(max(arrivals) - told_at if len(arrivals) == count - 1 else MISSED)
    return taken_s


def _deaths(world: ProtocolWorld, except_of: str = "") -> list[str]:
    """Verdicts of DEAD on any member but one, as they come."""
    verdicts: list[str] = []

    def hear(engine: Engine, effect: Effect) -> None:
        if isinstance(effect, MemberChanged) and effect.after == "DEAD" and effect.node_id != except_of:
            verdicts.append(f"{effect.node_id} by {engine.name}")

    world.on_effect.append(hear)
    return verdicts


def false_deaths(count: int, seed: int, *, loss: float, hours: float) -> int:
    """Members that were held DEAD by somebody although all live; each once per time that it happens."""
    world, _ = _whole(count, seed, loss=loss)
    dead: dict[str, dict[str, None]] = {}
    deaths = 0

    def hear(engine: Engine, effect: Effect) -> None:
        nonlocal deaths
        if isinstance(effect, MemberChanged):
            holders = dead.setdefault(effect.node_id, {})
            if effect.after == "DEAD":
                deaths += not holders
                holders[engine.name] = None
            else:
                holders.pop(engine.name, None)

    world.on_effect.append(hear)
    world.run(hours * 3_600)
    return deaths


def deaths_by_starvation(count: int, seed: int, *, share: float, slice_s: float) -> int:
    """Verdicts of DEAD on healthy members while one of them gets the CPU only now and then, for two minutes."""
    world, names = _whole(count, seed)
    verdicts = _deaths(world, except_of=names[-1])
    world.starve(names[-1], share=share, slice_s=slice_s, for_s=120.0)
    world.run(150.0)
    return len(verdicts)


def idle_bytes_s(count: int, seed: int) -> float:
    """Bytes that a member of a mesh without news sends a second, headers included, once all have heard each other."""
    world, _ = _whole(count, seed)
    world.run(3.0 * count)
    window_s = 120.0
    before = _sent_bytes(world)
    world.run(window_s)
    return (_sent_bytes(world) - before) / count / window_s


def _sent_bytes(world: ProtocolWorld) -> int:
    return sum(e.bytes_sent + DATAGRAM_HEADERS_BYTES * e.datagrams_sent for e in world.engines.values())


def heal_to_agreed_s(count: int, seed: int) -> float:
    """Seconds from the end of an even cut of a minute until everybody holds everybody ALIVE."""
    world, names = _whole(count, seed)
    world.links.lay(Overlay(pairs=between(names[: count // 2], names[count // 2 :]), blocked=True))
    world.run(60.0)
    world.links.heal()
    taken_s = world.run_until(lambda: world.all_see(names, names, Status.ALIVE), 120.0)
    return MISSED if taken_s is None else taken_s


def join_s(count: int, seed: int) -> float:
    """Seconds from the start of all nodes at once, with one seed, until everybody knows everybody."""
    world = ProtocolWorld(seed, share_crypto=True)
    world.start_mesh(count)
    taken_s = world.run_until(
        lambda: all(engine.gossip.members.size() == count for engine in world.engines.values()), 300.0
    )
    return MISSED if taken_s is None else taken_s


# --- the table ------------------------------------------------------------------------------------------------------


def crashes(effort: Effort) -> Iterator[Figure]:
    """Crash until DEAD everywhere."""
    for count, aims in ((10, {0.5: 6.7, 0.99: None}), (25, {0.5: 7.4, 0.99: None}), (32, {0.5: None, 0.99: 14.0})):
        taken = [crash_to_dead_s(count, seed) for seed in range(effort.seeds)]
        for share, aim in aims.items():
            yield Figure(
                what=f"crash to DEAD everywhere, {count} nodes, p{share * 100:.0f}",
                value=_quantile(taken, share),
                unit="s",
                aim=aim,
                of=f"{effort.seeds} crashes",
            )


def rumors(effort: Effort) -> Iterator[Figure]:
    """A rumor until it is everywhere."""
    taken = rumor_to_all_s(100, 1, loss=0.2, rumors=effort.rumors)
    for share, aim in ((0.5, None), (0.99, 1.5)):
        yield Figure(
            what=f"rumor to all of 100 nodes at 20 % loss, p{share * 100:.0f}",
            value=_quantile(taken, share),
            unit="s",
            aim=aim,
            of=f"{len(taken)} rumors, {sum(t == MISSED for t in taken)} of them missed somebody",
        )


def losses(effort: Effort) -> Iterator[Figure]:
    """Healthy members held DEAD because packets were lost."""
    for loss, hours, aim in ((0.05, effort.hours_light, 0.0), (0.2, effort.hours_heavy, 0.2)):
        deaths = false_deaths(32, 1, loss=loss, hours=hours)
        yield Figure(
            what=f"false DEAD at {loss:.0%} loss, 32 nodes",
            value=deaths / (32 * hours),
            unit="per node-hour",
            aim=aim,
            of=f"{32 * hours:g} node-hours, {deaths} in all",
        )


def starvation(effort: Effort) -> Iterator[Figure]:
    """Healthy members held DEAD because one other is starved."""
    for share, slice_s in ((0.1, 0.5), (0.1, 5.0), (0.05, 20.0)):
        seeds = max(1, effort.seeds // 10)
        deaths = sum(deaths_by_starvation(32, seed, share=share, slice_s=slice_s) for seed in range(seeds))
        yield Figure(
            what=f"false DEAD of healthy members, one of 32 runs {share:.0%} of each {slice_s:g} s",
            value=deaths,
            unit="verdicts",
            aim=0.0,
            of=f"{seeds} times two minutes",
        )


def idle(effort: Effort) -> Iterator[Figure]:
    """What a quiet mesh sends."""
    for count in (10, 25, 50, 100):
        yield Figure(
            what=f"idle bytes of a node, {count} nodes",
            value=idle_bytes_s(count, 1),
            unit="B/s",
            aim=500.0,
            of="two minutes, UDP and IP headers included",
        )


def heals(effort: Effort) -> Iterator[Figure]:
    """The end of a cut until all agree."""
    for count in (10, 32, 100):
        taken = [heal_to_agreed_s(count, seed) for seed in range(max(3, effort.seeds // 5))]
        yield Figure(
            what=f"heal of an even cut to agreed view, {count} nodes, worst",
            value=max(taken),
            unit="s",
            aim=15.0,
            of=f"{len(taken)} cuts of a minute, median {statistics.median(taken):.2f} s",
        )


def joins(effort: Effort) -> Iterator[Figure]:
    """All nodes start at once, until all know all."""
    for count in effort.join_nodes:
        taken = [join_s(count, seed) for seed in range(1 if count > 100 else 3)]
        yield Figure(
            what=f"{count} nodes started at once, all know all, worst",
            value=max(taken),
            unit="s",
            aim=None,
            of=f"{len(taken)} starts",
        )


MEASURES: Sequence[Callable[[Effort], Iterator[Figure]]] = (crashes, rumors, losses, starvation, idle, heals, joins)


def measure(effort: Effort) -> Iterator[Figure]:
    """All figures, each as soon as it is known: minutes for QUICK, half an hour for FULL."""
    for figures in MEASURES:
        yield from figures(effort)


def table(figures: Sequence[Figure]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| figure | measured | must be at most | over |", "|---|---|---|---|"]
    for figure in figures:
        aim = "" if figure.aim is None else f"{figure.aim:g} {figure.unit}"
        missed = "" if figure.held else " **missed**"
        lines.append(f"| {figure.what} | {figure.value:.4g} {figure.unit}{missed} | {aim} | {figure.of} |")
    return "\n".join(lines)


def main() -> int:
    """Print all figures; 1 when one of them is worse than it must be."""
    parser = argparse.ArgumentParser(prog="python -m chaos.protocol.figures", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and hours: a look, in about two minutes")
    effort = QUICK if parser.parse_args().quick else FULL
    figures: list[Figure] = []
    for figure in measure(effort):
        sys.stderr.write(f"{figure.what}: {figure.value:.4g} {figure.unit}\n")
        figures.append(figure)
    sys.stdout.write(table(figures) + "\n")
    return 0 if all(figure.held for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())

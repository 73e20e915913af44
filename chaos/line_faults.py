"""Which packets each fault of the network hits, and how: for simulated lines and for real ones alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chaos.scenario import Fault
from chaos.simulation.links import Overlay, Pair, between, towards

LINE_KINDS = (
    "loss",
    "duplicate",
    "reorder",
    "mutate",
    "delay",
    "bandwidth",
    "clog",
    "partition",
    "one-way",
    "isolate",
    "flap",
)
"""The kinds of `fault_menu` that are an overlay over lines while they last."""


def overlay(fault: Fault, hosts: Iterable[str]) -> Overlay:
    """What a fault of one of LINE_KINDS lays over the lines between all these hosts; of a flap, in its bad times."""
    match fault.kind:
        case "loss":
            return Overlay(pairs=_lines(fault, hosts), loss=_number(fault, "share"))
        case "duplicate":
            return Overlay(pairs=_lines(fault, hosts), duplicate=_number(fault, "share"))
        case "reorder":
            return Overlay(pairs=_lines(fault, hosts), reorder=_number(fault, "share"))
        case "mutate":
            return Overlay(pairs=_lines(fault, hosts), mutate=_number(fault, "share"))
        case "delay":
            return Overlay(
                pairs=_lines(fault, hosts),
                delay_s=_number(fault, "delay_ms") / 1000,
                jitter_s=_number(fault, "jitter_ms") / 1000,
            )
        case "bandwidth":
            return Overlay(pairs=_lines(fault, hosts), bandwidth_bytes_s=_number(fault, "bytes_s"))
        case "clog":
            return Overlay(pairs=_lines(fault, hosts), clogged=True)
        case "partition":
            return Overlay(pairs=_between_all(fault.groups), blocked=True)
        case "one-way":
            return Overlay(pairs=towards(fault.nodes, fault.groups[0]), blocked=True)
        case "isolate" | "flap":
            others = [host for host in hosts if host not in fault.nodes]
            return Overlay(pairs=between(fault.nodes, others), blocked=True)
        case _:
            raise AssertionError(f"{fault.kind} is no fault of lines")


def bad_times(fault: Fault) -> Iterator[tuple[float, float]]:
    """From when until when it holds, in seconds of the scenario: once, but for a flap."""
    if fault.kind != "flap":
        yield fault.at_s, fault.until_s
        return
    period_s, down_share = _number(fault, "period_s"), _number(fault, "down_share")
    at_s = fault.at_s
    while at_s < fault.until_s:
        yield at_s, min(fault.until_s, at_s + period_s * down_share)
        at_s += period_s


def _lines(fault: Fault, hosts: Iterable[str]) -> frozenset[Pair] | None:
    """All lines of the named hosts; None, which means all there are, when none is named."""
    return between(fault.nodes, hosts) if fault.nodes else None


def _between_all(sides: tuple[tuple[str, ...], ...]) -> frozenset[Pair]:
    return frozenset(
        pair for index, side in enumerate(sides) for other in sides[index + 1 :] for pair in between(side, other)
    )


def _number(fault: Fault, option: str) -> float:
    value = fault.options[option]
    assert isinstance(value, int | float), (option, value)
    return float(value)

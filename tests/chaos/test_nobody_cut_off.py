"""A key ring that takes something away must come after every member has the one before."""

from __future__ import annotations

import pytest

from chaos.invariants import Judge
from chaos.observations import (
    CaListAccepted,
    CaListInstalled,
    FaultBegan,
    HostEnded,
    RingAccepted,
    RingInstalled,
    Seen,
)
from chaos.scenario import Fault, Scenario


def installed(host: str, number: int) -> RingInstalled:
    return RingInstalled(at_ms=1.0, host=host, number=number, primary="a", keys=("a", "b"))


def accepted(number: int, *, grown: bool = False) -> RingAccepted:
    return RingAccepted(at_ms=2.0, host="n0", number=number, primary="b", active=("n0", "n1"), grown=grown)


def follows(host: str, number: int) -> CaListInstalled:
    return CaListInstalled(at_ms=1.0, host=host, number=number, signing="a")


def took(number: int, *, added: bool = False) -> CaListAccepted:
    return CaListAccepted(at_ms=2.0, host="n0", number=number, signing="b", active=("n0", "n1"), added=added)


def broken(*feed: Seen) -> bool:
    judge = Judge(Scenario(name="x", nodes=3))
    for seen in feed:
        judge.see(seen)
    return any(violation.invariant == "nobody-cut-off" for violation in judge.violations)


def test_a_member_that_lacks_the_ring_before_is_cut_off() -> None:
    assert broken(installed("n0", 1), installed("n1", 0), accepted(2))
    assert broken(follows("n0", 1), follows("n1", 0), took(2))


@pytest.mark.parametrize(
    "feed",
    [
        (installed("n0", 1), installed("n1", 1), accepted(2)),
        (installed("n0", 1), installed("n1", 0), accepted(2, grown=True)),
        (installed("n0", 1), installed("n1", 0), HostEnded(at_ms=1.5, host="n1", how="kill"), accepted(2)),
        (installed("n0", 1), installed("n1", 1), installed("n2", 0), accepted(2)),
        (
            FaultBegan(at_ms=0.5, host="", fault=Fault(kind="stale-image", at_s=0, for_s=1, nodes=("n1",))),
            installed("n0", 1),
            installed("n1", 0),
            accepted(2),
        ),
        (follows("n0", 1), follows("n1", 1), took(2)),
        (follows("n0", 1), follows("n1", 0), took(2, added=True)),
        (follows("n0", 1), follows("n1", 0), HostEnded(at_ms=1.5, host="n1", how="kill"), took(2)),
    ],
    ids=[
        "acknowledged",
        "a key more",
        "no process",
        "no member",
        "a disk that forgot",
        "CAs followed",
        "a CA more",
        "no process to follow",
    ],
)
def test_nobody_is_cut_off_who_can_follow_or_could_not_be_asked(feed: tuple[Seen, ...]) -> None:
    assert not broken(*feed)

"""Plays of another kind, for tests of batches: instant, and wrong on purpose. Worker processes import this by name."""

from __future__ import annotations

import os
import time
from pathlib import Path

from chaos.hunting import Plan, SeedPlayed
from chaos.runs import Violation
from chaos.scenario import Scenario

WORDS = {"one", "two", "three", "four", "five", "six", "seven", "eight"}
HANGS, DIES, BREAKS, DRIFTS = 3, 5, 7, 20


def play_seed(plan: Plan, seed: int) -> SeedPlayed:
    if seed == HANGS:
        time.sleep(600)
    if seed == DIES:
        os._exit(9)
    violations = (Violation("own-epoch", 1_500.0, "n1 ran what it does not own"),) if seed == BREAKS else ()
    return SeedPlayed(
        seed=seed,
        violations=violations,
        coverage={"retry": 2, f"only-{seed % 2}": 1},
        trace_hash=play_again(plan, seed),
        simulated_s=10.0,
        cpu_s=0.5,
    )


def play_again(plan: Plan, seed: int) -> str:
    return str(os.getpid()) if seed == DRIFTS else f"hash-{seed}"


def shrink_seed(plan: Plan, seed: int, invariant: str) -> str:
    return f"shrunk by {invariant}"


def in_order(scenario: Scenario, told: Path | None) -> str:
    return _tell(told, sorted(WORDS))


def in_order_of_a_set(scenario: Scenario, told: Path | None) -> str:
    return _tell(told, list(WORDS))


def dies(scenario: Scenario, told: Path | None) -> str:
    os._exit(9)


def _tell(told: Path | None, words: list[str]) -> str:
    if told is not None:
        told.write_text("start\n" + "".join(f"{word}\n" for word in words))
    return " ".join(words)

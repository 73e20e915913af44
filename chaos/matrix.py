"""The four checks that the predecessor called its chaos matrix, each played as scenarios that do what it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chaos import playing, scenario_file

MATRIX: Mapping[str, Sequence[str]] = {
    "node_crash_recovery": ("node-crash", "mass-restart"),
    "packet_loss_partition_heal": ("loss-soak", "split-brain"),
    "clock_skew_recovery_guard": ("clock-jump-forward", "clock-jump-back", "no-clock-host"),
    "disk_pressure_guard": ("disk-full", "read-only-disk"),
}
"""By the name of the check, the named scenarios that it consists of."""


@dataclass(frozen=True, slots=True)
class Check:
    """How one check went."""

    name: str
    passed: bool
    detail: str
    """What was played, or the first violation."""


def play_matrix(seed: int) -> Iterator[Check]:
    """Play each check with this seed, one after the other."""
    for name, scenarios in MATRIX.items():
        yield _check(name, scenarios, seed)


def _check(name: str, scenarios: Sequence[str], seed: int) -> Check:
    for scenario in scenarios:
        result = playing.play_at_scale(playing.ready(scenario_file.named(scenario), seed=seed))
        if result.violations:
            return Check(name, False, f"{scenario}: {result.violations[0]}")
    return Check(name, True, f"played {', '.join(scenarios)} with seed {seed}")

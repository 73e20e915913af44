"""How fast simulated time passes: seconds of simulated nodes per second of CPU, at three sizes.

The figures are those of one core and of a mesh that has some work and no faults. They say how many seeds a night is
worth, and whether a change made the simulator slower.
"""

from __future__ import annotations

from dataclasses import dataclass

from chaos.playing import play_at_scale, ready
from chaos.runs import RunResult
from chaos.scenario import NetSpec, Scenario, WorkloadSpec


def calm(*, nodes: int, duration_s: float, scale: str = "node", rate: float = 2.0) -> Scenario:
    """A mesh on a usual network with a little work and no faults."""
    return Scenario(
        name=f"calm-{nodes}",
        scale=scale,
        nodes=nodes,
        duration_s=duration_s,
        net=NetSpec(loss=0.01),
        workload=WorkloadSpec(rate=rate),
    )


SIZES = (
    calm(nodes=5, duration_s=120.0),
    calm(nodes=50, duration_s=15.0),
    calm(nodes=500, duration_s=30.0, scale="protocol", rate=0.0),
)
"""So long that each costs about as much CPU as the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One figure."""

    result: RunResult

    @property
    def node_s_per_cpu_s(self) -> float:
        """Simulated seconds of one node that a second of CPU buys."""
        result = self.result
        return result.scenario.nodes * result.simulated_s / result.cpu_s if result.cpu_s else 0.0


def measure(size: Scenario) -> Speed:
    """Play it once, in this process."""
    return Speed(result=play_at_scale(ready(size)))

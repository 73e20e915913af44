"""Plays many random scenarios, one a seed, and keeps what broke: the report, the smallest scenario that still does it.

Promises: a seed that hangs or crashes is reported for that seed and costs the batch nothing else; of every 20 seeds one
is played a second time, by a fresh process under another hash seed, and must be the very same run; a large batch in
which something that must happen never happened has failed, because then it proved less than it says.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from chaos import coverage, scenario_file, shrink, swarm
from chaos.playing import play_at_scale, ready
from chaos.report import write
from chaos.runs import Violation
from chaos.scenario import Scenario
from chaos.worker_pool import Call, Done, WorkerPool

NODES = (3, 7)
SEED_LIMIT_S = 300.0
"""Wall time of one seed, which usually takes a few seconds: beyond it something loops."""
SHRINK_LIMIT_S = 1_200.0
SHRINK_FIRST = 3
"""Failures after these are rarely new ones, and shrinking takes minutes."""
REPEAT_EVERY = 20
COVERAGE_SEEDS_MIN = 100
"""From so many seeds on, every required point of coverage must have been met."""
HANG, CRASH, DETERMINISM = "hang", "crash", "determinism"
"""What is reported beside the names of invariants."""
TICK_S = 0.5
_REPEAT_HASH_SEED = 1_000_003
"""None that the pool gives to the processes of first plays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every seed of a batch has in common."""

    nodes: tuple[int, int] = NODES
    """The fewest and the most."""
    mutant: str | None = None
    out: Path
    """Where reports go, a folder for each seed that broke something."""

    def scenario(self, seed: int) -> Scenario:
        """What is played for a seed."""
        return ready(swarm.draw(seed, nodes=self.nodes), seed=seed)

    def folder(self, seed: int) -> Path:
        """Where the report of a seed is."""
        return self.out / f"{self.scenario(seed).name}-{seed}"

    def replay_command(self, seed: int) -> str:
        """What to type to see it again."""
        mutant = "" if self.mutant is None else f" --mutant {self.mutant}"
        return f"relaymesh chaos replay {self.folder(seed) / 'repro.toml'}{mutant}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPlayed:
    """What a worker says of a seed."""

    seed: int
    violations: tuple[Violation, ...]
    coverage: dict[str, int]
    trace_hash: str
    simulated_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A seed that broke something."""

    seed: int
    violations: tuple[Violation, ...]
    """At least one; the first is what it is shrunk by."""
    repro: Path
    note: str = ""
    """What shrinking came to."""

    @property
    def invariants(self) -> list[str]:
        """The names of what it broke, in order, each once."""
        return list(dict.fromkeys(violation.invariant for violation in self.violations))


@dataclass(slots=True, kw_only=True)
class HuntResult:
    """What a batch came to so far."""

    plan: Plan
    seeds: int = 0
    """Played to their end."""
    repeated: int = 0
    found: list[Found] = field(default_factory=list)
    coverage: Counter[str] = field(default_factory=Counter)
    simulated_s: float = 0.0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    interrupted: bool = False
    shrinking: int = 0
    """How many failures are being shrunk now."""

    @property
    def unreached(self) -> list[str]:
        """Required points of coverage that no seed met; empty for a batch that is too small to say, or of a mutant."""
        if self.seeds < COVERAGE_SEEDS_MIN or self.plan.mutant is not None:
            return []
        return [point for point in sorted(coverage.REQUIRED) if not self.coverage[point]]

    @property
    def is_ok(self) -> bool:
        """Nothing broken, and nothing that a batch of this size must meet was missed."""
        return not self.found and not self.unreached


def hunt(
    seeds: Iterable[int],
    plan: Plan,
    *,
    jobs: int,
    minutes: float | None = None,
    shrink_first: int = SHRINK_FIRST,
    enough: Callable[[HuntResult], bool] = lambda result: False,
    progress: Callable[[HuntResult], None] = lambda result: None,
) -> HuntResult:
    """Play seeds on `jobs` processes until they are used up, or no new one begins because `minutes` are over or it is
    `enough`. Ctrl-C ends it with what was found until then.

    `progress` hears the state so far, twice a second and after every seed.
    """
    return _Hunt(iter(seeds), plan, jobs, minutes, shrink_first, enough, progress).run()


class _Hunt:
    def __init__(
        self,
        seeds: Iterator[int],
        plan: Plan,
        jobs: int,
        minutes: float | None,
        shrink_first: int,
        enough: Callable[[HuntResult], bool],
        progress: Callable[[HuntResult], None],
    ) -> None:
        self._seeds = seeds
        self._plan = plan
        self._jobs = jobs
        self._minutes = minutes
        self._shrink_first = shrink_first
        self._enough = enough
        self._progress = progress
        self._result = HuntResult(plan=plan)
        self._first_plays: dict[int, SeedPlayed] = {}
        """Of seeds that are played twice."""

    def run(self) -> HuntResult:
        began = time.monotonic()
        result = self._result
        with WorkerPool(self._jobs) as pool:
            try:
                while self._has_more(pool, time.monotonic() - began):
                    done = pool.next_done(TICK_S)
                    result.wall_s = time.monotonic() - began
                    if done is not None:
                        self._take(pool, done)
                    self._progress(result)
            except KeyboardInterrupt:
                result.interrupted = True
        result.wall_s = time.monotonic() - began
        return result

    def _has_more(self, pool: WorkerPool, elapsed_s: float) -> bool:
        """Keep the workers busy; False when all has ended."""
        over = self._minutes is not None and elapsed_s >= self._minutes * 60
        while pool.free > 0 and not over and not self._enough(self._result):
            seed = next(self._seeds, None)
            if seed is None:
                break
            pool.submit(Call(function=play_seed, args=(self._plan, seed), limit_s=SEED_LIMIT_S))
        return pool.under_way > 0

    def _take(self, pool: WorkerPool, done: Done) -> None:
        seed: int = done.call.args[1]
        if done.call.function is shrink_seed:
            self._take_shrunk(seed, done)
        elif done.call.function is play_again:
            self._take_repeat(pool, self._first_plays.pop(seed), done)
        else:
            self._take_seed(pool, seed, done)

    def _take_seed(self, pool: WorkerPool, seed: int, done: Done) -> None:
        self._result.seeds += 1
        if done.error:
            self._keep(pool, seed, (_broken_worker(done),), done.error)
            return
        played: SeedPlayed = done.value
        self._result.coverage.update(played.coverage)
        self._result.simulated_s += played.simulated_s
        self._result.cpu_s += played.cpu_s
        if played.violations:
            self._keep(pool, seed, played.violations)
        if seed % REPEAT_EVERY == 0:
            self._first_plays[seed] = played
            pool.submit(
                Call(function=play_again, args=(self._plan, seed), limit_s=SEED_LIMIT_S, hash_seed=_REPEAT_HASH_SEED)
            )

    def _take_repeat(self, pool: WorkerPool, first: SeedPlayed, done: Done) -> None:
        self._result.repeated += 1
        if done.error:
            self._keep(pool, first.seed, (_broken_worker(done),), done.error)
        elif done.value != first.trace_hash:
            detail = (
                f"two processes played different runs, {first.trace_hash} and {done.value}; "
                f"`relaymesh chaos verify-determinism --seeds {first.seed}` finds where"
            )
            self._keep(pool, first.seed, (Violation(DETERMINISM, 0.0, detail),))

    def _keep(self, pool: WorkerPool, seed: int, violations: tuple[Violation, ...], said: str = "") -> None:
        repro = self._plan.folder(seed) / "repro.toml"
        found = Found(seed=seed, violations=violations, repro=repro)
        self._result.found.append(found)
        if found.invariants[0] in (HANG, CRASH, DETERMINISM):
            keep_bare(self._plan, seed, f"{violations[0]}\n{said}")
        elif len(self._result.found) <= self._shrink_first:
            self._result.shrinking += 1
            pool.submit(
                Call(function=shrink_seed, args=(self._plan, seed, found.invariants[0]), limit_s=SHRINK_LIMIT_S)
            )

    def _take_shrunk(self, seed: int, done: Done) -> None:
        self._result.shrinking -= 1
        note = f"not shrunk: {done.error.splitlines()[0]}" if done.error else str(done.value)
        self._result.found = [
            replace(found, note=note) if found.seed == seed else found for found in self._result.found
        ]


def _broken_worker(done: Done) -> Violation:
    return Violation(HANG if done.hung else CRASH, 0.0, done.error.splitlines()[-1 if "Traceback" in done.error else 0])


def play_seed(plan: Plan, seed: int) -> SeedPlayed:
    """Play a seed of a batch. Writes its report when it broke something."""
    result = play_at_scale(plan.scenario(seed), mutant=plan.mutant)
    if result.violations:
        write(result, plan.folder(seed), replay_command=plan.replay_command(seed))
    return SeedPlayed(
        seed=seed,
        violations=tuple(result.violations),
        coverage=dict(result.coverage),
        trace_hash=result.trace_hash,
        simulated_s=result.simulated_s,
        cpu_s=result.cpu_s,
    )


def play_again(plan: Plan, seed: int) -> str:
    """Play a seed a second time. The hash of the run."""
    return play_at_scale(plan.scenario(seed), mutant=plan.mutant).trace_hash


def shrink_seed(plan: Plan, seed: int, invariant: str) -> str:
    """Look for the smallest scenario that still breaks this, and make it the seed's report. What came of it in words.

    What was drawn at first stays in the folder as `drawn.toml`.
    """
    drawn = plan.scenario(seed)
    smallest = shrink.shrink(drawn, breaks(invariant, mutant=plan.mutant), progress=lambda line: None)
    folder = plan.folder(seed)
    write(play_at_scale(smallest, mutant=plan.mutant), folder, replay_command=plan.replay_command(seed))
    (folder / "drawn.toml").write_text(scenario_file.dump(drawn))
    return f"shrunk from {size(drawn)} to {size(smallest)}"


def size(scenario: Scenario) -> str:
    """How large a scenario is, in words."""
    faults = len(scenario.faults)
    return f"{faults} fault{'' if faults == 1 else 's'} on {scenario.nodes} nodes in {scenario.duration_s:g} s"


def breaks(invariant: str, *, mutant: str | None = None) -> Callable[[Scenario], bool]:
    """Whether a scenario breaks this invariant: what shrinking asks of each candidate."""

    def asked(candidate: Scenario) -> bool:
        result = play_at_scale(candidate, mutant=mutant)
        return any(violation.invariant == invariant for violation in result.violations)

    return asked


def keep_bare(plan: Plan, seed: int, said: str) -> None:
    """The folder of a seed without a result: its scenario, and what its process said at last."""
    folder = plan.folder(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "repro.toml").write_text(scenario_file.dump(plan.scenario(seed)))
    (folder / "said.txt").write_text(said)

"""The determinism gate: one scenario, many fresh processes, each under another hash seed, one trace hash.

When hashes differ it plays two of the differing processes again, has them tell every step, and says which step was the
first that differed: that is where time, chance or the order of a set leaked in.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from chaos.playing import play_at_scale
from chaos.scenario import Scenario
from chaos.worker_pool import Call, Done, WorkerPool

RUN_LIMIT_S = 600.0
"""Wall time of one run."""
CONTEXT_LINES = 8
ENDED = "(the run had ended)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first step in which two runs of one scenario differ."""

    step: int
    """Counted from 1. 0: both told the same steps, so the difference did not come again."""
    hash_seeds: tuple[int, int]
    before: tuple[str, ...]
    """The last steps that were the same."""
    left: str
    right: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What the gate says of one scenario."""

    scenario: Scenario
    hashes: Mapping[int, str]
    """Trace hash by hash seed."""
    errors: Mapping[int, str]
    """What processes said that failed or died, by hash seed."""
    difference: Difference | None = None

    @property
    def is_equal(self) -> bool:
        """Whether all processes played the same run, to its end."""
        return not self.errors and len(set(self.hashes.values())) == 1


Played = Callable[[Scenario, Path | None], str]
"""What a process does: plays a scenario, writes its steps to the file if there is one, and returns the trace hash."""


def verify(
    scenarios: Sequence[Scenario],
    *,
    runs: int = 10,
    jobs: int = 1,
    play: Played | None = None,
    progress: Callable[[int], None] = lambda ended: None,
) -> list[Verified]:
    """Play each scenario in `runs` fresh processes under PYTHONHASHSEED 1 to `runs`, and compare.

    `progress` hears how many runs have ended. `play` is another way to play, for testing this gate.
    """
    assert runs >= 2, "a single run cannot differ"
    play = play or play_and_tell
    verified: list[Verified] = []
    with WorkerPool(jobs) as pool:
        for scenario in scenarios:
            calls = [_call(play, scenario, None, hash_seed) for hash_seed in range(1, runs + 1)]
            all_done = _all_done(pool, calls, lambda ended: progress(len(verified) * runs + ended))
            hashes = {hash_seed: done.value for hash_seed, done in all_done.items() if not done.error}
            errors = {hash_seed: done.error for hash_seed, done in all_done.items() if done.error}
            difference = _locate(pool, play, scenario, hashes)
            verified.append(Verified(scenario=scenario, hashes=hashes, errors=errors, difference=difference))
    return verified


def _call(play: Played, scenario: Scenario, told: Path | None, hash_seed: int) -> Call:
    return Call(function=play, args=(scenario, told), limit_s=RUN_LIMIT_S, hash_seed=hash_seed)


def _all_done(pool: WorkerPool, calls: Sequence[Call], progress: Callable[[int], None]) -> dict[int, Done]:
    """How each ended, by hash seed."""
    ended: dict[int, Done] = {}
    for call in calls:
        pool.submit(call)
    while pool.under_way:
        done = pool.next_done(1.0)
        if done is not None:
            assert done.call.hash_seed is not None, "each call has its own"
            ended[done.call.hash_seed] = done
            progress(len(ended))
    return dict(sorted(ended.items()))


def _locate(pool: WorkerPool, play: Played, scenario: Scenario, hashes: Mapping[int, str]) -> Difference | None:
    first = next(iter(hashes), None)
    other = next((hash_seed for hash_seed in hashes if first is not None and hashes[hash_seed] != hashes[first]), None)
    if first is None or other is None:
        return None
    with tempfile.TemporaryDirectory(prefix="relaymesh-chaos-") as scratch:
        files = {hash_seed: Path(scratch) / f"{hash_seed}.steps" for hash_seed in (first, other)}
        _all_done(pool, [_call(play, scenario, file, seed) for seed, file in files.items()], lambda ended: None)
        for file in files.values():
            file.touch()  # a process that died at once left none
        return first_difference(files[first], files[other], hash_seeds=(first, other))


def first_difference(left: Path, right: Path, *, hash_seeds: tuple[int, int]) -> Difference:
    """Compare the steps that two runs told."""
    before: deque[str] = deque(maxlen=CONTEXT_LINES)
    with left.open() as lines, right.open() as others:
        for step, (one, two) in enumerate(zip_longest(lines, others, fillvalue=ENDED), 1):
            if one != two:
                return Difference(
                    step=step, hash_seeds=hash_seeds, before=tuple(before), left=one.rstrip(), right=two.rstrip()
                )
            before.append(one.rstrip())
    return Difference(step=0, hash_seeds=hash_seeds, before=tuple(before), left="", right="")


def play_and_tell(scenario: Scenario, told: Path | None) -> str:
    """Play a scenario and return its trace hash; with a file, write every step to it."""
    if told is None:
        return play_at_scale(scenario).trace_hash
    with told.open("w") as file:
        return play_at_scale(scenario, tell=lambda line: print(line, file=file)).trace_hash

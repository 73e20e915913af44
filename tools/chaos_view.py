"""What `relaymesh chaos` prints: results of runs and of batches, for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.output import escape, print_answer, print_json

if TYPE_CHECKING:
    from chaos.determinism import Verified
    from chaos.hunting import Found, HuntResult
    from chaos.runs import RunResult

DETAIL_CHARS_MAX = 2_000
"""Of one violation on the screen; the report has all of it."""


def show_run(result: RunResult, folder: Path | None, replay: str, *, json: bool, extra: Mapping[str, Any]) -> None:
    """The verdict and what the run met. `extra` goes into the JSON as it is."""
    from chaos.playing import INTERRUPTED, UNTIL
    from chaos.report import headline, run_json

    if json:
        facts = {"facts": dict(result.facts)} if result.facts else {}
        print_json(run_json(result, "" if folder is None else str(folder)) | facts | dict(extra))
        return
    print(escape(headline(result)))
    for violation in result.violations:
        print(f"\n  {escape(str(violation))[:DETAIL_CHARS_MAX]}")
    if result.violations:
        print()
    if INTERRUPTED in result.facts or UNTIL in result.facts:
        print("ended early: judged until then, not at rest")
    settled = "" if result.settled_ms is None else f", at rest {seconds(result.settled_ms - result.healed_ms)} after it"
    healed = f", healed at {seconds(result.healed_ms)}{settled}" if result.healed_ms else ""
    nodes = result.scenario.nodes
    print(f"played    {nodes} nodes for {result.simulated_s:.1f} s in {result.cpu_s:.1f} s of CPU{healed}")
    print(f"faults    {len(result.scenario.faults)}")
    for name, values in (("met", met(result.coverage)), ("facts", result.facts)):
        if values:
            print(f"{name:<9} {escape(words(values))}")
    print(f"trace     {result.trace_hash or '(none)'}")
    if folder is not None:
        print(f"report    {folder}")
    print(f"replay    {replay}")


def show_hunt(result: HuntResult, *, json: bool) -> None:
    """What a batch came to."""
    if json:
        print_json(hunt_json(result))
        return
    low, high = result.plan.nodes
    mutant = f" with mutant {result.plan.mutant}" if result.plan.mutant else ""
    ended = "interrupted after " if result.interrupted else ""
    print(f"{ended}{plural(result.seeds, 'seed')} of {low} to {high} nodes{mutant}: {len(result.found)} violated")
    rate = result.seeds / result.wall_s if result.wall_s else 0.0
    print(
        f"{result.simulated_s:.0f} s simulated in {result.cpu_s:.0f} s of CPU and {result.wall_s:.0f} s ({rate:.1f} "
        f"seeds/s); {plural(result.repeated, 'seed')} played twice"
    )
    if result.coverage:
        print(f"met {escape(words(met(result.coverage)))}")
    if result.unreached:
        print(f"never met, so this batch proves too little: {', '.join(result.unreached)}")
    if result.found:
        print()
        print_answer([_found_row(found) | {"note": found.note or found.violations[0].detail} for found in result.found])
        print(f"\nreplay the first: {result.plan.replay_command(result.found[0].seed)}")


def hunt_json(result: HuntResult) -> dict[str, Any]:
    """The same for programs."""
    return {
        "seeds": result.seeds,
        "violated": [
            _found_row(found)
            | {
                "invariants": found.invariants,
                "detail": found.violations[0].detail,
                "note": found.note,
            }
            for found in result.found
        ],
        "coverage": dict(sorted(result.coverage.items())),
        "unreached": result.unreached,
        "repeated": result.repeated,
        "simulatedSeconds": round(result.simulated_s, 3),
        "cpuSeconds": round(result.cpu_s, 3),
        "wallSeconds": round(result.wall_s, 3),
        "interrupted": result.interrupted,
    }


def _found_row(found: Found) -> dict[str, Any]:
    return {"seed": found.seed, "invariant": found.invariants[0], "repro": str(found.repro)}


def show_verified(verified: list[Verified], *, json: bool) -> None:
    """What the determinism gate says."""
    if json:
        is_equal = all(each.is_equal for each in verified)
        print_json({"equal": is_equal, "scenarios": [_verified(each) for each in verified]})
        return
    for each in verified:
        name, hashes = f"{each.scenario.name}, seed {each.scenario.seed}", set(each.hashes.values())
        runs = f"{len(each.hashes) + len(each.errors)} processes under as many hash seeds"
        if each.is_equal:
            print(f"{name}: the same run in {runs}, {next(iter(hashes))}")
            continue
        print(f"{name}: {plural(len(hashes), 'different run')} in {runs}")
        for hash_seed, trace_hash in each.hashes.items():
            print(f"  PYTHONHASHSEED={hash_seed}: {trace_hash}")
        for hash_seed, error in each.errors.items():
            print(f"  PYTHONHASHSEED={hash_seed}: {escape(error.splitlines()[-1])}")
        if each.difference is not None:
            print("\n".join(_difference_lines(each)))


def _difference_lines(verified: Verified) -> list[str]:
    difference = verified.difference
    assert difference is not None, "hashes differ"
    if not difference.step:
        return ["  played again, both told the same steps: the difference does not come with the hash seed"]
    left, right = difference.hash_seeds
    return [
        f"  the first step that differs is number {difference.step}:",
        *(f"      {escape(line)}" for line in difference.before),
        f"    {left}: {escape(difference.left)}",
        f"    {right}: {escape(difference.right)}",
    ]


def _verified(verified: Verified) -> dict[str, Any]:
    difference = verified.difference
    answer: dict[str, Any] = {
        "scenario": verified.scenario.name,
        "seed": verified.scenario.seed,
        "equal": verified.is_equal,
        "traceHashes": {str(hash_seed): trace_hash for hash_seed, trace_hash in verified.hashes.items()},
    }
    if verified.errors:
        answer["errors"] = {str(hash_seed): error for hash_seed, error in verified.errors.items()}
    if difference is not None:
        answer["firstDifference"] = {
            "step": difference.step,
            "hashSeeds": list(difference.hash_seeds),
            "before": list(difference.before),
            "left": difference.left,
            "right": difference.right,
        }
    return answer


def met(coverage: Mapping[str, int]) -> dict[str, int]:
    """What happened at all."""
    return {name: count for name, count in sorted(coverage.items()) if count}


def words(values: Mapping[str, Any]) -> str:
    """Names and values on one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def plural(count: int, noun: str) -> str:
    """`1 seed`, `2,000 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def seconds(span_ms: float) -> str:
    """`12.5 s`."""
    return f"{span_ms / 1000:.1f} s"

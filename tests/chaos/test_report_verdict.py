"""The verdict as JSON and as text: exact keys, the first violations, how to replay."""

from __future__ import annotations

import json

from chaos.report.verdict import VIOLATIONS_SHOWN, headline, run_json, verdict_json, verdict_text
from chaos.report.versions import versions
from chaos.runs import RunResult, Violation
from chaos.scenario import Scenario


def result(*violations: Violation, pending: str = "") -> RunResult:
    return RunResult(
        scenario=Scenario(name="split-brain", nodes=4, seed=42, pending=pending),
        violations=violations,
        coverage={"takeover": 3, "refuted": 0},
        trace_hash="abc123",
        simulated_s=90.5,
        cpu_s=1.25,
        healed_ms=60_000.0,
        facts={"submits": 240, "unjudged": ["first line", "second line"]},
    )


def text(of: RunResult) -> str:
    return verdict_text(of, replay_command="relaymesh chaos replay here", options="seed = 42", versions={"python": "3"})


def test_a_run_as_json_has_exactly_the_promised_keys() -> None:
    answer = run_json(result(Violation("one-winner", 31_000.5, "two of them")), "out/split-brain-42")

    assert answer == {
        "scenario": "split-brain",
        "seed": 42,
        "nodes": 4,
        "verdict": "violated",
        "traceHash": "abc123",
        "violations": [{"invariant": "one-winner", "atMs": 31_000.5, "detail": "two of them"}],
        "coverage": {"refuted": 0, "takeover": 3},
        "simulatedSeconds": 90.5,
        "cpuSeconds": 1.25,
        "report": "out/split-brain-42",
    }


def test_a_pending_scenario_is_ok_and_says_why_it_was_not_judged() -> None:
    answer = run_json(result(pending="no defence yet"), "")

    assert (answer["verdict"], answer["pending"]) == ("ok", "no defence yet")
    assert headline(result(pending="no defence yet")) == "split-brain, seed 42: pending, not judged: no defence yet"


def test_the_json_file_also_names_the_versions_and_every_violation() -> None:
    many = [Violation("bound", float(number), f"d{number}") for number in range(500)]

    written = json.loads(verdict_json(result(*many), "split-brain-42", versions()))

    assert len(written["violations"]) == 500
    assert list(written["versions"]) == ["commit", "python", "trio", "apsw", "sqlite", "pythonHashSeed", "platform"]
    assert all(written["versions"].values())


def test_the_text_shows_the_first_violations_by_time_and_counts_the_rest() -> None:
    many = [Violation("bound", 1_000.0 * number, f"detail {number}\nsecond line") for number in range(30, 0, -1)]

    shown = text(result(*many))

    assert shown.startswith(
        "split-brain, seed 42: violated, 30 times\n  1. 1.000 s  bound\n     detail 1\n     second line\n"
    )
    assert f"detail {VIOLATIONS_SHOWN}\n" in shown
    assert f"detail {VIOLATIONS_SHOWN + 1}\n" not in shown
    assert f"and {30 - VIOLATIONS_SHOWN} more" in shown


def test_the_text_says_how_to_replay_and_what_was_drawn() -> None:
    shown = text(result())

    assert shown.startswith("split-brain, seed 42: ok\n")
    assert "Replay\n  relaymesh chaos replay here\n" in shown
    assert "Options\n  seed = 42\n" in shown
    assert "settled at  never\n" in shown


def test_a_fact_of_many_lines_stands_in_lines_of_its_own() -> None:
    assert "  unjudged    first line\n              second line\n" in text(result())

"""Exit codes, JSON forms and refusals of `relaymesh chaos`. Most runs are made up here; one is real."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chaos import determinism, hunting, playing, scenario_file, shrink
from chaos.determinism import Difference, Verified
from chaos.hunting import Found, HuntResult
from chaos.mutants import MUTANTS
from chaos.runs import RunResult, Violation
from chaos.scenario import Fault, Scenario
from mesh.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
BROKEN = Violation("own-epoch", 1_500.0, "n1 ran what it does not own")
SMALL = Scenario(
    name="small", nodes=3, duration_s=10.0, faults=(Fault(kind="kill", at_s=2.0, for_s=1.0, nodes=("n1",)),)
)


@pytest.fixture
def played(monkeypatch):
    """Every play gives this result of its scenario; what was asked for is in `asked`."""

    class Played:
        result = RunResult(
            scenario=SMALL,
            violations=(),
            coverage={"retry": 3, "never": 0},
            trace_hash="ab" * 16,
            simulated_s=40.5,
            cpu_s=1.25,
        )
        asked: list[tuple[Scenario, dict]] = []  # noqa: RUF012  (one test's own)

        def __call__(self, scenario: Scenario, **options) -> RunResult:
            self.asked.append((scenario, options))
            return replace(self.result, scenario=scenario)

    stand_in = Played()
    stand_in.asked = []
    monkeypatch.setattr(playing, "play_at_scale", stand_in)
    return stand_in


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(scenario_file.dump(SMALL))
    return file


RUN_KEYS = {
    *("scenario", "seed", "nodes", "verdict", "traceHash", "violations", "coverage"),
    *("simulatedSeconds", "cpuSeconds", "report"),
}


def test_a_run_that_keeps_every_promise_ends_with_zero(relaymesh, played, small, tmp_path):
    ran = relaymesh("chaos", "run", "--scenario", small, "--seed", 42, "--out", tmp_path / "out", "--json")

    assert ran.code == 0
    assert set(ran.json) == RUN_KEYS
    assert (ran.json["seed"], ran.json["nodes"], ran.json["verdict"]) == (42, 3, "ok")
    assert (ran.json["coverage"]["retry"], ran.json["violations"]) == (3, [])
    assert ran.json["report"] == str(tmp_path / "out" / "small-42")
    assert (tmp_path / "out" / "small-42" / "timeline.html").is_file()


def test_a_run_that_breaks_one_ends_with_one_and_says_how_to_see_it_again(relaymesh, played, small, tmp_path):
    played.result = replace(played.result, violations=(BROKEN,))

    as_json = relaymesh("chaos", "run", "--scenario", small, "--out", tmp_path, "--json")
    plain = relaymesh("chaos", "run", "--scenario", small, "--out", tmp_path)

    assert (as_json.code, plain.code) == (1, 1)
    assert as_json.json["verdict"] == "violated"
    assert as_json.json["violations"] == [{"invariant": "own-epoch", "atMs": 1500.0, "detail": BROKEN.detail}]
    assert str(BROKEN) in plain.out
    assert f"relaymesh chaos replay {tmp_path}/small-1/repro.toml" in plain.out
    assert "never" not in plain.out


def test_size_and_length_can_be_asked_for_if_the_faults_fit(relaymesh, played, small, tmp_path):
    fits = relaymesh(
        "chaos", "run", "--scenario", small, "--nodes", 5, "--duration", "20s", "--out", tmp_path, "--json"
    )
    too_few = relaymesh("chaos", "run", "--scenario", small, "--duration", "1s", "--out", tmp_path)

    assert (fits.code, fits.json["nodes"], played.asked[0][0].duration_s) == (0, 5, 20.0)
    assert (too_few.code, too_few.out, too_few.err.count("\n")) == (2, "", 1)
    assert "does not fit" in too_few.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--scenario", "no-such"], "no-such"),
        (["run", "--scenario", "no/such.toml"], "no/such.toml"),
        (["run", "--scenario", "split-brain", "--duration", "soon"], "--duration"),
        (["run", "--scenario", "split-brain", "--nodes", "1"], "split-brain"),
        (["run", "--scenario", "split-brain", "--out", "/proc/none"], "--out"),
        (["run"], "--scenario"),
        (["hunt"], "--seeds A-B"),
        (["hunt", "--seeds", "1-2", "--minutes", "1"], "--minutes"),
        (["hunt", "--seeds", "2-1"], "--seeds"),
        (["hunt", "--seeds", "1", "--nodes", "2-5"], "--nodes"),
        (["hunt", "--seeds", "1", "--mutant", "none-such"], "--mutant"),
        (["verify-determinism", "--runs", "1"], "--runs"),
        (["replay", "/nowhere/repro.toml"], "/nowhere/repro.toml"),
        (["report", "/nowhere"], "verdict.json"),
        (["real", "--scenario", "split-brain", "--driver", "magic"], "--driver"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(relaymesh, played, arguments, said):
    ran = relaymesh("chaos", *arguments)

    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err


def test_a_run_that_was_interrupted_leaves_its_report(relaymesh, played, small, tmp_path):
    played.result = replace(played.result, facts={"interrupted": True})
    calm = relaymesh("chaos", "run", "--scenario", small, "--out", tmp_path)
    played.result = replace(played.result, violations=(BROKEN,))
    broken = relaymesh("chaos", "run", "--scenario", small, "--out", tmp_path)

    assert (calm.code, broken.code) == (130, 1)
    assert (tmp_path / "small-1" / "verdict.json").is_file()


def test_a_replay_says_whether_it_was_the_same_run(relaymesh, played, small, tmp_path):
    relaymesh("chaos", "run", "--scenario", small, "--out", tmp_path)
    repro = tmp_path / "small-1" / "repro.toml"

    def replay(*options):
        return relaymesh("chaos", "replay", repro, "--out", tmp_path / "again", *options, "--json").json

    assert replay()["sameAsRecorded"] is True
    played.result = replace(played.result, trace_hash="cd" * 16)
    assert replay()["sameAsRecorded"] is False
    assert "sameAsRecorded" not in replay("--until", "31.2s")
    assert played.asked[-1][1]["until_s"] == 31.2
    assert relaymesh("chaos", "replay", small, "--out", tmp_path / "again", "--json").json.keys() == RUN_KEYS


def test_a_report_can_be_read_again(relaymesh, played, small, tmp_path):
    played.result = replace(played.result, violations=(BROKEN,))
    relaymesh("chaos", "run", "--scenario", small, "--out", tmp_path)

    plain = relaymesh("chaos", "report", tmp_path / "small-1")

    assert plain.code == 1
    assert BROKEN.detail in plain.out
    assert relaymesh("chaos", "report", tmp_path / "small-1", "--json").json["violations"]


def test_shrink_writes_the_smallest_beside_the_file(relaymesh, played, monkeypatch, small):
    monkeypatch.setattr(shrink, "shrink", lambda scenario, fails, **_: replace(scenario, faults=()))
    nothing = relaymesh("chaos", "shrink", small)
    played.result = replace(played.result, violations=(BROKEN,))
    something = relaymesh("chaos", "shrink", small, "--json")

    assert (nothing.code, nothing.err.count("nothing to shrink")) == (2, 1)
    assert (something.code, something.json["invariant"]) == (0, "own-epoch")
    assert scenario_file.load(small.with_name("smallest.toml")).faults == ()


def batch(monkeypatch, **values) -> list[dict]:
    """Every hunt gives this result; what was asked for is returned."""
    asked: list[dict] = []

    def stand_in(seeds, plan, **options) -> HuntResult:
        asked.append({"seeds": seeds, "plan": plan, **options})
        return HuntResult(plan=plan, **values)

    monkeypatch.setattr(hunting, "hunt", stand_in)
    return asked


def test_a_hunt_that_found_something_ends_with_one(relaymesh, monkeypatch):
    found = Found(seed=1_005, violations=(BROKEN,), repro=Path("out/swarm-1005/repro.toml"), note="shrunk")
    asked = batch(monkeypatch, seeds=10, found=[found])

    ran = relaymesh("chaos", "hunt", "--seeds", "1000-1009", "--jobs", 2, "--nodes", "3-5", "--json")
    plain = relaymesh("chaos", "hunt", "--seeds", "1000-1009")

    assert (ran.code, plain.code) == (1, 1)
    assert (ran.json["seeds"], set(ran.json) >= {"violated", "coverage"}) == (10, True)
    violated = ran.json["violated"][0]
    assert (violated["seed"], violated["invariant"]) == (1_005, "own-epoch")
    assert violated["repro"] == "out/swarm-1005/repro.toml"
    assert (asked[0]["seeds"], asked[0]["jobs"], asked[0]["plan"].nodes) == (range(1000, 1010), 2, (3, 5))
    assert "out/swarm-1005/repro.toml" in plain.out


def test_a_hunt_that_found_nothing_ends_with_zero_or_tells_of_the_interrupt(relaymesh, monkeypatch):
    batch(monkeypatch, seeds=10)
    assert relaymesh("chaos", "hunt", "--seeds", "1-10").code == 0
    batch(monkeypatch, seeds=3, interrupted=True)
    assert relaymesh("chaos", "hunt", "--seeds", "1-10").code == 130


def test_a_hunt_that_never_met_what_it_must_ends_with_one(relaymesh, monkeypatch):
    batch(monkeypatch, seeds=hunting.COVERAGE_SEEDS_MIN)

    ran = relaymesh("chaos", "hunt", "--seeds", "1-100")

    assert ran.code == 1
    assert "never met" in ran.out


def test_a_hunt_by_the_clock_has_no_last_seed(relaymesh, monkeypatch):
    asked = batch(monkeypatch, seeds=1)

    assert relaymesh("chaos", "hunt", "--minutes", "0.5", "--no-shrink").code == 0
    assert (asked[0]["minutes"], asked[0]["shrink_first"]) == (0.5, 0)
    assert next(iter(asked[0]["seeds"])) > 10**12


def test_mutants_are_listed_with_what_they_break(relaymesh):
    ran = relaymesh("chaos", "mutants", "--json")

    assert ran.code == 0
    assert [row["name"] for row in ran.json] == list(MUTANTS)
    assert all(set(row) == {"name", "breaks", "caughtBy"} and row["caughtBy"] for row in ran.json)


def test_a_mutant_is_caught_only_by_an_invariant_of_its_own(relaymesh, monkeypatch):
    name, mutant = next(iter(MUTANTS.items()))
    caught = Found(seed=3, violations=(Violation(mutant.caught_by[0], 0.0, ""),), repro=Path("r"))
    other = Found(seed=3, violations=(Violation("no-invariant-of-anybody", 0.0, ""),), repro=Path("r"))
    monkeypatch.setattr("chaos.mutants.MUTANTS", {name: mutant})

    batch(monkeypatch, seeds=3, found=[caught])
    by_its_own = relaymesh("chaos", "mutants", "--catch", "--json")
    batch(monkeypatch, seeds=40, found=[other])
    by_another = relaymesh("chaos", "mutants", "--catch", "--json")

    assert by_its_own.code == 0
    assert by_its_own.json[0]["caught"] == {"seed": 3, "invariant": mutant.caught_by[0], "seedsTried": 3}
    assert (by_another.code, by_another.json[0]["caught"]) == (1, None)


def test_runs_that_differ_end_the_gate_with_one(relaymesh, monkeypatch):
    difference = Difference(step=9, hash_seeds=(1, 2), before=("0.1 same",), left="0.2 this", right="0.2 that")
    differs = Verified(scenario=SMALL, hashes={1: "aa", 2: "bb"}, errors={}, difference=difference)
    equal = Verified(scenario=SMALL, hashes={1: "aa", 2: "aa"}, errors={})

    for verified, code in ((equal, 0), (differs, 1)):
        monkeypatch.setattr(determinism, "verify", lambda *_, found=verified, **__: [found])
        ran = relaymesh("chaos", "verify-determinism", "--seeds", "7", "--json")
        assert (ran.code, ran.json["equal"]) == (code, code == 0)
    assert ran.json["scenarios"][0]["firstDifference"]["left"] == "0.2 this"
    assert "0.2 that" in relaymesh("chaos", "verify-determinism").out


def test_everything_that_there_is_can_be_listed(relaymesh):
    everything = relaymesh("chaos", "list", "--json").json

    assert set(everything) == {"scenarios", "faults", "invariants", "coverage"}
    assert all(everything.values())
    assert {"split-brain", "node-crash"} <= {row["name"] for row in everything["scenarios"]}
    assert all(row["promise"] for row in everything["invariants"])
    assert relaymesh("chaos", "list", "faults", "--json").json == everything["faults"]
    assert "split-brain" in relaymesh("chaos", "list").out


@pytest.mark.slow
def test_a_real_run_from_its_file_to_its_replay(relaymesh, small, tmp_path):
    first = relaymesh("chaos", "run", "--scenario", small, "--seed", 5, "--out", tmp_path, "--json")
    again = relaymesh("chaos", "replay", tmp_path / "small-5" / "repro.toml", "--out", tmp_path / "again", "--json")

    assert first.json["violations"] == []
    assert (first.code, again.code) == (0, 0)
    assert again.json["sameAsRecorded"] is True


def test_nothing_of_chaos_is_loaded_before_it_is_asked_for():
    program = (
        "import sys\n"
        "from tools.cli import app\n"
        "try: app(['chaos', 'run', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('chaos', 'trio')], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert ran.stderr == "[]\n"


@pytest.mark.parametrize(
    "name",
    [*("run", "replay", "shrink", "report", "real", "list"), *("hunt", "mutants", "verify-determinism", "bench")],
)
def test_every_command_has_help_with_an_example(relaymesh, name):
    ran = relaymesh("chaos", name, "--help")

    assert f"  relaymesh chaos {name}" in ran.out
    assert "--json" in ran.out


def test_the_list_of_commands_has_no_summary_that_is_cut_off(relaymesh):
    assert "..." not in relaymesh("chaos", "--help").out.split("Commands:")[1]


def test_a_named_scenario_is_not_taken_for_a_file():
    assert playing.find("split-brain").name == "split-brain"
    with pytest.raises(ConfigError, match=r"split-brain\.toml"):
        playing.find("split-brain.toml")

"""Goal: every failure is one line and its exit code, and starting is light. Method: calls and real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

from mesh.errors import (
    ConfigError,
    ConflictError,
    FrameError,
    LimitError,
    NotFoundError,
    RecordError,
    RelayMeshError,
    StoreError,
    UnavailableError,
)
from tools.cli import app
from tools.command_parts import Part

REPOSITORY = Path(__file__).parents[2]


def run_process(*args: str, timeout: float = 20, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.cli", *args],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (NotFoundError, "not_found", 1),
        (LimitError, "limit", 2),
        (ConfigError, "config", 2),
        (UnavailableError, "unavailable", 3),
        (StoreError, "store", 3),
        (FrameError, "frame", 3),
        (ConflictError, "conflict", 4),
        (RecordError, "record", 1),
        (RelayMeshError, "internal", 1),
    ],
)
def test_each_class_of_error_has_its_exit_code(fake_node, relaymesh, error, code, exit_code):
    fake_node.answers["members"] = error("do\n  this")

    plain = relaymesh("--root", fake_node.root, "members")
    as_json = relaymesh("--root", fake_node.root, "members", "--json")

    assert (plain.code, plain.out, plain.err) == (exit_code, "", "relaymesh: do this\n")
    assert as_json.code == exit_code
    assert as_json.json == {"error": {"code": code, "message": "do\n  this"}}


def test_shared_options_are_accepted_before_and_after_the_command(fake_node, relaymesh, tmp_path):
    fake_node.answers["members"] = []

    for args in (
        ["--root", fake_node.root, "--namespace", "blue", "--json", "members"],
        ["members", "--root", fake_node.root, "--namespace", "blue", "--json"],
        [
            "--root",
            tmp_path / "other",
            "--namespace",
            "red",
            "members",
            "--namespace",
            "blue",
            "--root",
            fake_node.root,
            "--json",
        ],
    ):
        assert relaymesh(*args).json == []
    assert [call["namespace"] for call in fake_node.calls] == ["blue"] * 3


def test_a_usage_error_names_the_help_to_read(relaymesh):
    for args, where in (
        (["nonsense"], "relaymesh --help"),
        (["tasks", "--status", "HAPPY"], "relaymesh tasks --help"),
        (["mesh", "enroll"], "relaymesh mesh enroll --help"),
        (["mesh"], "relaymesh mesh --help"),
        (["--bogus", "tasks"], "relaymesh --help"),
    ):
        ran = relaymesh(*args)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert where in ran.err


def test_a_usage_error_is_json_too(relaymesh):
    ran = relaymesh("tasks", "--limit", "x", "--json")

    assert ran.code == 2
    assert ran.json["error"]["code"] == "usage"


def test_a_wrong_namespace_is_refused_before_any_node_is_asked(fake_node, relaymesh):
    ran = relaymesh("--root", fake_node.root, "--namespace", "No Way", "tasks")

    assert ran.code == 2
    assert "a-z 0-9" in ran.err
    assert fake_node.calls == []


def test_without_a_command_the_help_is_shown(relaymesh):
    ran = relaymesh()

    assert ran.code == 2
    assert "Examples:" in ran.out


COMMANDS = (
    *(
        "bootstrap-from",
        "submit",
        "submit-workflow",
        "submit-batch",
        "pause",
        "resume",
        "holds",
        "drain",
        "task",
        "tasks",
        "workflow",
        "result",
        "wait",
        "cancel",
        "replay",
        "replay-batch",
        "dead",
        "dead-export",
        "task-export",
        "explain",
        "logs",
    ),
    *("agents", "members", "mesh-summary", "health", "stats", "metrics", "top", "doctor"),
    *("lease-report", "benchmark-run", "reload-settings", "settings-history"),
    *("ownership-events", "lease-conflicts", "cluster-state", "tls-status", "purge", "mesh-prune"),
    *("cluster-epoch-bump", "mesh-recover", "maintenance", "upgrade-rehearsal", "version", "demo"),
    *("replication-export", "replication-import", "replication-verify", "replication-controller"),
    "convergence-report",
    *("schema-migrations", "schema-rollback", "snapshot-export", "snapshot-import", "bootstrap-from"),
)
QUARANTINE = [["quarantine", name] for name in ("list", "show", "retry", "drop")]
SCHEDULE = [["schedule", name] for name in ("add", "list", "show", "remove", "pause", "resume", "next")]


@pytest.mark.parametrize(
    "command", [[name] for name in COMMANDS] + [["mesh", "create"], ["mesh", "enroll"], *QUARANTINE, *SCHEDULE]
)
def test_every_command_has_help_that_says_what_each_option_is(relaymesh, command):
    ran = relaymesh(*command, "--help")

    assert ran.code == 0
    assert "--json" in ran.out
    # Shared options would only repeat the first page.
    assert "--namespace" not in ran.out


def test_the_list_of_commands_has_no_summary_that_is_cut_off(relaymesh):
    listing = relaymesh("--help").out.split("Commands:")[1]

    assert [line for line in listing.splitlines() if line.endswith("...")] == []
    assert {line.split()[0] for line in listing.splitlines() if line} == {
        *COMMANDS,
        "bench",
        "chaos",
        "mesh",
        "quarantine",
        "schedule",
    }


def test_help_and_version_start_without_the_heavy_libraries():
    code = (
        "import sys; from tools.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = ['trio', 'cryptography', 'apsw', 'prometheus_client']\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    for args in (["--help"], ["version"], ["submit", "--help"], ["--root", "/nowhere", "tasks"]):
        ran = subprocess.run(
            [sys.executable, "-c", code, *args], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert ran.stderr.splitlines()[-1] == "[]", (args, ran.stderr)


@pytest.mark.parametrize("on_terminal", [False, True])
def test_the_status_of_a_task_brings_in_nothing_heavy_and_no_other_command(fake_node, on_terminal):
    fake_node.answers["task"] = {"taskId": "tsk_1", "status": "RUNNING", "steps": [{"name": "a", "status": "RUNNING"}]}
    code = (
        f"import sys; sys.stdout.isatty = lambda: {on_terminal}\n"
        "from tools.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )

    ran = subprocess.run(
        [sys.executable, "-c", code, "--root", str(fake_node.root), "task", "tsk_1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = ran.stderr.splitlines()[-1].split()
    heavy = ("trio", "cryptography", "apsw", "prometheus_client", "rich", "pydantic", "ssl", "asyncio", "chaos")
    assert "tsk_1" in ran.stdout
    assert "tools.work_commands" in loaded
    assert [name for name in loaded if name.split(".")[0] in heavy] == []
    assert [name for name in loaded if name.endswith("_commands") and name != "tools.work_commands"] == []


def test_each_part_of_the_commands_names_what_it_registers():
    # A name that is missing here works, but every command line that uses it imports all modules to find it.
    for part in get_command(app).parts:
        assert set(part.names) == set(part.commands())


def test_a_command_that_its_part_does_not_name_is_found_all_the_same(relaymesh, monkeypatch):
    part = Part(lambda app: app.command("late")(lambda: print("found")), ())
    monkeypatch.setattr(type(get_command(app)), "parts", (part,))

    assert relaymesh("late").out == "found\n"


def test_a_mistyped_command_gets_the_right_one_named(relaymesh):
    assert "submit-workflow" in relaymesh("submit-workflw").err


def test_a_real_process_prints_its_version_and_how_long_that_took():
    started = time.perf_counter()

    ran = run_process("version", "--json")

    print(f"start-up: {(time.perf_counter() - started) * 1000:.0f} ms")
    assert ran.returncode == 0
    assert set(json.loads(ran.stdout)) == {"version", "protocol"}


def test_the_version_of_a_node_is_shown_when_one_is_named(fake_node, relaymesh):
    fake_node.answers["version"] = {"version": "9.9", "nodeId": "node-a"}

    assert "9.9" in relaymesh("version", "--root", fake_node.root).out
    assert relaymesh("version", "--root", fake_node.root, "--json").json["node"]["nodeId"] == "node-a"


def test_a_real_process_talks_to_a_node_found_through_the_environment(fake_node):
    fake_node.answers["result"] = {"taskId": "t", "status": "SUCCESS", "resultPayload": "hello"}

    ran = run_process("result", "t", RELAYMESH_ROOT=str(fake_node.root))

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "hello", "")


def test_a_reader_that_goes_away_causes_no_traceback(fake_node):
    fake_node.answers["tasks"] = [{"taskId": "x" * 90, "status": "PENDING"}] * 10_000
    command = [sys.executable, "-m", "tools.cli", "--root", str(fake_node.root), "tasks"]

    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"TASK_ID")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 1


def test_no_locale_means_no_crash_on_foreign_letters(fake_node):
    fake_node.answers["tasks"] = [{"taskId": "grüße-✓"}]

    ran = run_process("--root", str(fake_node.root), "tasks", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")

    assert ran.returncode == 0
    assert "gr" in ran.stdout


def test_demo_hands_its_options_on(relaymesh, monkeypatch, tmp_path):
    seen = []

    def run_demo(directory: Path | None, *, keep: bool, json: bool) -> int:
        seen.append((directory, keep, json))
        return 1

    stand_in = type(sys)("tools.demo")
    stand_in.run_demo = run_demo
    monkeypatch.setitem(sys.modules, "tools.demo", stand_in)

    assert relaymesh("demo", tmp_path, "--keep", "--json").code == 1
    assert relaymesh("demo").code == 1
    assert seen == [(tmp_path, True, True), (None, False, False)]


def test_bench_hands_everything_on_to_its_own_command_line(relaymesh, monkeypatch):
    import typer

    seen = []
    bench = typer.Typer()

    @bench.command()
    def store(seconds: int = 1, json: bool = False) -> None:
        seen.append((seconds, json))

    @bench.command()
    def idle() -> None:
        raise typer.Exit(1)

    stand_in = type(sys)("tools.bench")
    stand_in.app = bench
    monkeypatch.setitem(sys.modules, "tools.bench", stand_in)

    assert relaymesh("bench", "store", "--seconds", "3", "--json").code == 0
    assert relaymesh("--json", "bench", "store").code == 0
    assert relaymesh("bench", "idle").code == 1
    assert seen == [(3, True), (1, True)]
    assert "store" in relaymesh("bench", "--help").out

"""Script agents: scripts.json, and real executables."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError
from node.agents.executor import ProcessExecutor
from node.agents.script_reports import PROGRESS_LINES_MAX, ProgressSieve
from node.agents.scripts import COMMAND_BYTES_MAX, parent_file_name, read_scripts
from node.env import Job
from node.work.run_lines import AttemptLine


def job(agent, payload=b"", *, timeout_s=20.0, parents=None, step_name="step"):
    return Job(
        task_id="tsk_1",
        step_id="stp_1",
        step_name=step_name,
        namespace="prod",
        agent=agent,
        attempt=2,
        fence="fence-1",
        traceparent="00-aa-bb-01",
        timeout_s=timeout_s,
        payload=payload,
        parents=parents or {},
    )


def shell(name, script, **more):
    return {"id": name, "command": ["sh", "-c", script], **more}


SCRIPTS = [
    {"id": "cat", "command": ["cat"]},
    shell("env", "env"),
    shell("both", "echo out; echo err >&2"),
    shell("exit", 'cat >&2; exit "$(cat /dev/stdin)"'),
    shell("failing", "echo some >&2; echo reason >&2; exit 3"),
    shell("later", "exit 75"),
    shell("signal", "kill -SEGV $$"),
    shell("ignore-stdin", "exec <&-; echo done"),
    shell("much-stderr", "yes error | head -c 300000 >&2; echo last >&2; echo ok"),
    {"id": "zeros", "command": ["sh", "-c", "head -c $(cat) /dev/zero"]},
    shell("endless", "exec cat /dev/zero"),
    shell("napping", "trap 'echo got TERM >&2; exit 1' TERM; sleep 60 & wait"),
    shell("stubborn", "trap '' TERM; setsid sleep 300 & sleep 300"),
    shell("litter", "setsid sleep 300 & setsid sleep 300 >/dev/null 2>&1 & echo done"),
    shell("parents", 'for f in "$RELAYMESH_PARENTS_DIR"/*; do echo "$(basename "$f")=$(cat "$f")"; done'),
    shell("parents-dir", 'printf %s "$RELAYMESH_PARENTS_DIR"'),
    shell("limits", "ulimit -d; ulimit -c; cat /proc/self/oom_score_adj; pwd"),
    shell("descriptors", "ls /proc/self/fd | tr '\\n' ' '; ps -o sid=,pgid=,pid= -p $$ | xargs"),
    shell("sh", 'eval "$(cat)"'),
    shell(
        "progress",
        'for l in begins "::progress 0.5 half of it" "ends ::progress 0.9 not at the start"; do echo "$l" >&2; done',
    ),
    shell("result-file", 'echo out; printf %s "from the file" > "$RELAYMESH_RESULT_FILE"'),
    {"id": "small", "command": ["sh", "-c", "head -c $(cat) /dev/zero"], "resultMaxBytes": 10},
    shell("small-memory", "ulimit -d", memoryMaxBytes=50 << 20),
    {"id": "cpu", "command": ["sh", "-c", "while :; do :; done"], "cpuMaxMs": 300},
    shell("cpu-below-a-shell", "sh -c 'while :; do :; done'; exit $?", cpuMaxMs=1000),
    shell("exits", 'eval "$(cat)"', onExit={"75": "snooze", "65": "fail", "77": "cancel"}, snoozeMs=2500),
    {"id": "mine", "command": ["bin/mine.sh", "an argument"], "timeoutMs": 1500},
]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "scripts.json").write_text(json.dumps({"agents": SCRIPTS}))
    (tmp_path / "bin").mkdir()
    mine = tmp_path / "bin" / "mine.sh"
    mine.write_text('#!/bin/sh\necho "$0|$1"\n')
    mine.chmod(0o755)
    return tmp_path


@pytest.fixture
async def executor(root):
    executor = ProcessExecutor(
        root, slots=4, memory_bytes_max=200 << 20, result_bytes_max=1 << 20, default_timeout_s=33, kill_grace_s=0.3
    )
    async with executor.running():
        yield executor
    assert sleeping_below(os.getpid()) == 0


def read(path):
    """What a file below /proc says; empty when its process is gone."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def children_of(pid):
    return read(f"/proc/{pid}/task/{pid}/children").decode().split()


async def eventually(condition, seconds=10.0):
    with trio.fail_after(seconds):
        while True:
            if condition():
                return
            await trio.sleep(0.01)


def sleeping_below(pid):
    """How many `sleep` commands are below `pid`."""
    count = 0
    for child in children_of(pid):
        count += read(f"/proc/{child}/comm") == b"sleep\n"
        count += sleeping_below(child)
    return count


async def test_the_payload_is_stdin_and_stdout_is_the_result(executor):
    payload = "grüße\0".encode() + os.urandom(500_000)
    outcome = await executor.run(job("cat", payload))
    assert (outcome.kind, outcome.result, outcome.log) == ("success", payload, "")


async def test_stderr_is_the_log_and_no_part_of_the_result(executor):
    outcome = await executor.run(job("both"))
    assert (outcome.result, outcome.log) == (b"out\n", "err\n")


async def test_the_attempt_is_in_the_environment_and_the_nodes_own_settings_are_not(root, monkeypatch):
    monkeypatch.setenv("RELAYMESH_ROOT", "/of/the/node")
    monkeypatch.setenv("OTHER", "kept")
    executor = ProcessExecutor(root, slots=1)
    async with executor.running():
        outcome = await executor.run(job("env", step_name="schön"))
    lines = outcome.result.decode().splitlines()
    given = dict(line.split("=", 1) for line in lines if line.startswith(("RELAYMESH_", "TRACEPARENT", "OTHER")))
    assert given.pop("RELAYMESH_RESULT_FILE").startswith(f"{root}/agents-scratch/")
    assert given == {
        "RELAYMESH_TASK_ID": "tsk_1",
        "RELAYMESH_STEP_ID": "stp_1",
        "RELAYMESH_STEP_NAME": "schön",
        "RELAYMESH_ATTEMPT": "2",
        "RELAYMESH_FENCE": "fence-1",
        "RELAYMESH_NAMESPACE": "prod",
        "RELAYMESH_AGENT": "env",
        "TRACEPARENT": "00-aa-bb-01",
        "OTHER": "kept",
    }


async def test_a_failure_tells_the_exit_code_and_the_end_of_stderr(executor):
    outcome = await executor.run(job("failing"))
    assert (outcome.kind, outcome.error) == ("failed", "exit code 3: some\nreason")
    assert (await executor.run(job("later"))).error == "exit code 75 (EX_TEMPFAIL)"


async def test_the_text_of_a_failure_is_bounded(executor):
    outcome = await executor.run(job("exit", b"x" * 5000))
    assert outcome.kind == "failed"
    assert len(outcome.error) == 512
    assert len(outcome.log) == 4096


async def test_a_script_that_dies_by_a_signal_crashed(executor):
    outcome = await executor.run(job("signal"))
    assert (outcome.kind, outcome.error) == ("crashed", "killed by signal 11 (SIGSEGV)")


async def test_a_script_need_not_read_its_stdin(executor):
    outcome = await executor.run(job("ignore-stdin", b"x" * 1_000_000))
    assert (outcome.kind, outcome.result) == ("success", b"done\n")


async def test_stderr_beyond_any_pipe_does_not_block_the_script(executor):
    outcome = await executor.run(job("much-stderr"))
    assert outcome.result == b"ok\n"
    assert len(outcome.log) == 4096
    assert outcome.log.endswith("error\nlast\n")


@pytest.mark.parametrize("length", [64 * 1024, 64 * 1024 + 1, 1 << 20])
async def test_stdout_up_to_the_limit_is_the_result(executor, length):
    outcome = await executor.run(job("zeros", str(length).encode()))
    assert (outcome.kind, len(outcome.result)) == ("success", length)


@pytest.mark.parametrize("agent", ["zeros", "endless"])
async def test_stdout_past_the_limit_is_rejected_and_the_script_ended(executor, agent):
    outcome = await executor.run(job(agent, str((1 << 20) + 1).encode()))
    assert outcome.kind == "rejected"
    assert "more than 1048576 bytes" in outcome.error


async def test_a_timeout_is_a_term_first(executor):
    outcome = await executor.run(job("napping", timeout_s=0.2))
    assert (outcome.kind, outcome.error) == ("timeout", "ran longer than its limit of 0.2 s and was ended")
    assert outcome.log == "got TERM\n"
    assert sleeping_below(os.getpid()) == 0


@pytest.mark.slow
async def test_a_script_that_ignores_term_is_killed_with_all_below_it(executor):
    started = time.monotonic()
    assert (await executor.run(job("stubborn", timeout_s=0.2))).kind == "timeout"
    assert time.monotonic() - started < 5
    assert sleeping_below(os.getpid()) == 0


async def test_cancelling_returns_when_the_whole_tree_is_gone(executor):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor.run, job("stubborn"))
        await eventually(lambda: sleeping_below(os.getpid()) == 2)
        nursery.cancel_scope.cancel()
    assert sleeping_below(os.getpid()) == 0


async def test_what_a_finished_script_left_running_is_killed(executor):
    outcome = await executor.run(job("litter"))
    assert (outcome.kind, outcome.result) == ("success", b"done\n")
    assert sleeping_below(os.getpid()) == 0


async def test_parent_outputs_are_files_that_are_removed_afterwards(executor, root):
    outcome = await executor.run(job("parents", parents={"a": b"1", "b/../c": b"2", ".hidden": b"3"}))
    assert outcome.result == b"%2Ehidden=3\na=1\nb%2F..%2Fc=2\n"
    folder = (await executor.run(job("parents-dir", parents={"a": b"1"}))).result.decode()
    assert folder.startswith(f"{root}/agents-scratch/")
    assert list((root / "agents-scratch").iterdir()) == []
    assert (await executor.run(job("parents-dir"))).result == b""


@pytest.mark.parametrize("name", [".", "..", "a/b", "ü", "%", "a b", "x" * 64])
def test_a_parents_file_name_stays_in_its_folder(name):
    encoded = parent_file_name(name)
    assert "/" not in encoded
    assert encoded not in (".", "..")


async def test_limits_and_working_folder_are_set(executor, root):
    data, core, oom, folder = (await executor.run(job("limits"))).result.decode().split()
    assert (int(data), core, oom, folder) == (200 << 10, "0", "500", str(root))


async def test_a_script_has_no_other_descriptors_and_leads_its_own_session(executor):
    words = (await executor.run(job("descriptors"))).result.decode().split()
    *descriptors, session, group, pid = words
    assert descriptors == ["0", "1", "2", "3"]  # 3 is the folder that `ls` reads
    assert session == group == pid


async def test_a_command_below_the_root_is_found_there_and_keeps_its_own_limit(executor, root):
    assert executor.agents()["mine"].timeout_s == 1.5
    assert executor.agents()["cat"].timeout_s == 33
    assert executor.agents()["cat"].kind == "script"
    assert (await executor.run(job("mine"))).result.decode() == f"{root}/bin/mine.sh|an argument\n"


async def test_progress_lines_are_told_and_are_no_part_of_the_log(executor):
    line = AttemptLine(save=None, now_ms=lambda: 7)
    outcome = await executor.run(replace(job("progress"), line=line))
    assert (outcome.kind, outcome.log) == ("success", "begins\nends ::progress 0.9 not at the start\n")
    assert line.progress == (0.5, "half of it", 7)
    assert (await executor.run(job("progress"))).kind == "success"


async def test_a_result_file_is_the_result_instead_of_stdout(executor, root):
    outcome = await executor.run(job("result-file"))
    assert (outcome.kind, outcome.result, outcome.log) == ("success", b"from the file", "")
    assert list((root / "agents-scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ('head -c 1048577 /dev/zero > "$RELAYMESH_RESULT_FILE"', "wrote 1048577 bytes to RELAYMESH_RESULT_FILE"),
        ('mkfifo "$RELAYMESH_RESULT_FILE"', "no regular file"),
        ('mkdir -p "$RELAYMESH_RESULT_FILE/a"', "no regular file"),
        ('ln -s /etc/passwd "$RELAYMESH_RESULT_FILE"', "cannot be read: Too many levels of symbolic links"),
    ],
)
async def test_a_result_file_that_is_none_is_rejected_and_gone(executor, root, make, message):
    outcome = await executor.run(job("sh", make.encode()))
    assert outcome.kind == "rejected"
    assert message in outcome.error
    assert list((root / "agents-scratch").iterdir()) == []


async def test_a_result_file_of_a_failed_script_is_no_result(executor, root):
    outcome = await executor.run(job("sh", b'echo x > "$RELAYMESH_RESULT_FILE"; exit 3'))
    assert (outcome.kind, outcome.result) == ("failed", b"")
    assert list((root / "agents-scratch").iterdir()) == []


async def test_an_agent_has_limits_of_its_own(executor):
    assert (await executor.run(job("small", b"10"))).kind == "success"
    outcome = await executor.run(job("small", b"11"))
    assert (outcome.kind, "more than 10 bytes" in outcome.error) == ("rejected", True)
    assert (await executor.run(job("small-memory"))).result.split() == [b"51200"]


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["cpu", "cpu-below-a-shell"])
async def test_a_script_that_uses_up_its_cpu_time_is_ended_with_a_word(executor, agent):
    outcome = await executor.run(job(agent))
    assert outcome.kind == "timeout"
    assert outcome.error == "used more CPU time than its limit of 1 s (cpuMaxMs) and was ended"


@pytest.mark.parametrize(
    ("code", "kind", "snooze_ms"), [(75, "snoozed", 2500), (65, "rejected", 0), (77, "cancelled", 0), (1, "failed", 0)]
)
async def test_exit_codes_mean_what_the_agent_says(executor, code, kind, snooze_ms):
    outcome = await executor.run(job("exits", f"echo because >&2; exit {code}".encode()))
    assert (outcome.kind, outcome.snooze_ms) == (kind, snooze_ms)
    assert outcome.error.startswith(f"exit code {code}")
    assert outcome.error.endswith(": because")


@given(st.lists(st.sampled_from([b"::progress 0.5 x", b"::prog", b"ress", b"\n", b":", b"a", b"::progress "])))
def test_progress_lines_are_found_however_the_stream_is_cut(pieces):
    def sifted(chunks):
        said = []
        sieve = ProgressSieve(lambda fraction, text: said.append((fraction, text)))
        return b"".join(map(sieve.sift, chunks)) + sieve.left().encode(), said

    whole = b"".join(pieces)
    kept = [line for line in whole.splitlines(keepends=True) if not line.startswith(b"::progress 0.5")]
    expected = b"".join(kept)
    if not expected.endswith(b"\n") and expected.rpartition(b"\n")[2].startswith(b"::progress "):
        expected = expected[: expected.rfind(b"\n") + 1]  # an unfinished line of that kind is no log
    assert sifted([bytes([byte]) for byte in whole]) == sifted(pieces) == sifted([whole])
    assert sifted([whole])[0] == expected


def test_of_a_flood_of_progress_the_latest_lines_alone_are_looked_at():
    said = []
    sieve = ProgressSieve(lambda fraction, text: said.append(fraction))
    lines = [f"::progress {number} x\n".encode() for number in range(4000)]
    assert sieve.sift(b"a\n" + b"".join(lines) + b"b\n") == b"a\nb\n"
    assert said == list(range(4000 - PROGRESS_LINES_MAX, 4000))


async def test_a_program_that_vanished_is_a_failure_that_names_it(executor, root):
    (root / "bin" / "mine.sh").unlink()
    outcome = await executor.run(job("mine"))
    assert outcome.kind == "failed"
    assert outcome.error.startswith("could not be run: ")
    assert "mine.sh: No such file or directory" in outcome.error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1, column 2: not JSON"),
        ("[]", "Expected `object`, got `array`"),
        ('{"agents":[{"id":"a"}]}', "missing required field `command`"),
        ('{"agents":[{"id":"a","command":["cat"],"shell":true}]}', "unknown field `shell`"),
        ('{"agents":[{"id":"a","command":"cat"}]}', r"\$\.agents\[0\]\.command"),
        ('{"agents":[{"id":"a b","command":["cat"]}]}', r"agent 1 \('a b'\): give an id"),
        ('{"agents":[{"id":"a","command":[]}]}', "must begin with a program"),
        ('{"agents":[{"id":"a","command":["cat","\\u0000"]}]}', "NUL"),
        ('{"agents":[{"id":"a","command":["cat"],"timeoutMs":0}]}', "`timeoutMs` is 0"),
        ('{"agents":[{"id":"a","command":["cat"],"cpuMaxMs":0}]}', "`cpuMaxMs` is 0, not from 1"),
        ('{"agents":[{"id":"a","command":["cat"],"memoryMaxBytes":5}]}', "`memoryMaxBytes` is 5, not at least 1048576"),
        ('{"agents":[{"id":"a","command":["cat"],"resultMaxBytes":0}]}', "`resultMaxBytes` is 0, not at least 1"),
        ('{"agents":[{"id":"a","command":["cat"],"snoozeMs":1}]}', "`snoozeMs` is 1, not from 100"),
        ('{"agents":[{"id":"a","command":["cat"],"onExit":{"0":"fail"}}]}', "no exit code from 1 to 255"),
        ('{"agents":[{"id":"a","command":["cat"],"onExit":{"ü":"fail"}}]}', "no exit code from 1 to 255"),
        ('{"agents":[{"id":"a","command":["cat"],"onExit":{"75":"again"}}]}', "none of fail, cancel, snooze"),
        ('{"agents":[{"id":"a","command":["no-such-program"]}]}', "'no-such-program' is no program"),
        ('{"agents":[{"id":"a","command":["cat"]},{"id":"a","command":["cat"]}]}', "agent 'a' exists twice"),
        ('{"agents":[{"id":"echo","command":["cat"]}]}', "agent 'echo' exists twice: built in"),
        ("\udcff", "scripts.json"),
    ],
)
def test_a_scripts_file_that_cannot_be_used_is_named_with_its_place(tmp_path, content, message):
    file = tmp_path / "scripts.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message) as caught:
        ProcessExecutor(tmp_path, scripts=file, slots=1)
    assert "scripts.json" in str(caught.value)


def test_a_scripts_file_that_is_asked_for_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        ProcessExecutor(tmp_path, scripts=tmp_path / "scripts.json", slots=1)


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False)])
def test_a_command_is_bounded(tmp_path, extra, fits):
    file = tmp_path / "scripts.json"
    word = "x" * (COMMAND_BYTES_MAX - len('["cat", ""]') + extra)
    file.write_text(json.dumps({"agents": [{"id": "a", "command": ["cat", word]}]}))
    if fits:
        assert read_scripts(file, tmp_path)[0].command == ("cat", word)
    else:
        with pytest.raises(ConfigError, match="above the limit"):
            read_scripts(file, tmp_path)

"""Script agents: any executable, with the payload on stdin and the result on stdout. Reads `scripts.json`, and runs
one per job.

stdin is a file in memory that holds the whole payload, so a script may read it late, twice or not at all. stderr goes
to the attempt's log, but for progress lines (`script_reports`). A script that writes the file RELAYMESH_RESULT_FILE
gives that as its result instead of stdout. Exit code 0 is success; every other one is a failure that is retried, unless
`onExit` says otherwise.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import msgspec
import trio

from mesh.errors import ConfigError
from node.agents.api import AGENT_NAME, SNOOZE_MS_MAX, SNOOZE_MS_MIN, TIMEOUT_MAX_S
from node.agents.host_pool import timeout_text
from node.agents.process_output import READ_BYTES, LogTail, PipeReader
from node.agents.processes import ExitStatus, GuardedProcess, Processes
from node.agents.script_reports import ProgressSieve, read_result_file
from node.agents.wire import ERROR_CHARS_MAX, LOG_BYTES_MAX
from node.env import Job, Outcome

COMMAND_BYTES_MAX = 64 * 1024
"""Of a command as JSON, which is how it travels: half of a request, the rest is for the job's environment."""

SCRIPTS_FILE_BYTES_MAX = 1024 * 1024
EX_TEMPFAIL = 75  # sysexits.h: "try again later", which is what happens after any failure
SNOOZE_MS = 60_000
MEMORY_BYTES_MIN = 1024 * 1024
_KINDS = {"fail": "rejected", "cancel": "cancelled", "snooze": "snoozed"}


@dataclass(frozen=True, slots=True)
class ScriptAgent:
    """One entry of `scripts.json`."""

    name: str
    command: tuple[str, ...]
    timeout_s: float | None
    result_bytes_max: int | None = None
    """None takes the node's limit, as the next one does."""
    memory_bytes_max: int | None = None
    cpu_s_max: int = 0
    """Of each of its processes; 0 is no limit."""
    on_exit: Mapping[int, str] = field(default_factory=dict)
    """Exit codes that are no plain failure: `fail`, `cancel` or `snooze`, as a Python handler's exceptions."""
    snooze_ms: int = SNOOZE_MS
    """How long a snooze of it waits."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    id: str
    command: list[str]
    timeout_ms: int | None = None
    result_max_bytes: int | None = None
    memory_max_bytes: int | None = None
    cpu_max_ms: int | None = None
    on_exit: dict[str, str] = {}
    snooze_ms: int = SNOOZE_MS


class _File(msgspec.Struct, forbid_unknown_fields=True):
    agents: list[_Entry]


def read_scripts(file: Path, root: Path) -> list[ScriptAgent]:
    """The script agents that `file` declares. Relative words of a command that name something below `root` become
    absolute.

    Raises ConfigError, naming the place, for a file that cannot be read or says something that cannot be run.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    if len(content) > SCRIPTS_FILE_BYTES_MAX:
        raise ConfigError(f"{file} has {len(content)} bytes, above the limit of {SCRIPTS_FILE_BYTES_MAX}")
    try:
        json.loads(content)  # for its line and column; msgspec only counts bytes
        entries = msgspec.json.decode(content, type=_File).agents
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        wanted = '{"agents": [{"id": "name", "command": ["program", "argument"], "timeoutMs": 60000}]}'
        raise ConfigError(f"{file}: {error}. Wanted: {wanted}") from error
    return [_script(file, index, entry, root) for index, entry in enumerate(entries)]


def _script(file: Path, index: int, entry: _Entry, root: Path) -> ScriptAgent:
    place = f"{file}, agent {index + 1} ({entry.id[:80]!r})"
    if not AGENT_NAME.fullmatch(entry.id):
        raise ConfigError(f"{place}: give an id of 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if not entry.command or any(not word.strip() for word in entry.command[:1]):
        raise ConfigError(f"{place}: `command` must begin with a program")
    if len(json.dumps(entry.command)) > COMMAND_BYTES_MAX:
        raise ConfigError(f"{place}: `command` is above the limit of {COMMAND_BYTES_MAX} bytes")
    if any("\0" in word for word in entry.command):
        raise ConfigError(f"{place}: `command` holds a NUL character")
    _check_limits(place, entry)
    command = tuple(_resolve(word, root) for word in entry.command)
    if shutil.which(command[0]) is None:
        # A node says only what it can do: work for a missing program would come here and fail.
        raise ConfigError(
            f"{place}: {entry.command[0]!r} is no program below {root} or on PATH; install it, or make it executable"
        )
    return ScriptAgent(
        entry.id,
        command,
        None if entry.timeout_ms is None else entry.timeout_ms / 1000,
        result_bytes_max=entry.result_max_bytes,
        memory_bytes_max=entry.memory_max_bytes,
        cpu_s_max=math.ceil((entry.cpu_max_ms or 0) / 1000),
        on_exit={int(code): verdict for code, verdict in entry.on_exit.items()},
        snooze_ms=entry.snooze_ms,
    )


def _check_limits(place: str, entry: _Entry) -> None:
    limits = (
        ("timeoutMs", entry.timeout_ms, 1, int(TIMEOUT_MAX_S * 1000)),
        ("resultMaxBytes", entry.result_max_bytes, 1, None),
        ("memoryMaxBytes", entry.memory_max_bytes, MEMORY_BYTES_MIN, None),
        ("cpuMaxMs", entry.cpu_max_ms, 1, int(TIMEOUT_MAX_S * 1000)),
        ("snoozeMs", entry.snooze_ms, SNOOZE_MS_MIN, SNOOZE_MS_MAX),
    )
    for name, value, least, most in limits:
        if value is not None and (value < least or (most is not None and value > most)):
            wanted = f"from {least} to {most}" if most is not None else f"at least {least}"
            raise ConfigError(f"{place}: `{name}` is {value}, not {wanted}")
    for code, verdict in entry.on_exit.items():
        if not (code.isascii() and code.isdecimal() and 1 <= int(code) <= 255):
            raise ConfigError(f"{place}: `onExit` has {code[:20]!r}, which is no exit code from 1 to 255")
        if verdict not in _KINDS:
            raise ConfigError(f"{place}: `onExit` has {verdict[:20]!r}, which is none of {', '.join(_KINDS)}")


def _resolve(word: str, root: Path) -> str:
    path = os.path.join(root, word)
    return path if word and os.path.exists(path) else word


class ScriptRunner:
    """Runs script agents."""

    def __init__(
        self, processes: Processes, *, cwd: Path, scratch: Path, memory_bytes_max: int, result_bytes_max: int
    ) -> None:
        self._processes = processes
        self._cwd = cwd
        self._scratch = scratch
        self._memory_bytes_max = memory_bytes_max
        self._result_bytes_max = result_bytes_max
        self._numbers = itertools.count(1)

    async def run(self, agent: ScriptAgent, job: Job) -> Outcome:
        """Run one attempt. Cancellation kills the script and all below it before this returns."""
        if not job.parents:
            return await self._run(agent, job, {})
        folder = await trio.to_thread.run_sync(_write_parents, self._scratch, job.parents)
        try:
            return await self._run(agent, job, {"RELAYMESH_PARENTS_DIR": str(folder)})
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_remove_folder, folder)

    async def _run(self, agent: ScriptAgent, job: Job, environment: Mapping[str, str]) -> Outcome:
        stdin = _file_in_memory(job.payload)
        stdout_reader, stdout_writer = os.pipe()
        stderr_reader, stderr_writer = os.pipe()
        # What the node stores has its own limit; an agent may only have a smaller one.
        result_bytes_max = min(self._result_bytes_max, agent.result_bytes_max or self._result_bytes_max)
        output = _Output(stdout_reader, result_bytes_max)
        sieve = ProgressSieve(_nothing if job.line is None else job.line.note_progress)
        log = LogTail(stderr_reader, LOG_BYTES_MAX, sieve.sift)
        result_file = self._scratch / f"result-{next(self._numbers)}"
        try:
            try:
                process = await self._processes.start(
                    agent.command,
                    cwd=self._cwd,
                    environment={
                        **_job_environment(job),
                        **environment,
                        "RELAYMESH_RESULT_FILE": str(result_file),
                    },
                    memory_bytes_max=agent.memory_bytes_max or self._memory_bytes_max,
                    cpu_s_max=agent.cpu_s_max,
                    descriptors=[stdin, stdout_writer, stderr_writer],
                )
            finally:
                for descriptor in (stdin, stdout_writer, stderr_writer):
                    os.close(descriptor)
            status, timed_out = await _watch(process, output, log, job.timeout_s)
            outcome = _outcome(agent, job, status, output, log.text() + sieve.left(), timed_out=timed_out)
            if outcome.kind == "success" and result_file.exists():
                return await trio.to_thread.run_sync(_with_file, outcome, result_file, result_bytes_max)
            return outcome
        finally:
            output.pipe.close()
            log.pipe.close()
            if result_file.is_symlink() or result_file.exists():
                with trio.CancelScope(shield=True):  # not on the loop: a script may leave a whole tree there
                    await trio.to_thread.run_sync(_remove, result_file)


def _outcome(
    agent: ScriptAgent, job: Job, status: ExitStatus, output: _Output, log: str, *, timed_out: bool
) -> Outcome:
    if output.overflowed.is_set():
        text = f"wrote more than {output.bytes_max} bytes to stdout, the limit of a result, and was ended"
        return Outcome(kind="rejected", error=text, log=log)
    if timed_out:
        return Outcome(kind="timeout", error=timeout_text(job), log=log)
    if status.ok:
        return Outcome(kind="success", result=bytes(output.content), log=log)
    if agent.cpu_s_max and status.is_out_of_cpu:
        text = f"used more CPU time than its limit of {agent.cpu_s_max} s (cpuMaxMs) and was ended"
        return Outcome(kind="timeout", error=text, log=log)
    error = _failure_text(status, log)
    verdict = agent.on_exit.get(status.exit_code or 0)
    if verdict is not None:
        kind = _KINDS[verdict]
        return Outcome(kind=kind, error=error, log=log, snooze_ms=agent.snooze_ms if kind == "snoozed" else 0)
    by_itself = status.exit_code is not None or bool(status.error)
    return Outcome(kind="failed" if by_itself else "crashed", error=error, log=log)


def _with_file(outcome: Outcome, file: Path, bytes_max: int) -> Outcome:
    content = read_result_file(file, bytes_max)
    if isinstance(content, str):
        return Outcome(kind="rejected", error=content, log=outcome.log)
    return outcome if content is None else replace(outcome, result=content)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a folder, or in one that was locked: not what was asked for, but a script may do anything
        _remove_folder(path)


def _nothing(_fraction: float, _text: str) -> None: ...


class _Output:
    """What a script wrote to stdout, up to a limit."""

    def __init__(self, descriptor: int, bytes_max: int) -> None:
        self.pipe = PipeReader(descriptor, self._accept)
        self.content = bytearray()
        self.overflowed = trio.Event()
        self.bytes_max = bytes_max

    def _accept(self, chunk: bytes) -> None:
        if len(self.content) + len(chunk) > self.bytes_max:
            self.overflowed.set()
        else:
            self.content += chunk


async def _watch(process: GuardedProcess, output: _Output, log: LogTail, timeout_s: float) -> tuple[ExitStatus, bool]:
    """Read both pipes until the whole tree has ended or was ended; how, and whether for its time."""
    status: ExitStatus | None = None
    limit = trio.CancelScope(deadline=trio.current_time() + timeout_s)
    try:
        with limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(output.pipe.follow)
                nursery.start_soon(log.pipe.follow)
                nursery.start_soon(_cancel_when, output.overflowed, nursery.cancel_scope)
                status = await process.wait()
                nursery.cancel_scope.cancel()
    finally:
        if status is None:
            status = await process.end(softly=not output.overflowed.is_set())
    # The writers are gone: what is in the pipes now is all that will come.
    output.pipe.read_rest(2 * READ_BYTES)
    return status, limit.cancelled_caught


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _failure_text(status: ExitStatus, log: str) -> str:
    words = str(status)
    if status.error:
        words = f"could not be run: {status.error}"
    elif status.exit_code == EX_TEMPFAIL:
        words += " (EX_TEMPFAIL)"
    room = ERROR_CHARS_MAX - len(words) - 2
    said = log.strip()[-room:]
    return f"{words}: {said}" if said else words[:ERROR_CHARS_MAX]


def _file_in_memory(content: bytes) -> int:
    """A descriptor of an anonymous file that holds `content`, at its start."""
    descriptor = os.memfd_create("payload")
    with open(descriptor, "wb", buffering=0, closefd=False) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        file.seek(0)
    return descriptor


def _job_environment(job: Job) -> dict[str, str]:
    return {
        "RELAYMESH_TASK_ID": job.task_id,
        "RELAYMESH_STEP_ID": job.step_id,
        "RELAYMESH_STEP_NAME": job.step_name,
        "RELAYMESH_ATTEMPT": str(job.attempt),
        "RELAYMESH_FENCE": job.fence,
        "RELAYMESH_NAMESPACE": job.namespace,
        "RELAYMESH_AGENT": job.agent,
        "TRACEPARENT": job.traceparent,
    }


def _write_parents(scratch: Path, parents: Mapping[str, bytes]) -> Path:
    """A new folder with one file per parent output. Names that are no file names are percent-encoded."""
    folder = Path(tempfile.mkdtemp(prefix="parents-", dir=scratch))
    try:
        for name, content in parents.items():
            (folder / parent_file_name(name)).write_bytes(content)
    except BaseException:
        _remove_folder(folder)
        raise
    return folder


def parent_file_name(step_name: str) -> str:
    """The file in RELAYMESH_PARENTS_DIR for this step's output: its name, percent-encoded where a path needs it."""
    encoded = quote(step_name, safe="")
    return "%2E" + encoded[1:] if encoded.startswith(".") else encoded


def _remove_folder(folder: Path) -> None:
    # The script may have made it unreadable; what cannot be removed now is, at the latest, by the next start of the
    # node.
    shutil.rmtree(folder, ignore_errors=True)

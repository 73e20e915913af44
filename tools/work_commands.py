"""Commands about work: submitting it, following it, and changing its course."""

from __future__ import annotations

import base64
import json
import secrets
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mesh.errors import ConfigError
from tools.durations import DURATION_MS_MAX, format_duration, parse_date_ms, parse_duration_ms
from tools.output import escape, format_progress, print_json
from tools.session import EXIT_NEGATIVE, EXIT_OK, Command, Session, command
from tools.story import print_explanation, print_logs

# The node refuses more than its settings allow; this bound only keeps a mistaken file name from filling our memory.
INPUT_BYTES_MAX = 16 * 1024 * 1024
WAIT_SLICE_MS = 5_000  # one question of a long wait: short enough to show progress and to move on to another peer
FINAL_STATUSES = ("SUCCESS", "DEAD_LETTER", "CANCELLED")

TaskId = Annotated[str, typer.Argument(metavar="ID", help="Task id, as submit printed it.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1_000, help="At most so many.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--idempotency-key", metavar="K", help="Submitting the same work again under K gives the same task."),
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Wait for the end and print the task; exit 0 only for SUCCESS.")
]
ReplicasOption = Annotated[
    int | None,
    typer.Option("--replicas", metavar="K", min=1, max=100, help="Answer when K other nodes hold the task too."),
]
ReplicasTimeoutOption = Annotated[
    str, typer.Option("--replicas-timeout", metavar="TIME", help="How long --replicas may take.")
]
Status = Literal["PENDING", "RUNNING", "RETRYING", "SUCCESS", "DEAD_LETTER", "CANCELLED"]

_STEP_COLUMNS = (
    "name",
    "agentId",
    "status",
    "owner",
    "leaseEpoch",
    "attempt",
    "progress",
    "dependsOn",
    "updatedAtMs",
    "lastError",
)
_TASK_COLUMNS = ("taskId", "status", "createdAtMs", "updatedAtMs", "lastError")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, body in _COMMANDS.items():
        command(app, name, panel="Work")(body)


def _submit(
    session: Session,
    agent: Annotated[str, typer.Option("--agent", metavar="NAME", help="Agent that does the work; see `agents`.")],
    input_text: Annotated[str | None, typer.Option("--input", metavar="TEXT", help="The agent's input.")] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input-file", metavar="F", help="Read the input from F; - is standard input.")
    ] = None,
    priority: Annotated[
        Literal["high", "normal", "low"],
        typer.Option("--priority", help="What runs first: of 12 starts 8 high, 3 normal, 1 low."),
    ] = "normal",
    idempotency_key: KeyOption = None,
    node: Annotated[str | None, typer.Option("--node", metavar="ID", help="Run on this node only.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="Run on nodes with this label; may be repeated.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="Longest run of one attempt, like 500ms, 30s, 2h.")
    ] = None,
    on_partition: Annotated[
        Literal["takeover", "wait"],
        typer.Option("--on-partition", help="wait: never in two places at once, even if that means not at all."),
    ] = "takeover",
    delay: Annotated[
        str | None, typer.Option("--delay", metavar="TIME", help="Start so long after the submit, at the earliest.")
    ] = None,
    not_before: Annotated[
        str | None,
        typer.Option("--not-before", metavar="DATE", help="The same as a date (ISO 8601), or milliseconds since 1970."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="TIME", help="What has not begun so long after the submit is cancelled."),
    ] = None,
    wait: WaitOption = False,
    replicas: ReplicasOption = None,
    replicas_timeout: ReplicasTimeoutOption = "5s",
) -> int:
    """Give one piece of work to an agent.

    The node that answers has stored the task durably. With --replicas K the answer waits until K other nodes hold it
    too; if they do not in time, the exit code is 1 and the task exists all the same. With --on-partition wait it runs
    only where a majority of the present members can be reached. Delays count from the submit, wherever a task moves.

    \b
    Examples:
      relaymesh --root data submit --agent echo --input hello --wait
      relaymesh --root data submit --agent resize --input-file photo.json --label site=north --timeout 2m
      relaymesh --peer 10.0.0.2:18443 --identity me.enroll submit --agent bill --input 42 --idempotency-key order-42
      relaymesh --root data submit --agent pump --input open --on-partition wait
      relaymesh --root data submit --agent report --input daily --not-before 2026-11-26T06:00 --expires 2d
    """
    answer = session.ask(
        "submit",
        agent=agent,
        input=_read_input(input_text, input_file),
        priority=priority,
        idempotencyKey=idempotency_key or secrets.token_hex(16),
        node=node,
        labels=_parse_labels(label or []) or None,
        onPartition=None if on_partition == "takeover" else on_partition,
        timeoutMs=None if timeout is None else parse_duration_ms(timeout, option="--timeout"),
        delayMs=None if delay is None else parse_duration_ms(delay, option="--delay"),
        notBeforeMs=None if not_before is None else parse_date_ms(not_before, option="--not-before"),
        expiresMs=None if expires is None else parse_duration_ms(expires, option="--expires"),
        **replica_args(replicas, replicas_timeout),
    )
    return _after_submit(session, answer, wait=wait, replicas=replicas)


def _submit_workflow(
    session: Session,
    file: Annotated[Path, typer.Option("--file", metavar="F", help="Workflow as JSON; - is standard input.")],
    idempotency_key: KeyOption = None,
    wait: WaitOption = False,
    replicas: ReplicasOption = None,
    replicas_timeout: ReplicasTimeoutOption = "5s",
) -> int:
    """Give a workflow of several steps.

    A step runs when the steps it depends on have succeeded, and gets their outputs. With `delayMs` or `notBeforeMs`
    (milliseconds since 1970) it does not begin earlier, with `expiresMs` not later; both count from the submit.

    \b
    A workflow file:
      {"steps": [
        {"id": "fetch", "agent": "download", "input": "a.csv"},
        {"id": "count", "agent": "words", "dependsOn": ["fetch"], "onPartition": "wait"}
      ]}
    """
    answer = session.ask(
        "submit-workflow",
        definition=read_workflow(file),
        idempotencyKey=idempotency_key or secrets.token_hex(16),
        **replica_args(replicas, replicas_timeout),
    )
    return _after_submit(session, answer, wait=wait, replicas=replicas)


def _task(session: Session, task_id: TaskId) -> int:
    """Show one task with its steps."""
    _show_task(session, session.ask("task", taskId=task_id))
    return EXIT_OK


def _tasks(
    session: Session,
    status: Annotated[
        Status | None, typer.Option("--status", case_sensitive=False, help="Only tasks in this status.")
    ] = None,
    limit: Limit = 50,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Skip so many.")] = 0,
) -> int:
    """List tasks, newest first."""
    session.show(session.ask("tasks", status=status, limit=limit, offset=offset), columns=_TASK_COLUMNS)
    return EXIT_OK


def _workflow(
    session: Session,
    task_id: TaskId,
    watch: Annotated[bool, typer.Option("--watch", help="Renew the picture until the task ends.")] = False,
) -> int:
    """Draw the steps of a task and what they wait for.

    On a terminal by levels; where there are more steps than lines, each level is one line, and the steps that run or
    failed are below. With --watch the exit code is 0 only for SUCCESS; Ctrl-C leaves the task as it is.
    """
    if watch:
        return _watch_workflow(session, task_id)
    view = session.ask("workflow", taskId=task_id)
    if session.json or not sys.stdout.isatty():
        _show_task(session, view)
        return EXIT_OK
    from tools.workflow_watch import print_workflow  # draws with rich

    print_workflow(view)
    return EXIT_OK


def _watch_workflow(session: Session, task_id: str) -> int:
    from tools.workflow_watch import watch_workflow  # draws with rich

    try:
        task = watch_workflow(session, task_id)
    except KeyboardInterrupt:
        say(f"stopped watching; task {task_id} goes on: relaymesh workflow {task_id} --watch")
        raise
    if session.json:
        session.show(task)
    if task["status"] == "SUCCESS":
        return EXIT_OK
    _complain_about(task, task_id)
    return EXIT_NEGATIVE


def _result(session: Session, task_id: TaskId) -> int:
    """Print the result of a task that succeeded.

    Its bytes as they are; with --json an object.
    """
    answer = session.ask("result", taskId=task_id)
    succeeded = answer.get("status", "SUCCESS") == "SUCCESS"
    if session.json:
        session.show(answer)
    elif succeeded:
        sys.stdout.flush()
        sys.stdout.buffer.write(_result_bytes(answer))
        sys.stdout.buffer.flush()
    if succeeded:
        return EXIT_OK
    _complain_about(answer, task_id)
    return EXIT_NEGATIVE


def _wait(
    session: Session,
    task_id: TaskId,
    timeout: Annotated[str, typer.Option("--timeout", metavar="TIME", help="Give up after this long.")] = "30s",
) -> int:
    """Wait for the end of a task and print it.

    Exit 0 only for SUCCESS.
    """
    return _wait_and_show(session, task_id, parse_duration_ms(timeout, option="--timeout"))


def _cancel(
    session: Session,
    task_id: TaskId,
    mode: Annotated[
        Literal["hard", "soft"], typer.Option("--mode", help="hard stops running steps, soft lets them finish.")
    ] = "hard",
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Kept with the task.")] = None,
) -> int:
    """Cancel a task.

    Exit 0 when it is cancelled, 1 when that was only requested or came too late.
    """
    answer = session.ask("cancel", taskId=task_id, mode=mode, reason=reason)
    session.show(answer)
    return EXIT_OK if answer.get("cancelled") else EXIT_NEGATIVE


def _explain(
    session: Session, task_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a task, or of one step.")]
) -> int:
    """Say who ran a task or step, why twice, or not yet.

    Each step with all that keeps it from running, each of its runs and what became of it, and what decided where two
    results met. Times are those since the submit.
    """
    answer = session.ask("explain", taskId=task_id)
    if session.json:
        print_json(answer)
    else:
        print_explanation(answer)
    return EXIT_OK


def _logs(
    session: Session,
    task_id: TaskId,
    step: Annotated[str | None, typer.Option("--step", metavar="NAME", help="Only this step.")] = None,
    limit: Limit = 100,
) -> int:
    """Show what agents wrote while they ran a task."""
    entries = session.ask("logs", taskId=task_id, step=step, limit=limit)
    if session.json:
        print_json(entries)
    else:
        print_logs(entries)
    return EXIT_OK


_COMMANDS: dict[str, Command] = {
    "submit": _submit,
    "submit-workflow": _submit_workflow,
    "task": _task,
    "tasks": _tasks,
    "workflow": _workflow,
    "result": _result,
    "wait": _wait,
    "cancel": _cancel,
    "explain": _explain,
    "logs": _logs,
}


def _read_input(text: str | None, file: Path | None) -> bytes:
    if (text is None) == (file is None):
        raise ConfigError("give either --input TEXT or --input-file FILE (- reads standard input)")
    return text.encode() if text is not None else read_bounded("--input-file", file or Path())


def read_workflow(file: Path) -> dict[str, Any]:
    """The JSON object in a file, or on standard input for `-`. ConfigError when there is none."""
    try:
        definition = json.loads(read_bounded("--file", file))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--file {file}: is not JSON: {escape(str(error))}") from error
    if not isinstance(definition, dict):
        raise ConfigError(f'--file {file}: must hold one object, like {{"steps": [{{"id": "a", "agent": "echo"}}]}}')
    return definition


def read_bounded(option: str, file: Path) -> bytes:
    """The content of a file, or of standard input for `-`. ConfigError when it cannot be read or is too large."""
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
        else:
            with file.open("rb") as source:
                data = source.read(INPUT_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{option} {file}: cannot be read ({error.strerror or error})") from error
    if len(data) > INPUT_BYTES_MAX:
        raise ConfigError(f"{option} {file}: larger than {INPUT_BYTES_MAX} bytes, the most that one submit may hold")
    return data


def _parse_labels(texts: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise ConfigError(f"--label {text[:80]!r} is not KEY=VALUE")
        labels[key] = value
    return labels


def replica_args(replicas: int | None, timeout: str) -> dict[str, int]:
    """What --replicas and --replicas-timeout ask of a node."""
    timeout_ms = parse_duration_ms(timeout, option="--replicas-timeout")
    return {} if replicas is None else {"replicas": replicas, "replicasTimeoutMs": timeout_ms}


def _after_submit(session: Session, answer: dict[str, Any], *, wait: bool, replicas: int | None) -> int:
    if replicas is not None and not _replicas_met(answer.get("replicated"), replicas):
        session.show(answer)
        say(f"task {answer['taskId']} exists, but {replicas} replicas were not reached in time; do not submit it anew")
        return EXIT_NEGATIVE
    if wait:
        return _wait_and_show(session, answer["taskId"], DURATION_MS_MAX)
    session.show(answer)
    return EXIT_OK


def _replicas_met(replicated: Any, replicas: int) -> bool:
    return replicated if isinstance(replicated, bool) else isinstance(replicated, int) and replicated >= replicas


def _wait_and_show(session: Session, task_id: str, timeout_ms: int) -> int:
    task = _wait_for(session, task_id, timeout_ms)
    _show_task(session, task)
    if task["status"] == "SUCCESS":
        return EXIT_OK
    _complain_about(task, task_id)
    return EXIT_NEGATIVE


def _show_task(session: Session, answer: dict[str, Any]) -> None:
    if not session.json and "steps" in answer:
        steps = [{**step, "progress": format_progress(step.get("progress"))} for step in answer["steps"]]
        answer = {**answer, "steps": steps}
    session.show(answer, columns=_STEP_COLUMNS)


def _wait_for(session: Session, task_id: str, timeout_ms: int) -> dict[str, Any]:
    """The task at its end, or as it was when the time ran out."""
    started = time.monotonic()
    shown = False
    try:
        while True:
            waited_ms = int((time.monotonic() - started) * 1000)
            slice_ms = max(1, min(WAIT_SLICE_MS, timeout_ms - waited_ms))
            task: dict[str, Any] = session.ask("wait", taskId=task_id, timeoutMs=slice_ms)
            waited_ms = int((time.monotonic() - started) * 1000)
            if task["status"] in FINAL_STATUSES or waited_ms >= timeout_ms:
                return task
            shown = _show_progress(task, waited_ms)
    except KeyboardInterrupt:
        say(f"stopped waiting; task {task_id} goes on: relaymesh wait {task_id}")
        raise
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _show_progress(task: dict[str, Any], waited_ms: int) -> bool:
    if not sys.stderr.isatty():
        return False
    steps = task.get("steps") or []
    done = sum(step.get("status") == "SUCCESS" for step in steps)
    text = f"{task['status']}, {done} of {len(steps)} steps done, {format_duration(waited_ms)}"
    print(f"\r\x1b[K{escape(text)}", end="", file=sys.stderr, flush=True)
    return True


def _complain_about(task: dict[str, Any], task_id: str) -> None:
    status = task.get("status", "unknown")
    if status not in FINAL_STATUSES:
        say(f"task {task_id} is {status}: wait longer with `relaymesh wait {task_id} --timeout 5m`, or `explain` it")
    else:
        cause = f": {str(task['lastError'])[:512]}" if task.get("lastError") else ""
        say(f"task {task_id} ended {status}{cause}; see `relaymesh explain {task_id}`")


def _result_bytes(answer: dict[str, Any]) -> bytes:
    encoded = answer.get("resultPayloadBase64")
    return base64.b64decode(encoded) if encoded is not None else str(answer.get("resultPayload") or "").encode()


def say(text: str) -> None:
    """A line on standard error."""
    print(f"relaymesh: {escape(text)}", file=sys.stderr)

"""`submit-batch`: many tasks from a file of JSON lines, in one request."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from mesh.errors import ConfigError
from tools.output import escape
from tools.session import EXIT_NEGATIVE, EXIT_OK, Session, command
from tools.work_commands import ReplicasOption, ReplicasTimeoutOption, read_bounded, replica_args, say

TASKS_MAX = 1_000
TOLD_MAX = 20
"""Refusals that are told one by one."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(app, "submit-batch", panel="Work")(_submit_batch)


def _submit_batch(
    session: Session,
    file: Annotated[Path, typer.Option("--file", metavar="F", help="One JSON object a line; - is standard input.")],
    replicas: ReplicasOption = None,
    replicas_timeout: ReplicasTimeoutOption = "5s",
) -> int:
    """Give up to 1,000 tasks at once.

    They are stored in one commit. Each is judged by itself: what is wrong with one is told with its line, and the
    others are stored; exit 1 then. A line that is no JSON object refuses the whole file, exit 2. A line has the keys of
    a workflow's step, without `id` and `dependsOn`, or the `steps` of a workflow; and `idempotencyKey` where submitting
    it again is to give the same task.

    \b
    Lines:
      {"agent": "echo", "input": "hello", "priority": "low", "idempotencyKey": "a-1"}
      {"agent": "echo", "input": {"n": 2}, "delayMs": 60000, "expiresMs": 3600000}
      {"steps": [{"id": "a", "agent": "echo"}, {"id": "b", "agent": "echo", "dependsOn": ["a"]}]}
    """
    lines, tasks = _read_tasks(file)
    answer = session.ask("submit-batch", tasks=tasks, **replica_args(replicas, replicas_timeout))
    for result in answer["results"]:
        result["line"] = lines[result["index"]]
    refused = [result for result in answer["results"] if "error" in result]
    if session.json:
        session.show(answer)
    else:
        session.show({name: value for name, value in answer.items() if name != "results"})
    for result in refused[:TOLD_MAX]:
        say(f"{file} line {result['line']}: {result['error']['message']}")
    if len(refused) > TOLD_MAX:
        say(f"and {len(refused) - TOLD_MAX} more; --json lists all")
    replicated = answer["replicated"] >= (replicas or 0)
    return EXIT_OK if not refused and replicated else EXIT_NEGATIVE


def _read_tasks(file: Path) -> tuple[list[int], list[dict[str, Any]]]:
    """The objects of a file, and the line of each. ConfigError, with the line, when one is none; nothing is sent."""
    lines: list[int] = []
    tasks: list[dict[str, Any]] = []
    for number, line in enumerate(read_bounded("--file", file).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            task = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--file {file} line {number}: is not JSON: {escape(str(error))}") from error
        if not isinstance(task, dict):
            raise ConfigError(f'--file {file} line {number}: must be an object, like {{"agent": "echo"}}')
        # A key of its own, so that the request can be made again at another peer.
        if task.get("idempotencyKey") is None:
            task["idempotencyKey"] = secrets.token_hex(16)
        tasks.append(task)
        lines.append(number)
    if not tasks:
        raise ConfigError(f"--file {file}: holds no task; write one JSON object a line")
    if len(tasks) > TASKS_MAX:
        raise ConfigError(
            f"--file {file}: {len(tasks)} tasks, the limit is {TASKS_MAX}: split it (split -l {TASKS_MAX})"
        )
    return lines, tasks

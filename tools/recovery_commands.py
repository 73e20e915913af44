"""Commands for when work went wrong: run it again, look at dead letters, take a task or a report along."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mesh.errors import ConfigError
from tools.export_file import check_free, write_document
from tools.session import EXIT_NEGATIVE, EXIT_OK, Command, Session, command

DEAD_SCHEMA = "relaymesh.dead-letters.v1"
TASK_SCHEMA = "relaymesh.task-export.v1"
_PAGE_DEAD = 200

TaskId = Annotated[str, typer.Argument(metavar="ID", help="Task id, as submit printed it.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="Where it goes; must not exist.")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")]
AgentOption = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Only steps of this agent.")]
Cause = Literal["rejected", "timeout", "crashed", "attempts-exhausted", "lost-leases", "unknown"]
CauseOption = Annotated[Cause | None, typer.Option("--cause", help="Only dead letters of this class.")]

_DEAD_COLUMNS = ("taskId", "step", "agentId", "cause", "attempts", "diedAtMs", "lastError")
_EVENT_COLUMNS = ("occurredAtMs", "action", "nodeId", "taskId", "stepId", "details")
_REPORT_COLUMNS = (*_EVENT_COLUMNS, "events")
_BATCH_COLUMNS = ("taskId", "replayed", "steps", "message")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, (body, panel) in _COMMANDS.items():
        command(app, name, panel=panel)(body)


def _replay(
    session: Session,
    task_id: TaskId,
    step: Annotated[
        str | None, typer.Option("--step", metavar="NAME", help="Only this step, even one that succeeded.")
    ] = None,
    from_step: Annotated[
        str | None,
        typer.Option("--from-step", metavar="NAME", help="This step and all that depend on it, also what succeeded."),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All dead letters and cancelled steps. [default]")] = False,
) -> int:
    """Run steps of a task again.

    By default those that are dead letters or were cancelled. What runs again begins a new generation: late results of
    the earlier one are refused. Only steps that have ended can be replayed; the answer says which were left alone, and
    why. Exit 4, with nothing changed, when there is nothing to replay.

    \b
    Examples:
      relaymesh replay tsk_1f…
      relaymesh replay tsk_1f… --from-step fetch
    """
    if sum((step is not None, from_step is not None, failed)) > 1:
        raise ConfigError("give one of --step, --from-step and --failed")
    answer = session.ask("replay", taskId=task_id, step=step, fromStep=from_step)
    session.show(answer)
    return EXIT_OK if answer.get("replayed") else EXIT_NEGATIVE


def _replay_batch(
    session: Session,
    status: Annotated[
        Literal["DEAD_LETTER", "CANCELLED"],
        typer.Option("--status", case_sensitive=False, help="Tasks that ended so."),
    ] = "DEAD_LETTER",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000, help="At most so many tasks.")] = 100,
    agent: AgentOption = None,
    cause: CauseOption = None,
) -> int:
    """Replay many tasks that ended badly.

    Of each task all its dead letters and cancelled steps; with --agent or --cause only the steps that match. Those that
    ended last come first. Tasks are stored 25 at a time, and each is told of: `replayed`, or why not. `more` says that
    others match. Exit 1 when any could not be replayed.

    \b
    Example: relaymesh replay-batch --cause timeout --agent resize --limit 500
    """
    answer = session.ask("replay-batch", status=status, limit=limit, agent=agent, cause=cause)
    session.show(answer, columns=_BATCH_COLUMNS)
    return EXIT_NEGATIVE if answer["failed"] else EXIT_OK


def _dead(
    session: Session,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000, help="At most so many.")] = 50,
    agent: AgentOption = None,
    cause: CauseOption = None,
) -> int:
    """List dead letters with their causes.

    The latest first. The cause is the class of what ended the last attempt: `rejected` (not worth another try),
    `timeout`, `crashed` (its process died), `attempts-exhausted` (the handler failed), `lost-leases` (poison: nodes
    ended while they ran it), `unknown` (the history that would tell is gone). `byCause` counts those that are shown.

    \b
    Example: relaymesh dead --cause crashed
    """
    answer = session.ask("dead", limit=limit, agent=agent, cause=cause)
    shown = answer if session.json else {"dead": answer["dead"], "byCause": answer["byCause"]}
    session.show(shown, columns=_DEAD_COLUMNS)
    return EXIT_OK


def _dead_export(
    session: Session,
    out: Out,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="At most so many.")] = 1_000,
    agent: AgentOption = None,
    cause: CauseOption = None,
    force: Force = False,
) -> int:
    """Write dead letters into a file, with their inputs.

    JSON: {schema_version, exported_at, namespace, dead_letters: […]}, the latest first. An input that is no text is
    in `inputBase64`. The file may hold what is nobody else's business: it is readable by you alone.

    \b
    Example: relaymesh dead-export --out dead.json --limit 5000
    """
    check_free(out, force=force)
    counted: list[int] = [0]

    def letters() -> Iterator[dict[str, Any]]:
        before: Any = None
        while counted[0] < limit:
            page = session.ask(
                "dead",
                limit=min(_PAGE_DEAD, limit - counted[0]),
                agent=agent,
                cause=cause,
                withInput=True,
                before=before,
            )
            for letter in page["dead"]:
                counted[0] += 1
                yield _with_payload(session, letter, "input")
            before = page["next"]
            if before is None:
                return

    head = {"schema_version": DEAD_SCHEMA, "namespace": session.namespace, "exported_at": _now()}
    size = write_document(out, head, {"dead_letters": letters()}, force=force)
    session.show({"exported": counted[0], "bytes": size, "outputPath": str(out)})
    return EXIT_OK


def _task_export(session: Session, task_id: TaskId, out: Out, force: Force = False) -> int:
    """Write all that is known of a task into a file.

    JSON: {schema_version, exported_at, namespace, task, workflow: [steps with inputs and results], audit_events: […]}.
    A payload that is no text is in `inputBase64` or `resultBase64`; one that has not arrived at the asked node is
    marked `inputMissing` or `resultMissing`, and the exit code is 1. A task that goes on may change between steps.

    \b
    Example: relaymesh task-export tsk_1f… --out order-42.json
    """
    check_free(out, force=force)
    counts = {"steps": 0, "events": 0, "missing": 0}
    first = session.ask("task-export", taskId=task_id, part="steps", offset=0)

    def steps() -> Iterator[dict[str, Any]]:
        for step in _pages(session, task_id, "steps", first):
            counts["steps"] += 1
            whole = _with_payload(session, _with_payload(session, step, "input"), "result")
            counts["missing"] += bool(whole.get("inputMissing")) + bool(whole.get("resultMissing"))
            yield whole

    def events() -> Iterator[dict[str, Any]]:
        for event in _pages(session, task_id, "events", None):
            counts["events"] += 1
            yield event

    head = {
        "schema_version": TASK_SCHEMA,
        "exported_at": _now(),
        "namespace": session.namespace,
        "task": first["task"],
    }
    size = write_document(out, head, {"workflow": steps(), "audit_events": events()}, force=force)
    session.show(
        {
            "taskId": task_id,
            "exported": True,
            "stepCount": counts["steps"],
            "auditEvents": counts["events"],
            "payloadsMissing": counts["missing"],
            "bytes": size,
            "output": str(out),
        }
    )
    return EXIT_NEGATIVE if counts["missing"] else EXIT_OK


def _lease_report(
    session: Session,
    hours: Annotated[int, typer.Option("--hours", min=1, max=8_760, help="The last so many hours.")] = 24,
    limit: Annotated[int, typer.Option("--limit", min=1, max=50_000, help="At most so many events.")] = 5_000,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the report there. [default: print it]")
    ] = None,
    force: Force = False,
) -> int:
    """Report how leases moved, and what was lost.

    Counts by kind of event, the steps and nodes with the most, and the latest 50, from the history that the asked node
    holds: what attemptRetentionMs let go is not in it.

    \b
    Example: relaymesh lease-report --hours 168 --out leases.json
    """
    if out is not None:
        check_free(out, force=force)
    report = session.ask("lease-report", hours=hours, limit=limit)
    if out is None:
        session.show(report, columns=_REPORT_COLUMNS)
        return EXIT_OK
    write_document(out, report, {}, force=force)
    session.show({"generated": True, "path": str(out), "rows": report["rows"], "more": report["more"]})
    return EXIT_OK


_COMMANDS: dict[str, tuple[Command, str]] = {
    "replay": (_replay, "Work"),
    "replay-batch": (_replay_batch, "Work"),
    "dead": (_dead, "Work"),
    "dead-export": (_dead_export, "Work"),
    "task-export": (_task_export, "Work"),
    "lease-report": (_lease_report, "Mesh"),
}


def _pages(session: Session, task_id: str, part: str, first: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    page = first or session.ask("task-export", taskId=task_id, part=part, offset=0)
    while True:
        yield from page["items"]
        if page["next"] is None:
            return
        page = session.ask("task-export", taskId=task_id, part=part, offset=page["next"])


def _with_payload(session: Session, step: dict[str, Any], column: str) -> dict[str, Any]:
    """The step with a payload that was too large to come along with it."""
    if step.get(f"{column}Bytes") is None or any(name in step for name in (column, f"{column}Base64")):
        return step
    content = session.ask("step-payload", stepId=step["stepId"], column=column)["content"]
    if content is None:
        return step | {f"{column}Missing": True}
    try:
        return step | {column: content.decode()}
    except UnicodeDecodeError:
        return step | {f"{column}Base64": base64.b64encode(content).decode()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

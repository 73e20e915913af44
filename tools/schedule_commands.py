"""`relaymesh schedule`: work that the mesh submits by itself, at times given as cron expressions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mesh.errors import ConfigError
from tools.output import escape
from tools.session import EXIT_OK, Command, Session, command
from tools.work_commands import read_workflow

schedule_app = typer.Typer(
    name="schedule",
    help="Have work submitted by the clock.",
    no_args_is_help=False,
    rich_markup_mode=None,
)

ScheduleName = Annotated[str, typer.Argument(metavar="NAME", help="As `schedule list` shows it.", show_default=False)]

_COLUMNS = ("name", "state", "cron", "timeZone", "catchUp", "nextUtc", "submitter", "problem")


def _add(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for it, one in its namespace.")],
    cron: Annotated[
        str,
        typer.Option(
            "--cron", metavar="EXPR", help="Minute, hour, day of month, month, day of week; or @hourly, @daily …"
        ),
    ],
    time_zone: Annotated[str, typer.Option("--tz", metavar="ZONE", help="IANA time zone.")] = "UTC",
    catch_up: Annotated[
        Literal["latest", "skip", "all"],
        typer.Option("--catch-up", help="Of slots that nobody was up for: make up for the latest, none, or up to 100."),
    ] = "latest",
    agent: Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Agent that does the work.")] = None,
    input_text: Annotated[str | None, typer.Option("--input", metavar="TEXT", help="The agent's input.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="F", help="A workflow instead, as submit-workflow takes it.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Change a schedule of this name.")] = False,
) -> int:
    """Store a schedule.

    At each slot one member submits the work, under the idempotency key `schedule NAME SLOT`; on both sides of a cut it
    is the same task. Slots after this moment count, also after a change. A job of a fixed hour that the change to
    summer time would skip runs right after the gap, and one in the repeated hour of autumn runs once.

    \b
    Examples:
      relaymesh --root data schedule add nightly --cron '30 3 * * *' --tz Europe/Berlin --agent backup --input /srv
      relaymesh --root data schedule add report --cron '0 8 * * MON-FRI' --catch-up skip --file report.json
    """
    if (agent is None) == (file is None):
        raise ConfigError("give either --agent NAME with --input TEXT, or --file FILE with a workflow")
    if file is not None and input_text is not None:
        raise ConfigError("--input is for --agent: a workflow's inputs stand in its file")
    if agent is not None:
        definition: dict[str, Any] = {"steps": [{"id": agent, "agent": agent, "input": input_text or ""}]}
    else:
        definition = read_workflow(file or Path())
    answer = session.ask(
        "schedule-add",
        name=name,
        cron=cron,
        timeZone=time_zone,
        catchUp=catch_up,
        definition=definition,
        replace=replace or None,
    )
    session.show(answer)
    return EXIT_OK


def _list(session: Session) -> int:
    """List the schedules of the namespace.

    \b
    Example: relaymesh --root data schedule list
    """
    answer = session.ask("schedule-list")
    if session.json:
        session.show(answer)
        return EXIT_OK
    session.show(answer["schedules"], columns=_COLUMNS)
    if answer.get("held"):
        print("\nthe mesh is held: nothing is submitted")
    if answer.get("clockProblem"):
        print(f"\nclock of this node: {escape(answer['clockProblem'])}")
    return EXIT_OK


def _show(session: Session, name: ScheduleName) -> int:
    """Show a schedule, what it submits, and its latest slots.

    \b
    Example: relaymesh --root data schedule show nightly
    """
    session.show(session.ask("schedule-show", name=name))
    return EXIT_OK


def _remove(session: Session, name: ScheduleName) -> int:
    """Remove a schedule; its tasks stay.

    \b
    Example: relaymesh --root data schedule remove nightly
    """
    session.show(session.ask("schedule-remove", name=name))
    return EXIT_OK


def _pause(session: Session, name: ScheduleName) -> int:
    """Have nothing submitted until `schedule resume`.

    \b
    Example: relaymesh --root data schedule pause nightly
    """
    session.show(session.ask("schedule-pause", name=name))
    return EXIT_OK


def _resume(session: Session, name: ScheduleName) -> int:
    """End a pause. Its slots are not made up for.

    \b
    Example: relaymesh --root data schedule resume nightly
    """
    session.show(session.ask("schedule-resume", name=name))
    return EXIT_OK


def _next(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A stored schedule.", show_default=False)] = None,
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="EXPR", help="An expression instead; no node is asked.")
    ] = None,
    time_zone: Annotated[str | None, typer.Option("--tz", metavar="ZONE", help="Its time zone. [default: UTC]")] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=1_000, help="So many.")] = 5,
) -> int:
    """Print the next slots, in the zone of the schedule and in UTC.

    \b
    Examples:
      relaymesh --root data schedule next nightly
      relaymesh schedule next --cron '30 2 * * *' --tz Europe/Berlin --count 10
    """
    if (name is None) == (cron is None):
        raise ConfigError("give either the NAME of a schedule, or --cron EXPR")
    if cron is None:
        if time_zone is not None:
            raise ConfigError("--tz is for --cron: a stored schedule has its own")
        answer = session.ask("schedule-next", name=name, count=count)
    else:
        from node.work.cron import next_slots, parse_cron  # only here: most commands need no zones

        answer = next_slots(parse_cron(cron, "UTC" if time_zone is None else time_zone), int(time.time() * 1000), count)
    session.show(answer)
    return EXIT_OK


_COMMANDS: dict[str, Command] = {
    "add": _add,
    "list": _list,
    "show": _show,
    "remove": _remove,
    "pause": _pause,
    "resume": _resume,
    "next": _next,
}

for _command_name, _body in _COMMANDS.items():
    command(schedule_app, _command_name, panel="Commands")(_body)

"""Commands that let go: of old tasks, and of members that will not come back."""

from __future__ import annotations

from typing import Annotated

import typer

from tools.durations import parse_duration_ms
from tools.session import EXIT_OK, Command, Session, command

_DAY_MS = 24 * 3_600_000

Days = typer.Option(min=0, max=3_650, help="Keep so many days after the end; 0 deletes all that ended.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, body in _COMMANDS.items():
        command(app, name, panel="Mesh")(body)


def _purge(
    session: Session,
    done_retention_days: Annotated[int, Days] = 7,
    dead_retention_days: Annotated[int, Days] = 7,
    attempt_retention_days: Annotated[
        int | None,
        typer.Option(min=0, max=3_650, help="Keep the history of tasks so many days. [default: as long as the task]"),
    ] = None,
) -> int:
    """Delete tasks that ended long ago.

    Tasks of the namespace that succeeded or were cancelled, and dead letters, each with a time of its own. Their steps,
    history and payloads go once every member has seen the deletion. With --attempt-retention-days, what the history
    tells of failed attempts, moves and logs goes earlier than its task. Nodes do this by themselves, by the settings
    doneRetentionMs, deadRetentionMs and attemptRetentionMs; without options this deletes dead letters, too, after 7
    days, whatever those say. At most 1,000 rows go at once; `more` says that others are due.

    \b
    Examples:
      relaymesh purge --done-retention-days 1 --dead-retention-days 30
      relaymesh purge --attempt-retention-days 2
    """
    answer = session.ask(
        "purge",
        doneRetentionMs=done_retention_days * _DAY_MS,
        deadRetentionMs=dead_retention_days * _DAY_MS,
        attemptRetentionMs=None if attempt_retention_days is None else attempt_retention_days * _DAY_MS,
    )
    session.show(answer)
    return EXIT_OK


def _mesh_prune(
    session: Session,
    node: Annotated[str | None, typer.Option("--node", metavar="ID", help="This one, however long it is gone.")] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="TIME", help="Gone for so long. [default: setting]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, max=100_000, help="At most so many. [default: setting]")
    ] = None,
) -> int:
    """Forget members that are DEAD or LEFT for good.

    For a member that counts, every deleted row is remembered and its address is called for ever. The asked node stops
    that, and tells others nothing: ask each, or wait for their setting meshPruneOlderThanMs. A host that comes back
    after all is a member again, and copies everything anew.

    \b
    Examples:
      relaymesh mesh-prune --node edge-7
      relaymesh mesh-prune --older-than 30d
    """
    older_than_ms = None if older_than is None else parse_duration_ms(older_than, option="--older-than")
    session.show(session.ask("mesh-prune", nodeId=node, olderThanMs=older_than_ms, limit=limit))
    return EXIT_OK


_COMMANDS: dict[str, Command] = {"purge": _purge, "mesh-prune": _mesh_prune}

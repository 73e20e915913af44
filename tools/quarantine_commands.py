"""`relaymesh quarantine`: what the asked node has seen and put aside, and what to do about it."""

from __future__ import annotations

from typing import Annotated

import typer

from mesh.errors import ConfigError
from tools.session import EXIT_NEGATIVE, EXIT_OK, Command, Session, command

quarantine_app = typer.Typer(
    name="quarantine",
    help="Look at rows that were put aside.",
    no_args_is_help=False,
    rich_markup_mode=None,
)

EntryName = Annotated[str, typer.Argument(metavar="ID", help="As `quarantine list` shows it.", show_default=False)]

_COLUMNS = ("id", "reason", "table", "origin", "ageMs", "key")


def _list(
    session: Session,
    reason: Annotated[
        str | None,
        typer.Option(
            "--reason",
            metavar="REASON",
            help="Only these: immutable-conflict, future-stamp, poison, rejected or unknown-table.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=5_000, help="At most so many.")] = 100,
) -> int:
    """List the rows that were put aside, newest first, and keys that two tasks claim.

    A future stamp is applied when its time has come, an unknown table after the upgrade; the others wait for people.

    \b
    Example: relaymesh --root data quarantine list --reason poison
    """
    answer = session.ask("quarantine-list", reason=reason, limit=limit)
    if session.json:
        session.show(answer)
        return EXIT_OK
    session.show(answer["rows"], columns=_COLUMNS)
    if answer["keyConflicts"]:
        print("\nkeys that more than one task claims; `relaymesh explain TASK` tells more:")
        session.show(answer["keyConflicts"])
    return EXIT_OK


def _show(session: Session, entry: EntryName) -> int:
    """Show one row that was put aside, whole.

    \b
    Example: relaymesh --root data quarantine show node-b/00000000000000c7/12
    """
    session.show(session.ask("quarantine-show", id=entry))
    return EXIT_OK


def _retry(session: Session, entry: EntryName) -> int:
    """Judge one row again.

    It is applied, or found to be beaten by a newer one, or stays with the reason that holds now: then exit 1.

    \b
    Example: relaymesh --root data quarantine retry node-b/00000000000000c7/12
    """
    answer = session.ask("quarantine-retry", id=entry)
    session.show(answer)
    return EXIT_NEGATIVE if answer["stays"] else EXIT_OK


def _drop(
    session: Session,
    entry: EntryName,
    yes: Annotated[bool, typer.Option("--yes", help="Really: what it says is lost at this node.")] = False,
) -> int:
    """Give one row up for good, at the asked node.

    No pull brings it again. Look at it first: `quarantine show` is the last copy that this node has.

    \b
    Example: relaymesh --root data quarantine drop node-b/00000000000000c7/12 --yes
    """
    if not yes:
        raise ConfigError(f"dropping {entry} cannot be undone: look at it with `quarantine show`, then add --yes")
    session.show(session.ask("quarantine-drop", id=entry))
    return EXIT_OK


_COMMANDS: dict[str, Command] = {"list": _list, "show": _show, "retry": _retry, "drop": _drop}

for _name, _body in _COMMANDS.items():
    command(quarantine_app, _name, panel="Commands")(_body)

"""Commands about the schema of the database under `--root`: files of this host, no node is asked."""

from __future__ import annotations

from typing import Annotated

import typer

from tools.session import EXIT_OK, Command, Session, command


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, body in _COMMANDS.items():
        command(app, name, panel="Mesh")(body)


def _migrations(session: Session) -> int:
    """List the migrations that a database ran.

    \b
    Example: relaymesh --root data schema-migrations
    """
    from node.storage import schema_by_hand  # loads SQLite

    session.show(
        [
            {
                "version": each.version,
                "description": each.description,
                "appliedAtMs": each.applied_at_ms,
                "success": each.success,
                "checksum": each.checksum,
            }
            for each in schema_by_hand.applied(session.root_of_host())
        ]
    )
    return EXIT_OK


def _rollback(
    session: Session,
    version: Annotated[int, typer.Option("--version", min=1, metavar="N", help="The last migration to keep.")],
) -> int:
    """Take a database back to an older schema.

    The node must be stopped. A copy of the database as it was is left beside it. Install the older release before the
    next start: this one would migrate up again.

    \b
    Example: relaymesh --root data schema-rollback --version 2
    """
    from node.storage import schema_by_hand  # loads SQLite
    from node.work.tables import WORK_TABLES

    done = schema_by_hand.roll_back(session.root_of_host(), version, WORK_TABLES)
    session.show({"previousVersion": done.before, "version": done.after, "backup": str(done.backup)})
    return EXIT_OK


_COMMANDS: dict[str, Command] = {"schema-migrations": _migrations, "schema-rollback": _rollback}

"""Commands about the settings of a running node."""

from __future__ import annotations

from typing import Annotated

import typer

from tools.session import EXIT_OK, Command, Session, command

_HISTORY_COLUMNS = ("reloadedAtMs", "result", "source", "changedFields", "message")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, body in _COMMANDS.items():
        command(app, name, panel="Mesh")(body)


def _reload_settings(session: Session) -> int:
    """Have the node read its settings again.

    From relaymesh-settings.json under its root, and the RELAYMESH_ variables that it was started with. A node also does
    so on SIGHUP, and within 10 s of a change of the file. A file that cannot be used is refused whole: exit 2, and the
    old settings stay. `changedFields` are those that differ from the last time, `needsRestart` those of which the node
    still goes by the old value; `settings` are the values in force.

    \b
    Example: relaymesh --root data reload-settings
    """
    session.show(session.ask("reload-settings"))
    return EXIT_OK


def _settings_history(
    session: Session,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="At most so many.")] = 20,
) -> int:
    """List when settings were reloaded, the last first.

    Names of settings only, never values, as the asked node alone knows them: its last 100 reloads that changed or
    refused something.
    """
    history = session.ask("settings-history", limit=limit)
    if not session.json:
        history = [{"reloadedAtMs": reload["timestamp"], **reload} for reload in history]
    session.show(history, columns=_HISTORY_COLUMNS)
    return EXIT_OK


_COMMANDS: dict[str, Command] = {"reload-settings": _reload_settings, "settings-history": _settings_history}

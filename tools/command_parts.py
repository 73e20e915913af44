"""Commands that come in parts: the module of a command is imported when that command is used, and not before.

Typer makes a parser for every command that it knows, and each module brings in its own libraries. A command line that
asks for one answer would pay for fifty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


@dataclass(slots=True)
class Part:
    """Some commands and sub-apps: what they are called, and how to get them."""

    register: Callable[[typer.Typer], None]
    """Adds them to an app. Called once a process, when one of them is used or all are listed."""
    names: tuple[str, ...]
    """What it registers. A name that is missing here works, and is only slower to find."""
    _app: typer.Typer | None = field(default=None, init=False)

    def commands(self, only: str | None = None) -> dict[str, Any]:
        """What it registers by name, ready for parsing; or that one alone, if it is there."""
        if self._app is None:
            self._app = typer.Typer(rich_markup_mode=None)
            self.register(self._app)
        wanted = typer.Typer(rich_markup_mode=None)
        wanted.registered_commands = [info for info in self._app.registered_commands if only in (None, info.name)]
        wanted.registered_groups = [info for info in self._app.registered_groups if only in (None, info.name)]
        return dict(typer.main.get_group(wanted).commands)


def module_part(module: str, *names: str) -> Part:
    """The part that `register(app)` of this module of `tools` adds."""

    def register(app: typer.Typer) -> None:
        import_module(f"tools.{module}").register(app)

    return Part(register, names)


class GroupOfParts(TyperGroup):
    """A group with the commands of `parts`, and those that its app registered itself, which come first."""

    parts: ClassVar[Sequence[Part]] = ()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; None when there is none."""
        if cmd_name not in self.commands:
            for part in self.parts:
                if cmd_name in part.names:
                    self.commands.update(part.commands(cmd_name))
        if cmd_name not in self.commands:
            self._find_all()  # a mistake, which the message about it answers with names that are alike
        return self.commands.get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of registration."""
        self._find_all()
        return list(self.commands)

    def _find_all(self) -> None:
        for part in self.parts:
            self.commands.update(part.commands())

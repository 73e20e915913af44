"""Commands about the node's settings: take them in again, and tell when that was done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from node.admin.arguments import Arguments
from node.settings_reload import HISTORY_MAX, SettingsReload


class SettingsCommands:
    """The commands, on one node."""

    def __init__(self, reload: SettingsReload) -> None:
        self._reload = reload

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {"reload-settings": self._reload_settings, "settings-history": self._settings_history}

    async def _reload_settings(self, args: Arguments) -> dict[str, Any]:
        return await self._reload.reload("verb")

    async def _settings_history(self, args: Arguments) -> list[dict[str, Any]]:
        return await self._reload.history(args.whole("limit", 20, smallest=1, largest=HISTORY_MAX))

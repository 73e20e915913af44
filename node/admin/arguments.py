"""The arguments of one admin request, read with their types and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.errors import ConfigError
from node.env import PeerIdentity


class Arguments:
    """Named values of one request. Each reader raises ConfigError that names the argument and what it wants."""

    def __init__(self, command: str, namespace: str, values: Mapping[str, Any], peer: PeerIdentity) -> None:
        self.command = command
        self.namespace = namespace
        self.peer = peer
        self._values = values

    def text(self, name: str, default: str | None = None, *, chars_max: int = 256) -> str:
        """A text; required when there is no default."""
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not 0 < len(value) <= chars_max:
            raise self._wrong(name, f"a text of 1 to {chars_max} characters")
        return value

    def optional_text(self, name: str, *, chars_max: int = 256) -> str | None:
        """A text, or None when it was not given."""
        return None if self._values.get(name) is None else self.text(name, chars_max=chars_max)

    def whole(self, name: str, default: int, *, smallest: int = 0, largest: int) -> int:
        """A whole number within bounds."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
            raise self._wrong(name, f"a whole number from {smallest} to {largest}")
        return value

    def one_of(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        value = self._values.get(name)
        if value is None:
            return default
        if value not in allowed:
            raise self._wrong(name, f"one of {', '.join(allowed)}")
        return str(value)

    def payload(self, name: str) -> bytes:
        """Bytes; a text counts as its UTF-8."""
        value = self._values.get(name, b"")
        if isinstance(value, str):
            return value.encode()
        if not isinstance(value, bytes):
            raise self._wrong(name, "bytes or text")
        return value

    def raw(self, name: str) -> Any:
        """The value as it came."""
        return self._values.get(name)

    def _wrong(self, name: str, wanted: str) -> ConfigError:
        return ConfigError(f"{self.command}: {name} must be {wanted}")

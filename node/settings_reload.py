"""Settings that change while a node runs: read again, checked whole, and taken into use as far as that can be.

When: at once on the command `reload-settings` and on SIGHUP, and within WATCH_EVERY_S of a change of the file, which is
looked for by one `stat`. The standard library has no inotify, and a look every ten seconds costs a thousandth of what
gossip does in that time. A bad file changes nothing: the settings of before stay, all of them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from mesh.errors import ConfigError, RelayMeshError
from node.node import Node
from node.settings import WITHOUT_EFFECT, changed_keys, read_settings_file, settings_from, with_keys_of
from node.storage.transaction import Transaction

log = logging.getLogger(__name__)

WATCH_EVERY_S = 10.0
HISTORY_META = "settings.history"
HISTORY_MAX = 100
"""Reloads remembered by this node, beside its other local facts; its peers never hear of them."""

LIVE = frozenset(
    {
        "maxAttempts",
        "baseBackoffMs",
        "maxBackoffMs",
        "gossipFanout",
        "gossipPacketTtl",
        "meshPruneOlderThanMs",
        "meshPruneLimit",
        "meshPruneIntervalMs",
        "doneRetentionMs",
        "deadRetentionMs",
        "attemptRetentionMs",
        "retentionIntervalMs",
        "bootstrapRowsMin",
        "diskBudgetBytes",
        "minFreeDiskBytes",
        "maxIngressQueueDepth",
        "submitRateLimitPerMin",
        "payloadMaxBytes",
        "submitMaxBytes",
        "stepsPerTaskMax",
    }
)
"""What a running node can take into use. Of the keys that are checked against each other, both are here or neither."""


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A settings file as it was at one moment."""

    content: bytes | None
    """None: there is none."""
    changed_ms: int | None = None
    """When it was last written, in milliseconds since 1970 by the host's clock, where that is known."""


class SettingsReload:
    """Reads the settings of one node again. One reload at a time."""

    def __init__(
        self,
        node: Node,
        *,
        source_path: str,
        read: Callable[[], Awaitable[SettingsFile]],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`environ` overrides the file, as at the start. `read` raises ConfigError when the file cannot be read."""
        self._node = node
        self.source_path = source_path
        self._read = read
        self._environ = environ
        self._turn = trio.Lock()
        self._in_file = node.spec.settings
        """What the last good file said; the node may still go by older values of some."""

    @classmethod
    def of_file(cls, node: Node, path: Path, environ: Mapping[str, str]) -> SettingsReload:
        """For a real file."""
        read = partial(trio.to_thread.run_sync, partial(_read, path))
        return cls(node, source_path=str(path), read=read, environ=environ)

    async def reload(self, source: str) -> dict[str, Any]:
        """Take the file's settings into use. ConfigError, with nothing changed, when they cannot be used.

        `source` says who asked: `verb`, `signal` or `file`.
        """
        async with self._turn:
            try:
                file = await self._read()
                settings = settings_from(file.content, self.source_path, self._environ)
            except ConfigError as error:
                await self._remember(source, None, [], f"refused, the old settings stay: {error}")
                raise ConfigError(
                    f"{error}{'' if str(error).endswith('?') else '.'} The old settings stay in force"
                ) from None
            changed = changed_keys(self._in_file, settings)
            self._in_file = settings
            in_force = with_keys_of(self._node.spec.settings, settings, [*LIVE, *WITHOUT_EFFECT])
            if in_force != self._node.spec.settings:
                self._node.take_settings(in_force)
            waits = changed_keys(in_force, settings)
            message = _message(changed, waits)
            if changed:
                log.info("settings reloaded (%s): %s: %s", source, ", ".join(changed), message)
                await self._remember(source, file.changed_ms, changed, message)
            return {
                "changed": bool(changed),
                "changedFields": changed,
                "needsRestart": waits,
                "withoutEffect": [key for key in changed if key in WITHOUT_EFFECT],
                "configExists": file.content is not None,
                "sourcePath": self.source_path,
                "settings": msgspec.to_builtins(in_force),
                "message": message,
                "checkedAtMs": self._now_ms(),
            }

    async def reload_quietly(self, source: str) -> None:
        """The same, where nobody waits for an answer: what is wrong is logged."""
        try:
            await self.reload(source)
        except ConfigError as error:
            log.error("settings not reloaded (%s): %s", source, error)

    async def watch(self, path: Path) -> None:
        """Reload whenever the file has changed, until cancelled. A bad file is told of once."""
        seen: object = None
        while True:
            await self._node.env.clock.sleep(WATCH_EVERY_S)
            stamp = await trio.to_thread.run_sync(_stamp, path)
            if stamp != seen:
                seen = stamp
                await self.reload_quietly("file")

    async def history(self, limit: int) -> list[dict[str, Any]]:
        """The latest reloads of this node that changed or refused something, the last one first."""
        stored = await self._node.store.read(lambda reader: reader.meta_get(HISTORY_META))
        return _entries(stored)[::-1][:limit]

    async def _remember(self, source: str, changed_ms: int | None, changed: list[str], message: str) -> None:
        entry = {
            "timestamp": self._now_ms(),
            "result": "applied" if changed else "refused",
            "changed": bool(changed),
            "changedCount": len(changed),
            "changedFields": changed,  # names alone: a value may be a secret one day
            "configMtimeMs": changed_ms,
            "source": source,
            "configPath": self.source_path,
            "message": message,
        }
        try:
            await self._node.store.write(partial(_append, entry=entry))
        except RelayMeshError as error:
            log.warning("cannot note that settings were reloaded: %s", error)

    def _now_ms(self) -> int:
        return int(self._node.env.clock.wall() * 1000)


def _message(changed: list[str], waits: list[str]) -> str:
    if not changed:
        text = "nothing has changed in the file since it was last read"
    else:
        now = len([key for key in changed if key in LIVE])
        text = f"{now} of {len(changed)} changed setting(s) took effect at once"
    return f"{text}; restart the node for {', '.join(waits)}" if waits else text


def _append(tx: Transaction, *, entry: dict[str, Any]) -> None:
    entries = [*_entries(tx.meta_get(HISTORY_META)), entry][-HISTORY_MAX:]
    tx.meta_set(HISTORY_META, json.dumps(entries, separators=(",", ":")).encode())


def _entries(stored: bytes | None) -> list[dict[str, Any]]:
    return list(json.loads(stored)) if stored else []


def _read(path: Path) -> SettingsFile:
    content = read_settings_file(path)
    stamp = _stamp(path)
    return SettingsFile(content, None if stamp is None else stamp[0] // 1_000_000)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

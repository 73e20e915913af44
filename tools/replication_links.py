"""The two ways on which rows travel without gossip: streams that only this host can open, and folders of envelopes.

Everything is an export and an import of the admin interface. A link keeps one cursor, a version vector out of the
envelopes that it carried. It may claim too much, when a node has lost its disk or a file its way; so the importing node
judges (`vectorJoined`), and a stream that it finds short begins again from nothing; a folder hears of nobody's verdict,
and people begin it again. Merging again changes nothing.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from mesh.errors import ConfigError, LimitError, RecordError, UnavailableError
from mesh.version_vector import VersionVector
from node import durable_files
from node.admin_client import AdminClient
from node.replication.envelope import ENVELOPE_BYTES_MAX

T = TypeVar("T")

ENVELOPES_MAX = 100
"""Carried for one peer, one way, in one tick: after so many the next peer has its turn."""
OUTBOX_BYTES_MAX = 256 << 20
"""Beyond it nothing more is written until somebody has carried files away."""
ERRORS_MAX = 16
ERROR_CHARS_MAX = 300

_ENVELOPE_NAME = re.compile(r"([0-9a-f]{16})-[0-9]{12}\.envelope")


class Link(msgspec.Struct, forbid_unknown_fields=True):
    """What is remembered of one peer."""

    cursor: bytes = b""
    """By stream: what both sides have. By folder: what the envelopes in its outbox bring, together. Empty: nothing."""
    series: str = ""
    """Begins the names of our envelopes in its outbox, so that those of several senders do not meet."""
    number: int = 0
    """The last of our envelopes in its outbox."""


class Tick(msgspec.Struct, rename="camel"):
    """What one round over all peers came to."""

    tick_at_ms: int
    peers: int
    state_file: str
    pulls: int = 0
    """Envelopes that were imported into the asked node."""
    pushes: int = 0
    """Envelopes that left it."""
    pulled_rows: int = 0
    pushed_rows: int = 0
    waiting: int = 0
    """Files in inboxes that were merged, but build upon an earlier one that never came."""
    complete: bool = True
    """Whether nothing was left for the next round."""
    failures: int = 0
    errors: list[dict[str, str]] = []
    """The first of the failures."""

    def view(self) -> dict[str, Any]:
        """For people and programs."""
        view: dict[str, Any] = msgspec.to_builtins(self)
        return view

    def fail(self, peer: str, error: Exception) -> None:
        """Note that something did not work."""
        self.failures += 1
        self.complete = False
        if len(self.errors) < ERRORS_MAX:
            self.errors.append({"peer": peer, "error": str(error)[:ERROR_CHARS_MAX]})


class Ask(Protocol):
    """One admin command to one node. Raises the classes of `mesh.errors`."""

    def __call__(self, command: str, **args: Any) -> Any:
        """The node's answer."""
        ...


class Way(Protocol):
    """How rows reach a peer and come from it. Raises the classes of `mesh.errors`; what arrived before stays."""

    name: str

    def pull(self, here: Ask, link: Link, tick: Tick, save: Callable[[], None], *, limit: int) -> None:
        """Import into the asked node what the peer has. `save` keeps the link, whenever that is due."""
        ...

    def push(self, here: Ask, link: Link, tick: Tick, save: Callable[[], None], *, limit: int) -> None:
        """The other way."""
        ...

    def close(self) -> None:
        """Hold nothing open until the next round."""
        ...


class StreamWay:
    """A node that this host can reach at its stream address."""

    def __init__(self, name: str, client: AdminClient) -> None:
        self.name = name
        self._client = client

    def _there(self, command: str, **args: Any) -> Any:
        return self._client.call(command, args)

    def pull(self, here: Ask, link: Link, tick: Tick, save: Callable[[], None], *, limit: int) -> None:
        """See `Way`."""
        for rows in carry(self._there, here, link, tick, save, limit=limit):
            tick.pulls += 1
            tick.pulled_rows += rows

    def push(self, here: Ask, link: Link, tick: Tick, save: Callable[[], None], *, limit: int) -> None:
        """See `Way`."""
        for rows in carry(here, self._there, link, tick, save, limit=limit):
            tick.pushes += 1
            tick.pushed_rows += rows

    def close(self) -> None:
        """See `Way`."""
        self._client.close()


def carry(source: Ask, target: Ask, link: Link, tick: Tick, save: Callable[[], None], *, limit: int) -> Iterator[int]:
    """Envelopes from one node to another until there is nothing more; gives the rows of each that arrived."""
    for _ in range(ENVELOPES_MAX):
        sent = _export(source, link.cursor, limit)
        before = link.cursor
        if _import(target, sent.envelope).vector_joined:
            link.cursor = _joined(before, sent.envelope)
        elif before:
            link.cursor = b""  # the target lacks what it had: its disk was lost, or is another one
        else:
            raise UnavailableError("an envelope that builds upon nothing was not taken whole")
        if link.cursor != before:
            save()
        yield sent.rows
        if sent.complete and link.cursor:
            return
    tick.complete = False


class FolderWay:
    """A folder at which somebody calls who takes the files of `outbox` away and brings others into `inbox`.

    Either may be missing, for a way of one direction; both are made by people, so that a medium which is not there is
    never taken for an empty one. A file is deleted once nothing in it is news.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._inbox, self._outbox = folder / "inbox", folder / "outbox"
        self._merged: set[str] = set()
        """Files of the inbox that are merged and wait for an earlier one."""

    def pull(self, here: Ask, link: Link, tick: Tick, save: Callable[[], None], *, limit: int) -> None:
        """Import what is in the inbox, by series and number."""
        if not (self._inbox.is_dir() or self._outbox.is_dir()):
            raise UnavailableError(
                f"there is no folder {self._inbox} or {self._outbox}: bring the medium, or make the folders"
            )
        names = _envelopes(self._inbox)
        self._merged.intersection_update(names)
        short: set[str] = set()
        began_with = tick.pulls
        for name in names:
            series = name.partition("-")[0]
            if series in short and name in self._merged:
                continue  # it builds upon one that is short itself
            if tick.pulls - began_with >= ENVELOPES_MAX:
                tick.complete = False
                break
            try:
                if not self._import(here, name, tick):
                    short.add(series)
            except (ConfigError, LimitError, OSError) as error:
                # Perhaps it is still being copied. Those behind it may do without it.
                tick.fail(self.name, ConfigError(f"{self._inbox / name}: {error}"))
        tick.waiting += len(self._merged)

    def _import(self, here: Ask, name: str, tick: Tick) -> bool:
        file = self._inbox / name
        taken = _import(here, read_envelope(file))
        tick.pulls += 1
        tick.pulled_rows += taken.rows
        if taken.vector_joined:
            self._merged.discard(name)
            file.unlink()
        else:
            self._merged.add(name)
        return taken.vector_joined

    def push(self, here: Ask, link: Link, tick: Tick, save: Callable[[], None], *, limit: int) -> None:
        """Write what came since the last envelope into the outbox.

        A crash between file and state makes the next one of the same name, which brings at least the same.
        """
        if not self._outbox.is_dir():
            return
        link.series = link.series or secrets.token_hex(8)
        for _ in range(ENVELOPES_MAX):
            self._assert_room()
            sent = _export(here, link.cursor, limit)
            cursor = _joined(link.cursor, sent.envelope)
            if cursor == link.cursor:
                return
            file = self._outbox / f"{link.series}-{link.number + 1:012d}.envelope"
            try:
                durable_files.replace(file, sent.envelope)
            except OSError as error:
                raise UnavailableError(f"cannot write {file}: {error.strerror}") from None
            link.number, link.cursor = link.number + 1, cursor
            save()
            tick.pushes += 1
            tick.pushed_rows += sent.rows
            if sent.complete:
                return
        tick.complete = False

    def _assert_room(self) -> None:
        used = sum((self._outbox / name).stat().st_size for name in _envelopes(self._outbox))
        if used + ENVELOPE_BYTES_MAX > OUTBOX_BYTES_MAX:
            raise LimitError(
                f"{self._outbox} holds {used} bytes and takes {OUTBOX_BYTES_MAX}: carry its files away; nothing is "
                "lost, what came since goes into the next"
            )

    def close(self) -> None:
        """See `Way`."""


def read_envelope(path: Path) -> bytes:
    """The content of a file that may be an envelope. ConfigError when it cannot be read, or is too large for one."""
    try:
        with path.open("rb") as file:
            data = file.read(ENVELOPE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > ENVELOPE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than any envelope ({ENVELOPE_BYTES_MAX} bytes): is it the right file?")
    return data


def cursor_of(envelope: bytes) -> bytes:
    """The cursor of an envelope, unchecked; whatever else is in it is skipped. ConfigError when it is none."""
    try:
        return _cursor_decoder.decode(envelope).cursor
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"this is no replication envelope ({error})") from None


class _Cursor(msgspec.Struct):
    cursor: bytes


class _Exported(msgspec.Struct):
    rows: int
    complete: bool
    envelope: bytes


class _Imported(msgspec.Struct, rename="camel"):
    rows: int
    vector_joined: bool


_cursor_decoder = msgspec.json.Decoder(_Cursor)


def _export(source: Ask, cursor: bytes, limit: int) -> _Exported:
    since = {"since": cursor} if cursor else {}
    return _converted(source("replication-export", limit=limit, **since), _Exported)


def _import(target: Ask, envelope: bytes) -> _Imported:
    return _converted(target("replication-import", envelope=envelope), _Imported)


def _converted(answer: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise UnavailableError(f"a node answered what this release does not understand ({error})") from None


def _joined(cursor: bytes, envelope: bytes) -> bytes:
    try:
        both = VersionVector.from_wire(cursor) if cursor else VersionVector()
        both.join(VersionVector.from_wire(cursor_of(envelope)))
    except RecordError as error:
        raise UnavailableError(f"an envelope with a cursor that does not hold ({error})") from None
    return both.to_wire()


def _envelopes(folder: Path) -> list[str]:
    """The envelopes in a folder by name, hence by number. What else is there is somebody else's, links included."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if _ENVELOPE_NAME.fullmatch(e.name) and e.is_file(follow_symlinks=False))

"""`relaymesh replication-controller`: carries rows in rounds, until it is stopped, over links on which no mesh runs.

One peer that fails keeps nobody else waiting for longer than a connection takes to fail. What is remembered lies in one
small file that is replaced whole after each envelope: a controller that is killed, or whose file is lost, repeats
envelopes, which changes nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import msgspec

from mesh.errors import ConfigError, RecordError, RelayMeshError, StoreError, UnavailableError
from mesh.ids import parse_address
from mesh.version_vector import VersionVector
from node import durable_files
from node.admin_client import AdminClient
from tools.connection import PEERS_MAX, ConnectionChoice
from tools.output import escape
from tools.progress import Progress
from tools.replication_links import Ask, FolderWay, Link, StreamWay, Tick, Way

FOLDER_PREFIX = "dir:"
STATE_BYTES_MAX = 64 << 20
PEERS_REMEMBERED_MAX = 1_000


class _State(msgspec.Struct, forbid_unknown_fields=True):
    peers: Annotated[dict[str, Link], msgspec.Meta(max_length=PEERS_REMEMBERED_MAX)]
    updated_at_ms: int
    schema_version: Literal["relaymesh.replication.controller.v2"] = "relaymesh.replication.controller.v2"


class StateFile:
    """What is remembered of every peer. Use it in one process at a time: `locked`."""

    def __init__(self, path: Path) -> None:
        """Read it. ConfigError when it is no such file: nobody's file is overwritten, and no cursor guessed."""
        self.path = path
        self._state = _State(peers={}, updated_at_ms=0)
        try:
            with path.open("rb") as file:
                data = file.read(STATE_BYTES_MAX)
            self._state = msgspec.json.decode(data, type=_State)
            for link in self._state.peers.values():
                if link.cursor:
                    VersionVector.from_wire(link.cursor)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}; give another --state-file") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, RecordError) as error:
            raise ConfigError(
                f"{path} is no state of a replication-controller, or damaged ({error}): move it away, and everything "
                "is carried once more, which changes nothing that has arrived"
            ) from None

    def link(self, peer: str) -> Link:
        """What is remembered of this peer; change it, and `save`."""
        links = self._state.peers
        if peer not in links and len(links) >= PEERS_REMEMBERED_MAX:
            del links[next(iter(links))]  # the one that was named first; its next round begins from nothing
        return links.setdefault(peer, Link())

    def save(self) -> None:
        """Replace the file. StoreError; nothing is lost, a later process would repeat envelopes."""
        self._state.updated_at_ms = int(time.time() * 1000)
        try:
            durable_files.replace(self.path, msgspec.json.encode(self._state))
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror}") from None


@contextmanager
def locked(state_file: Path) -> Iterator[None]:
    """Keep other controllers away from a state. ConfigError when one has it, or its folder cannot be used."""
    try:
        state_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(f"{state_file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot use {state_file}: {error.strerror}; give another --state-file") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(
            f"another replication-controller runs with {state_file}: stop it, or give this one its own --state-file"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def read_peers(text: str | None, file: Path | None) -> list[str]:
    """The peers of `--peers` and `--peers-file`, each `HOST:PORT` or `dir:PATH`. ConfigError."""
    peers = [] if text is None else text.split(",")
    if file is not None:
        try:
            lines = file.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read --peers-file {file}: {error}") from None
        peers += [line.partition("#")[0] for line in lines]
    names = list(dict.fromkeys(peer.strip() for peer in peers if peer.strip()))
    if not 0 < len(names) <= PEERS_MAX:
        raise ConfigError(
            f"give 1 to {PEERS_MAX} peers, HOST:PORT or dir:PATH: with commas in --peers, or one a line in --peers-file"
        )
    return names


def ways_to(peers: Sequence[str], choice: ConnectionChoice) -> list[Way]:
    """How each peer is reached, with the identity of `choice`. ConfigError when one cannot be used."""
    ways: list[Way] = []
    for peer in peers:
        if peer.startswith(FOLDER_PREFIX):
            ways.append(FolderWay(peer, Path(peer.removeprefix(FOLDER_PREFIX))))
            continue
        address = parse_address(peer)
        asked = ConnectionChoice(root=choice.root, peer=str(address), identity=choice.identity)
        (target,) = asked.targets(os.environ)
        ways.append(StreamWay(peer, AdminClient(target)))
    return ways


class Controller:
    """Rounds over all peers, on behalf of the node that `here` asks."""

    def __init__(
        self, here: Ask, ways: Sequence[Way], state: StateFile, *, limit: int, push: bool, from_nothing: bool = False
    ) -> None:
        """`from_nothing` carries everything once more."""
        self._here = here
        self._ways = ways
        self._state = state
        self._limit = limit
        self._push = push
        if from_nothing:
            for way in ways:
                state.link(way.name).cursor = b""

    def tick(self) -> Tick:
        """One round. Whatever fails for one peer is in the answer."""
        tick = Tick(int(time.time() * 1000), len(self._ways), str(self._state.path))
        for way in self._ways:
            try:
                self._visit(way, tick)
            finally:
                way.close()
        return tick

    def _visit(self, way: Way, tick: Tick) -> None:
        link = self._state.link(way.name)
        for go in (way.pull, way.push) if self._push else (way.pull,):
            try:
                go(self._here, link, tick, self._state.save, limit=self._limit)
            except UnavailableError as error:
                tick.fail(way.name, error)
                return  # the other way would only wait for the same silence
            except (RelayMeshError, OSError, msgspec.MsgspecError) as error:
                tick.fail(way.name, error)


def run(tick: Callable[[], Tick], *, interval_s: float, as_json: bool) -> NoReturn:
    """Rounds until KeyboardInterrupt, told as a line of JSON each, or as one line for people that renews itself.

    A round that left something is followed at once by the next, unless it failed.
    """
    told: list[dict[str, str]] = []
    with Progress(sys.stderr) as progress:
        while True:
            done = tick()
            if as_json:
                print_line(done)
            else:
                for error in done.errors:
                    if error not in told:
                        progress.say(escape(f"{error['peer']}: {error['error']}"))
                told = done.errors
                progress.show(_summary(done))
            if done.complete or done.failures:
                time.sleep(interval_s)


def print_line(tick: Tick) -> None:
    """A round as one line of JSON on standard output."""
    print(json.dumps(tick.view(), ensure_ascii=False), flush=True)


def _summary(tick: Tick) -> str:
    waiting = f", {tick.waiting} files wait for an earlier one" if tick.waiting else ""
    return (
        f"{time.strftime('%H:%M:%S', time.localtime(tick.tick_at_ms / 1000))} {tick.peers} peers: "
        f"{tick.pulled_rows} rows in, {tick.pushed_rows} out, {tick.failures} failures{waiting}"
    )

"""Holds: what was paused, by whom and why. While one stands, nothing new of its scope starts; what runs goes on.

A hold is a replicated row, so each node that has heard of it obeys it, also after a restart: exactly so within a mesh
whose members hear each other, and on each side of a cut by what that side knows. The later word wins.

- `mesh`: no node starts anything.
- `agent NAME`: no node starts a step of this agent.
- `node ID`: this node starts nothing. Idle peers may still ask it for what it has waiting.
- `drain ID`: the same, and the node hands all that waits to peers that can run it.

Work moves on all the same: submits are accepted, dead owners' steps are taken over (by a node that is not held, if any
can), and waiting steps expire.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mesh.errors import RecordError
from mesh.ids import parse_node_id
from mesh.rows import Row
from node.storage.reader import Reader
from node.storage.store import Commit, Store
from node.storage.transaction import Transaction
from node.work.tables import MESH_NAMESPACE

REASON_CHARS_MAX = 256
_AGENT = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Scope(NamedTuple):
    """What a hold concerns: `mesh`, or a kind with a name."""

    kind: str
    name: str = ""

    @property
    def key(self) -> str:
        """The key of its row."""
        return f"{self.kind} {self.name}" if self.name else self.kind

    @staticmethod
    def parse(key: str) -> Scope:
        """The scope of a row's key; RecordError when no release of ours could have written it."""
        kind, _, name = key.partition(" ")
        if kind in ("node", "drain"):
            parse_node_id(name)
        elif not (kind == "agent" and _AGENT.fullmatch(name)) and key != "mesh":
            raise RecordError(f"a hold of {key[:80]!r}")
        return Scope(kind, name)

    def __str__(self) -> str:
        return "the whole mesh" if self.kind == "mesh" else f"{self.kind} {self.name}"


class Hold(NamedTuple):
    """One hold that stands. `since_ms`: by the clock of whoever was told of it, in milliseconds since 1970."""

    scope: Scope
    reason: str
    actor: str
    since_ms: int

    def __str__(self) -> str:
        what = f"node {self.scope.name} is being drained" if self.scope.kind == "drain" else f"{self.scope} is paused"
        return f"{what} (by {self.actor}: {self.reason or 'no reason given'})"


def node_scopes(node_id: str) -> tuple[Scope, ...]:
    """The scopes whose holds keep this node from starting anything."""
    return (Scope("mesh"), Scope("node", node_id), Scope("drain", node_id))


@functools.lru_cache(maxsize=8)
def _node_keys(node_id: str) -> tuple[str, ...]:
    return (MESH_NAMESPACE, *(scope.key for scope in node_scopes(node_id)))


def is_node_held(reader: Reader, node_id: str) -> bool:
    """Whether this node may start nothing, as of this transaction."""
    found = "SELECT 1 FROM holds WHERE namespace = ? AND key IN (?, ?, ?) AND deleted = 0 LIMIT 1"
    return bool(reader.sql(found, _node_keys(node_id)))


def is_agent_held(tx: Transaction, agent: str) -> bool:
    """Whether nothing of this agent may start, as of this transaction."""
    current = tx.get("holds", MESH_NAMESPACE, Scope("agent", agent).key)
    return current is not None and not current.deleted


def hold(tx: Transaction, scope: Scope, *, reason: str, actor: str) -> Row | None:
    """Let nothing new of this scope start; None, with nothing written, when the same was said before."""
    current = tx.get("holds", MESH_NAMESPACE, scope.key)
    values = {"reason": reason[:REASON_CHARS_MAX], "actor": actor[:128]}
    if current is not None and not current.deleted and all(current.text(name) == values[name] for name in values):
        return None
    return tx.put("holds", MESH_NAMESPACE, scope.key, {name: value or None for name, value in values.items()})


def release(tx: Transaction, scopes: Iterable[Scope]) -> list[Scope]:
    """End the holds of these scopes; returns those that stood."""
    ended = []
    for scope in scopes:
        current = tx.get("holds", MESH_NAMESPACE, scope.key)
        if current is not None and not current.deleted:
            tx.put("holds", MESH_NAMESPACE, scope.key, {}, deleted=True)
            ended.append(scope)
    return ended


def read_holds(reader: Reader) -> list[Hold]:
    """All that stand, in the order of their keys."""
    return [_of(row) for row in reader.select("holds", "namespace = ? AND deleted = 0", (MESH_NAMESPACE,), order="key")]


def _of(row: Row) -> Hold:
    return Hold(Scope.parse(row.key), row.text("reason"), row.text("actor"), row.hlc >> 16)


class Holds:
    """The holds that stand, for decisions outside of transactions: as of the last commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._standing: dict[Scope, Hold] = {}
        self.on_changed: list[Callable[[], None]] = []
        """Called after a commit that began or ended one."""
        store.on_commit(self._on_commit)

    async def load(self) -> None:
        """Learn which stand: at the start, and when another database took the place of ours."""
        self._standing = {each.scope: each for each in await self._store.read(read_holds)}
        self._tell()

    def _on_commit(self, commit: Commit) -> None:
        rows = [change.after for change in commit.changes if change.after.table == "holds"]
        for row in rows:
            if row.deleted:
                self._standing.pop(Scope.parse(row.key), None)
            else:
                self._standing[Scope.parse(row.key)] = _of(row)
        if rows:
            self._tell()

    def _tell(self) -> None:
        for callback in self.on_changed:
            callback()

    def all(self) -> list[Hold]:
        """All that stand, in the order of their keys."""
        return sorted(self._standing.values(), key=lambda each: each.scope.key)

    def of_node(self, node_id: str) -> Hold | None:
        """What keeps this node from starting anything; None when nothing does."""
        return next((self._standing[scope] for scope in node_scopes(node_id) if scope in self._standing), None)

    def is_shunned(self, node_id: str) -> bool:
        """Whether the node is paused or drained by name: work goes to others, where others can do it."""
        return Scope("node", node_id) in self._standing or Scope("drain", node_id) in self._standing

    def is_draining(self, node_id: str) -> bool:
        """Whether the node hands over what waits there."""
        return Scope("drain", node_id) in self._standing

    def agents(self) -> frozenset[str]:
        """The agents of which nothing new starts."""
        return frozenset(scope.name for scope in self._standing if scope.kind == "agent")

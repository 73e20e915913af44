"""What to try next when somebody asks for an id that is not known here: the error that helps instead of a bare no."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.errors import NotFoundError
from node.storage.reader import Reader
from node.work.retention import namespaces

GUESS_CHARS_MIN = 6
"""Of an id after its prefix, before it is completed: fewer fit to too many."""
GUESSES_MAX = 3

_TABLES = {"tsk_": "tasks", "stp_": "steps"}


def unknown_id(reader: Reader, namespace: str, asked: str, away: Sequence[str]) -> NotFoundError:
    """The error for a task or step id that is not here; `away` are members that cannot be heard now."""
    prefix = asked[:4]
    if prefix not in _TABLES:
        return NotFoundError(
            f"{asked[:80]!r} is no id of a task or step: these begin with tsk_ or stp_; `relaymesh tasks` lists them"
        )
    table, kind = _TABLES[prefix], "task" if prefix == "tsk_" else "step"
    for other in namespaces(reader):
        if other != namespace and (row := reader.get(table, other, asked)) is not None and not row.deleted:
            return NotFoundError(f"{kind} {asked} is in the namespace {other}: add `--namespace {other}`")
    stored = reader.get(table, namespace, asked)
    if stored is not None and stored.deleted:
        return NotFoundError(
            f"{kind} {asked} was deleted, by `purge` or because its retention was over (settings doneRetentionMs, "
            "deadRetentionMs)"
        )
    close = _that_begin_with(reader, table, namespace, asked)
    if close:
        return NotFoundError(f"{kind} {asked} is not known here; did you mean {' or '.join(close)}?")
    hint = f"; it may be at {', '.join(away[:5])}, which cannot be heard from here now" if away else ""
    return NotFoundError(
        f"{kind} {asked} is not known here in namespace {namespace!r}: check the id and the namespace, look at "
        f"`relaymesh tasks`, or ask the node that accepted it{hint}"
    )


def _that_begin_with(reader: Reader, table: str, namespace: str, asked: str) -> list[str]:
    if len(asked) < 4 + GUESS_CHARS_MIN:
        return []
    # By the order of the index, not by LIKE: an id may hold what LIKE takes for a wildcard.
    found = reader.sql(
        f"SELECT key FROM {table} WHERE namespace = ? AND key >= ? AND key < ? AND deleted = 0 ORDER BY key LIMIT ?",
        (namespace, asked, asked + "\uffff", GUESSES_MAX),
    )
    return [str(key) for (key,) in found]

"""Which rows of another database a node must hear of one by one before that takes the place of its own.

An exchange of databases tells nobody of single rows. What this node holds or has run must change the way that every
other row does, through a merge: a run whose lease has moved is stopped, a lost one is recorded, a result that lost
stays visible as superseded.
"""

from __future__ import annotations

from collections.abc import Iterator

from mesh.rows import Row
from node.storage.reader import Reader

_PAGE = 5_000
_OPEN_AND_OURS = "owner = ? AND rank = 0"


def rows_to_hear(ours: Reader, theirs: Reader, *, me: str) -> list[Row]:
    """Their versions of tasks and steps that are here and differ, of open steps that are ours by their word, of those
    steps' tasks, of who can run what, and of the cluster's epoch.
    """
    mine = theirs.select("steps", _OPEN_AND_OURS, (me,))
    tasks = dict.fromkeys((step.namespace, step.text("task_id")) for step in mine)
    found = [theirs.get("tasks", namespace, key) for namespace, key in tasks]
    return [
        *theirs.select("profiles"),
        *theirs.select("cluster"),
        *(task for task in found if task is not None),
        *_differing(ours, theirs, "tasks"),
        *mine,
        *_differing(ours, theirs, "steps"),
    ]


def _differing(ours: Reader, theirs: Reader, table: str) -> Iterator[Row]:
    """Their versions of rows of this table that ours has in another version, told apart by their digests."""
    last = 0
    while page := ours.sql(
        f"SELECT rowid, namespace, key, d1, d2 FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?", (last, _PAGE)
    ):
        for last, namespace, key, *digest in page:  # noqa: B007 - the last one of the page is used
            other = theirs.sql(f"SELECT d1, d2 FROM {table} WHERE namespace = ? AND key = ?", (namespace, key))
            if other and other[0] != tuple(digest):
                row = theirs.get(table, namespace, key)
                assert row is not None, (table, namespace, key)
                yield row

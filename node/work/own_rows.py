"""Which rows of another database a node must hear of one by one before that takes the place of its own.

An exchange of databases tells nobody of single rows. What concerns the runs and the queue of this node must come the
way that every other row comes, through a merge: a run whose lease has moved is stopped, a lost one is recorded.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.rows import Row
from node.storage.reader import Reader

OPEN_AND_OURS = "owner = ? AND rank = 0"


def rows_to_hear(reader: Reader, *, me: str) -> Callable[[Reader], list[Row]]:
    """Ask this node's own database first; the function returned then reads the other one.

    It finds the steps that either side believes to be open and this node's, their tasks, who can run what, and the
    cluster's epoch.
    """
    ours = [(row.namespace, row.key, row.text("task_id")) for row in reader.select("steps", OPEN_AND_OURS, (me,))]

    def read(other: Reader) -> list[Row]:
        theirs = [(row.namespace, row.key, row.text("task_id")) for row in other.select("steps", OPEN_AND_OURS, (me,))]
        steps = dict.fromkeys([*ours, *theirs])
        tasks = dict.fromkeys((namespace, task_id) for namespace, _, task_id in steps)
        found = [
            *other.select("profiles"),
            *other.select("cluster"),
            *(other.get("tasks", namespace, key) for namespace, key in tasks),
            *(other.get("steps", namespace, key) for namespace, key, _ in steps),
        ]
        return [row for row in found if row is not None]

    return read

"""Deletion: what is deleted does not come back, however late an old copy of it arrives, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import Dot, dot_of, name_of, told, wins
from chaos.invariants.promise import Promise
from chaos.observations import Committed, DatabaseReplaced, Rest, Seen
from mesh.rows import Row


class DeletedStaysDeleted(Promise):
    """A version that is older than a deletion becomes current nowhere that knew of the deletion, forgotten or not.

    At rest a row of a deleted task is there only if it was written after the deletion, as one that replaces it, or if
    the deletion went with the disk it was written on; nothing is left that belongs to a task which is gone. A database
    that lost its memory may bring things back until it has heard from a peer. Of two processes with one identity the
    mesh counts one, and waits for that one only before it forgets: what the other wrote to a task before it heard that
    this was deleted may come back, or be left behind.
    """

    name = "deleted-stays-deleted"
    hears = (Committed, DatabaseReplaced)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._first_ms: dict[Dot, float] = {}
        """When a version was first seen anywhere."""
        self._deletions: dict[str, Row] = {}
        """The greatest tombstone of each task."""
        self._replaced: dict[str, None] = {}
        """Hosts whose next commit tells of all that is in the database which they went on with."""
        self._brought_back: dict[str, None] = {}
        """Deleted tasks to which a process that the mesh did not count had written, unheard."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Hold what turns up against what the host knew to be deleted."""
        if isinstance(seen, DatabaseReplaced):
            self._replaced[seen.host] = None
            return
        assert isinstance(seen, Committed)
        known = self.mirror.host(seen.host)
        is_whole = seen.host in self._replaced
        self._replaced.pop(seen.host, None)
        for change in seen.changes:
            row = change.after
            first_ms = self._first_ms.setdefault(dot_of(row), seen.at_ms)
            task_id = row.key if row.table == "tasks" else row.text("task_id")
            if row.table == "tasks" and row.deleted:
                greatest = self._deletions.get(row.key)
                if greatest is None or wins(row, greatest):
                    self._deletions[row.key] = row
            elif is_whole:
                continue
            elif change.before is None and task_id in self._deletions and name_of(row) in known.rows:
                deletion = self._deletions[task_id]
                if first_ms >= self._first_ms[dot_of(deletion)]:
                    continue
                if self._writer_was_two(row):
                    self._brought_back[task_id] = None
                else:
                    yield f"{seen.host} had forgotten {told(row)}, and has it again; its deletion: {told(deletion)}"

    def judge(self, rest: Rest) -> Iterator[str]:
        """Look for what came back, and for what was left behind."""
        for node, replica in rest.replicas.items():
            for row in replica.rows.values():
                if row.table == "tasks":
                    deletion = self._deletions.get(row.key)
                    if deletion is None or row.key in self._brought_back or self._went_with_a_disk(deletion):
                        continue
                    if not row.deleted and self._is_older(row, deletion):
                        yield f"{node} ended with {told(row)}, though {told(deletion)} deleted it"
                elif task_id := row.text("task_id"):
                    task = replica.rows.get(("tasks", row.namespace, task_id))
                    if task_id in self._brought_back or self._writer_was_two(row):
                        continue
                    if task is None and task_id in self._deletions:
                        yield f"{node} ended with {told(row)}, which belongs to a task that is gone"

    def _is_older(self, row: Row, deletion: Row) -> bool:
        first_ms = self._first_ms.get(dot_of(row), float("inf"))
        return first_ms < self._first_ms[dot_of(deletion)] and not wins(row, deletion)

    def _writer_was_two(self, row: Row) -> bool:
        """Whether two processes wrote under the name of its writer, of which the mesh counts one."""
        return len(self.mirror.of_node(row.node)) > 1

    def _went_with_a_disk(self, deletion: Row) -> bool:
        """Whether the disk on which the deletion was written lost what it held, perhaps before anybody had a copy."""
        return any(host.has_lost for host in self.mirror.of_node(deletion.node))

"""Faults in when something is durable, and in what is believed after a disk failed."""

from __future__ import annotations

from chaos.mutants.edits import Edit
from chaos.mutants.mutant import Mutant

_NO_SYNC_AT_COMMIT = Edit(
    "node.storage.database:open_connection",
    "_assert_settings(connection)",
    "_assert_settings(connection)\n        connection.pragma('synchronous', 1)",
)

MUTANTS = (
    Mutant(
        name="normal-sync",
        breaks="an acknowledged write survives a power cut: the log is synced at every commit",
        caught_by=("durable-before-heard",),
        edits=(_NO_SYNC_AT_COMMIT,),
    ),
    Mutant(
        name="acknowledged-before-sync",
        breaks="nothing is acknowledged or gossiped before the drive has it, not even a moment",
        caught_by=("durable-before-heard",),
        edits=(
            _NO_SYNC_AT_COMMIT,
            Edit(
                "node.storage.store:Store._commit_next",
                "await self._commit(batch)",
                "await self._commit(batch)\n            await self._env.writer_thread.run(self._writer.checkpoint)",
            ),
        ),
    ),
    Mutant(
        name="failed-commit-acknowledged",
        breaks="a request whose commit failed is answered as unknown, never as done",
        caught_by=("acknowledged-kept",),
        edits=(
            Edit(
                "node.storage.store:Store.write",
                "if request.error is not None:",
                "if request.error is not None and request.value is None:",
            ),
        ),
    ),
    Mutant(
        name="bundle-before-commit",
        breaks="the mesh hears of a row only after its commit returned",
        caught_by=("one-content-per-dot", "vectors-honest"),
        edits=(
            Edit(
                "node.storage.writer:Writer.run_batch",
                "return self._fail(requests, failure, batch.reloaded, damage)",
                "self._fail(requests, failure, batch.reloaded, damage)\n"
                "            batch.failure = failure\n"
                "            return batch",
            ),
        ),
    ),
    Mutant(
        name="hlc-reused-after-restart",
        breaks="a node's stamps rise over restarts, also when its clock went back meanwhile",
        caught_by=("stamps-rise",),
        edits=(
            Edit(
                "node.storage.writer:Writer._reload",
                'stored_hlc = int(self._get_meta(META_HLC) or b"0")',
                "stored_hlc = 0",
            ),
        ),
    ),
    Mutant(
        name="probed-without-need",
        breaks="a node that has nothing to do writes nothing to its disk",
        caught_by=("disks-rest",),
        edits=(
            Edit(
                "node.storage.store:Store._maintain",
                "if self._failing_since is not None:",
                "if self._failing_since is not None or self._last_commit_s:",
            ),
        ),
    ),
)

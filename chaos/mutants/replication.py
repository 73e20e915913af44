"""Faults in which version of a row wins, and in what a replica believes to have."""

from __future__ import annotations

from chaos.mutants.edits import Edit
from chaos.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        name="epoch-above-rank",
        breaks="finished work is never undone by unfinished work, whatever its lease epoch",
        caught_by=("final-is-maximum", "finished-stays", "versions-only-grow"),
        edits=(
            Edit(
                "mesh.registers:_lifecycle",
                "row.rank,\n        row.cluster_epoch,\n        row.lease_epoch,\n",
                "row.cluster_epoch,\n        row.lease_epoch,\n        row.rank,\n",
            ),
        ),
    ),
    Mutant(
        name="stamp-above-lease",
        breaks="a stale owner with a fast clock cannot win back a lease that was taken over",
        caught_by=("final-is-maximum", "versions-only-grow"),
        edits=(
            Edit(
                "mesh.registers:_lifecycle",
                "row.rank,\n        row.cluster_epoch,",
                "row.rank,\n        row.hlc,\n        row.cluster_epoch,",
            ),
        ),
    ),
    Mutant(
        name="own-result-stands",
        breaks="the greatest version of a row wins on every node, also over what that node itself committed",
        caught_by=("comes-to-rest", "final-is-maximum"),
        edits=(
            Edit(
                "node.storage.transaction:Transaction.merge",
                "verdict = judge(None if sql is None else sql.table, current, row, in_time=in_time)",
                "verdict = judge(None if sql is None else sql.table, current, row, in_time=in_time)\n"
                "        if row.table == 'steps' and current and current.rank and current.origin == ledger.origin:\n"
                "            verdict = Verdict(Outcome.STALE)",
            ),
        ),
    ),
    Mutant(
        name="quarantine-of-lifecycle-rows",
        breaks="a step's version applies at once, however far ahead its writer's clock was",
        caught_by=("quarantine-explained", "comes-to-rest"),
        edits=(Edit("mesh.replica:judge", "if not in_time and table.register in _STAMP_DECIDES:", "if not in_time:"),),
    ),
    Mutant(
        name="vector-joined-early",
        breaks="a replica claims to have seen a row only in the transaction that brings it",
        caught_by=("vectors-honest", "equal-vectors-equal-replicas"),
        edits=(
            Edit(
                "node.replication.pull:Puller.pull",
                "await self._apply(rows, end.stable, VersionVector.from_wire(end.vector), copy=copy)",
                "await self._apply([], end.stable, VersionVector.from_wire(end.vector), copy=copy)\n"
                "        await self._apply(rows, b'', copy=copy)",
            ),
        ),
    ),
    Mutant(
        name="bundle-closes-gaps",
        breaks="a bundle completes its own sequence numbers, not those before it that were lost on the way",
        caught_by=("vectors-honest", "equal-vectors-equal-replicas"),
        edits=(
            Edit(
                "node.node:_merge_bundles",
                "tx.mark(bundle.origin, bundle.lo, bundle.hi)",
                "tx.mark(bundle.origin, 1, bundle.hi)",
            ),
        ),
    ),
    Mutant(
        name="origin-kept-after-rollback",
        breaks="one dot never names two contents: a database that went back in time writes under a new origin",
        caught_by=("one-content-per-dot",),
        edits=(
            Edit("node.storage.writer:Writer._doubt", "if vector.head(ledger.origin) < marker.head:", "if False:"),
            Edit(
                "node.storage.writer:Writer._doubt",
                "if not clean and self._get_meta(_META_BOOT) != kernel_boot_id.encode():",
                "if False:",
            ),
            Edit(
                "node.storage.transaction:Transaction.mark",
                "if origin == ledger.origin and hi >= ledger.next_seq:",
                "if False:",
            ),
            Edit(
                "node.replication.pull:Puller.pull",
                "if origin == self._store.origin and end.known_of_you > self._store.vector.head(origin):",
                "if False:",
            ),
        ),
    ),
    Mutant(
        name="forgotten-unasked",
        breaks="a deletion is remembered until every member has seen it",
        caught_by=("deleted-stays-deleted", "replicas-equal", "equal-vectors-equal-replicas", "comes-to-rest"),
        edits=(
            Edit(
                "node.replication.stability_rounds:StabilityRounds._look",
                "return look([self._store.vector.copy(), *others])",
                "return look([self._store.vector.copy()])",
            ),
            Edit("mesh.stability:may_adopt", "if all(", "if True or all("),
        ),
    ),
    Mutant(
        name="rows-before-stable-vector",
        breaks="what a sender may have forgotten stands in front of the rows that it sends",
        caught_by=("deleted-stays-deleted", "replicas-equal", "equal-vectors-equal-replicas", "comes-to-rest"),
        edits=(
            Edit(
                "node.replication.pull:serve_pull",
                'news = b"" if stable.digest() == told else stable.to_wire()',
                'news = b""',
            ),
            Edit("node.replication.stability_rounds:serve_vector", "await store.adopt(", "Stable.digest("),
            Edit("mesh.stability:was_away_too_long", "return not same_stable and", "return False and"),
        ),
    ),
    Mutant(
        name="late-copy-taken",
        breaks="a late copy of a row that was forgotten is known as such",
        caught_by=("deleted-stays-deleted", "replicas-equal", "equal-vectors-equal-replicas", "comes-to-rest"),
        edits=(
            Edit(
                "node.storage.transaction:Transaction._was_forgotten",
                "stable = self._ledger.stable",
                "return False\n        stable = self._ledger.stable",
            ),
        ),
    ),
    Mutant(
        name="children-forgotten-early",
        breaks="what belongs to a deleted row goes only when nothing of it can come late",
        caught_by=("deleted-stays-deleted", "replicas-equal", "equal-vectors-equal-replicas", "comes-to-rest"),
        edits=(
            Edit("mesh.stability:settle", "if not second.common.includes(first.union):", "if False:"),
            Edit(
                "mesh.stability:settle", "Stable(first.common, second.common)", "Stable(second.common, second.common)"
            ),
        ),
    ),
    Mutant(
        name="collapsed-unasked",
        breaks="dots leave the vectors only when every member has seen them and none has a row of theirs",
        caught_by=("equal-vectors-equal-replicas", "versions-only-grow", "vectors-honest", "acknowledged-kept"),
        edits=(
            Edit(
                "node.replication.stability_rounds:StabilityRounds._collapse_what_is_empty_everywhere",
                "if all(vector.ranges(origin) == seen and tuple(origin) in empty for vector, empty in told):",
                "if seen:",
            ),
            Edit(
                "node.replication.stability_rounds:StabilityRounds.collapse",
                "if empty:",
                "empty = [each for each in vector.origins() if each != self._store.origin]\n        if empty:",
            ),
        ),
    ),
    Mutant(
        name="snapshot-keeps-origin",
        breaks="whoever goes on with another node's database writes under an origin of its own, not under that node's",
        caught_by=("one-content-per-dot", "one-writer", "nodes-live-on"),
        edits=(
            Edit(
                "node.storage.database_copy:DatabaseCopy.finish",
                '"DELETE FROM meta WHERE name NOT IN (?, ?)"',
                '"SELECT ?, ?"',
            ),
            Edit(
                "node.storage.adoption:_take_meta",
                'connection.execute("DELETE FROM meta")',
                'connection.execute("DELETE FROM meta WHERE name <> ?", (META_ORIGIN,))',
            ),
            Edit(
                "node.storage.writer:Writer._doubt",
                "if ledger.origin.node != self._node_id:",
                "if ledger.origin.node != self._node_id:\n            return ''\n        if False:",
            ),
        ),
    ),
    Mutant(
        name="snapshot-drops-own-rows",
        breaks="a node that goes on with another one's database keeps what only its own had",
        caught_by=("versions-only-grow", "finished-stays", "acknowledged-kept", "node-knows-its-word"),
        edits=(Edit("node.storage.adoption:adopt", "_merge(connection, old, hlc, stable, tables)", "pass"),),
    ),
)

"""Faults in the life of a step: who may write it, when it runs, and what is kept of it."""

from __future__ import annotations

from chaos.mutants.edits import Edit
from chaos.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        name="generation-is-hlc",
        breaks="a replay is generation + 1, so that the same replay issued on both sides of a cut is one generation",
        caught_by=("generations-count",),
        edits=(
            Edit(
                "node.work.transitions:replay",
                "generation=step.generation + 1,",
                "generation=(tx.hlc >> 16) // 1000,",
            ),
        ),
    ),
    Mutant(
        name="epoch-not-bumped-at-claim",
        breaks="a node dispatches only under a lease epoch that it opened itself",
        caught_by=("own-epoch",),
        edits=(
            Edit(
                "node.work.transitions:claim",
                "lease_epoch=step.lease_epoch + 1 + forgotten,",
                "lease_epoch=step.lease_epoch,",
            ),
        ),
    ),
    Mutant(
        name="fence-without-generation",
        breaks="fences sort as leases do, over replays, too",
        caught_by=("own-epoch",),
        edits=(Edit("mesh.fences:Fence.encode", "{self.generation:08x}-", "{0:08x}-"),),
    ),
    Mutant(
        name="gate-removed",
        breaks="a node that may have missed news touches nothing it owned before, until it has heard from a peer",
        caught_by=("gate-holds",),
        edits=(
            Edit("mesh.gate:Gate.__init__", "GateState.SHUT if has_peers else GateState.OPEN", "GateState.OPEN"),
            Edit("mesh.gate:Gate.shut", "self.state = GateState.SHUT", "self.state = GateState.OPEN"),
        ),
    ),
    Mutant(
        name="stale-commit-not-refused",
        breaks="a node refuses its own commit once its lease has moved",
        caught_by=("one-writer", "refused-after-higher-epoch"),
        edits=(
            Edit(
                "node.work.transitions:finish",
                "current = holds_lease(tx, claimed, me)",
                'current = tx.get("steps", claimed.namespace, claimed.key)',
            ),
        ),
    ),
    Mutant(
        name="lease-heartbeat-as-row-write",
        breaks="a lease lives as long as its node's membership: no write without a change",
        caught_by=("writes-change-something",),
        edits=(
            Edit(
                "node.work.runtime:Runtime._sweep_orphans",
                "await self._commit_unknown.wait()",
                "await self._env.clock.sleep(1.0)",
            ),
            Edit(
                "node.work.runtime:Runtime._sweep_orphans",
                "await self._env.clock.sleep(2 * ORPHAN_AGE_S)",
                "await trio.lowlevel.checkpoint()",
            ),
            Edit(
                "node.work.runtime:Runtime._requeue_orphans",
                "for step in running:",
                "for step in running:\n            if self._runs_under(step):\n"
                "                tx.put('steps', step.namespace, step.key, {})",
            ),
        ),
    ),
    Mutant(
        name="cancel-dropped-at-take-over",
        breaks="a cancel is obeyed by every owner and taker, also by one that owns the step later",
        caught_by=("cancel-obeyed", "cancelled-stays"),
        edits=(
            Edit(
                "node.work.transitions:claim", "if task is not None and is_cancel_requested(task, step):", "if False:"
            ),
            Edit(
                "node.work.transitions:finish",
                "if task is not None and is_cancel_requested(task, current):",
                "if False:",
            ),
            Edit(
                "node.work.runtime:Runtime._begins_to_wait",
                'return before.text("owner") != self._me or step_status(before) is Status.RUNNING',
                "return False",
            ),
        ),
    ),
    Mutant(
        name="loser-not-told",
        breaks="a result that loses a merge stays visible as superseded",
        caught_by=("result-stays",),
        edits=(
            Edit(
                "node.work.runtime:Runtime._on_step",
                "if before is not None and self._lost_result(tx, before, after):",
                "if False:",
            ),
        ),
    ),
    Mutant(
        name="child-after-first-parent",
        breaks="a step begins after all of its parents have succeeded",
        caught_by=("children-after-parents",),
        edits=(
            Edit(
                "node.work.work_queue:WorkQueue._parents_done", "return bool(done == len(names))", "return bool(done)"
            ),
        ),
    ),
    Mutant(
        name="lost-run-not-told",
        breaks="of every run that began, the history tells what became of it",
        caught_by=("runs-explained",),
        edits=(
            Edit(
                "node.work.runtime:Runtime._on_step",
                "if before is not None and self._lost_run(before, after):",
                "if False:",
            ),
        ),
    ),
    Mutant(
        name="dead-letter-too-early",
        breaks="a step is tried as often as its definition says before it is given up",
        caught_by=("tasks-end-as-defined",),
        edits=(
            Edit(
                "node.work.transitions:finish", "attempt >= policy.max_attempts", "attempt + 1 >= policy.max_attempts"
            ),
        ),
    ),
    Mutant(
        name="checkpoint-dropped-at-take-over",
        breaks="a checkpoint that returned is there for the next attempt, wherever the step's row is",
        caught_by=("checkpoints-kept",),
        edits=(
            Edit(
                "node.work.transitions:_own",
                '"lost_leases": json.dumps(lost) if lost else None,',
                '"lost_leases": json.dumps(lost) if lost else None, **NO_CHECKPOINT,',
            ),
        ),
    ),
    Mutant(
        name="snooze-counted",
        breaks="a snooze is no attempt",
        caught_by=("snoozes-uncounted",),
        edits=(
            Edit(
                "node.work.handler_choices:snooze",
                'max(0, step.integer("attempt") - 1)',
                'step.integer("attempt")',
            ),
        ),
    ),
    Mutant(
        name="key-not-deduplicated",
        breaks="one key is one task, however often it is submitted",
        caught_by=("one-task-per-key",),
        edits=(
            Edit("node.work.transitions:submit", "if existing is not None and not existing.deleted:", "if False:"),
            Edit("node.work.transitions:submit", "if rivals:", "if False:"),
        ),
    ),
    Mutant(
        name="poison-never-ends",
        breaks="a step that ended five of its owners' processes is not risked again",
        caught_by=("comes-to-rest",),
        edits=(
            Edit(
                "mesh.takeover:is_poison",
                "return ended_processes(lost, current_life) >= LOST_LEASES_MAX",
                "return False",
            ),
        ),
    ),
)

"""Faults in when a step may begin: its delay, its expiry, and what is paused."""

from __future__ import annotations

from chaos.mutants.edits import Edit
from chaos.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        name="delay-forgotten",
        breaks="no step begins before its delay is over, at whichever node",
        caught_by=("steps-begin-in-their-time",),
        edits=(
            Edit(
                "node.work.timing:due_ms",
                "due = submitted_ms(step, now_ms, stamp_ms) + delay_ms if delay_ms else 0",
                "due = 0",
            ),
        ),
    ),
    Mutant(
        name="expiry-forgotten",
        breaks="what did not begin before its expiry never begins",
        caught_by=("steps-begin-in-their-time",),
        edits=(
            Edit(
                "node.work.timing:expires_at_ms",
                "return submitted_ms(step, now_ms, stamp_ms) + expires_ms if expires_ms and not has_begun(step) else 0",
                "return 0",
            ),
        ),
    ),
    Mutant(
        name="retry-expires",
        breaks="what began before its expiry goes on",
        caught_by=("steps-begin-in-their-time",),
        edits=(Edit("node.work.timing:has_begun", 'return bool(step.integer("claim_life"))', "return False"),),
    ),
    Mutant(
        name="hold-of-a-node-ignored",
        breaks="while the mesh or a node is held, that node starts nothing new",
        caught_by=("nothing-held-starts",),
        edits=(Edit("node.work.runtime:Runtime._claim", "if is_node_held(tx, self._me):", "if False:"),),
    ),
    Mutant(
        name="hold-of-an-agent-ignored",
        breaks="while an agent is held, nothing of it starts",
        caught_by=("nothing-held-starts",),
        edits=(
            Edit(
                "node.work.holds:is_agent_held",
                "return current is not None and not current.deleted",
                "return False",
            ),
        ),
    ),
)

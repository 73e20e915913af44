"""Faults in how steps that wait on a partition find one holder."""

from __future__ import annotations

from chaos.mutants.edits import Edit
from chaos.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        name="any-majority-wait",
        breaks="a waiting step needs a majority of its roster: that of whoever can be reached may be one node, itself",
        caught_by=("waiting-steps-run-once-at-a-time",),
        edits=(
            Edit("mesh.support:Support.lapses_at", "needed = majority(roster)", "needed = 1"),
            Edit(
                "node.work.roster_support:RosterSupport._round",
                "if len(asked) < majority(roster):",
                "if False:",
            ),
        ),
    ),
)

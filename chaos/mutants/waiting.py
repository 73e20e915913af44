"""Faults in how steps that wait on a partition find one holder."""

from __future__ import annotations

from chaos.mutants.edits import Edit
from chaos.mutants.mutant import Mutant

_ONE_PLACE = "waiting-steps-run-once-at-a-time"

MUTANTS = (
    Mutant(
        name="any-majority-wait",
        breaks="a waiting step runs with the support of a majority of its roster, not of those who can be reached",
        caught_by=(_ONE_PLACE,),
        edits=(
            Edit("mesh.support:Support.lapses_at", "needed = majority(roster)", "needed = majority(list(members))"),
            Edit(
                "node.work.roster_support:RosterSupport._round",
                "if len(asked) < majority(roster):",
                "if False:",
            ),
        ),
    ),
    Mutant(
        name="support-counted-from-answer",
        breaks="a support is counted from when it was asked for, however late the answer comes",
        caught_by=(_ONE_PLACE,),
        edits=(
            Edit(
                "node.work.roster_support:RosterSupport._heard",
                "self._support.heard(step, member, sent_at=sent_at)",
                "self._support.heard(step, member, sent_at=now)",
            ),
        ),
    ),
    Mutant(
        name="vote-not-durable",
        breaks="a voter chooses one taker for a turn, also when it starts anew in between",
        caught_by=("waiting-steps-have-one-taker",),
        edits=(
            Edit(
                "node.work.roster_support:_record_vote",
                "if earlier != wanted:",
                "if False:",
            ),
        ),
    ),
    Mutant(
        name="support-for-two",
        breaks="who supports a holder supports nobody else until that one has stopped counting",
        caught_by=(_ONE_PLACE,),
        edits=(
            Edit(
                "mesh.support:Supporter.support",
                "if grant is not None and grant.holder != holder and now < grant.until:",
                "if False:",
            ),
        ),
    ),
    Mutant(
        name="unsupported-run-goes-on",
        breaks="a run stops when its node has lost the support of its roster",
        caught_by=(_ONE_PLACE,),
        edits=(
            Edit(
                "node.work.roster_support:RosterSupport._watch_lapses",
                "self.on_lapsed(run.step.key)",
                "pass",
            ),
        ),
    ),
)

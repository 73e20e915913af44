"""Faults in schedules: who submits a slot, and under which key."""

from __future__ import annotations

from chaos.mutants.edits import Edit
from chaos.mutants.mutant import Mutant

_SCENARIO = "cron-across-a-cut"

MUTANTS = (
    Mutant(
        name="every-member-submits",
        breaks="one member submits a slot, by rendezvous; the others wait in turn",
        caught_by=("slots-have-one-submitter",),
        edits=(Edit("node.work.schedules:fire_wait_s", "if place else 0.0", "if place < 0 else 0.0"),),
        scenario=_SCENARIO,
    ),
    Mutant(
        name="slot-key-at-random",
        breaks="a slot has the same key on every node, so both sides of a cut make the same task",
        caught_by=("slots-become-tasks",),
        edits=(
            Edit(
                "node.work.scheduler:_submit_slot",
                "key = slot_key(schedule.name, slot_ms)",
                'key = f"{slot_key(schedule.name, slot_ms)} {trace_id}"',
            ),
        ),
        scenario=_SCENARIO,
    ),
    Mutant(
        name="missed-slots-forgotten",
        breaks="slots that nobody was up for are made up for, as far as the schedule says so",
        caught_by=("slots-become-tasks",),
        edits=(Edit("node.work.schedules:due_slots", 'if schedule.catch_up == "skip":', "if True:"),),
        scenario=_SCENARIO,
    ),
)

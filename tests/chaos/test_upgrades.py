"""A node that goes to the next release and back: the promises notice each way in which that could lose something."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos import scenario_file
from chaos.mutants.edits import Edit, edited
from chaos.scenario import Fault
from chaos.simulation.played import play

SHORT = replace(
    scenario_file.named("upgrade-and-rollback"),
    nodes=3,
    duration_s=14.0,
    faults=(Fault(kind="upgrade", at_s=3.0, for_s=6.0, nodes=("n0",)),),
    expect=(),
)

LOST_VALUES = Edit(
    "node.storage.schema_changes:_narrow",
    "encode_values(unknown), rowid",
    "None, rowid",
)
LOST_ROWS = Edit("node.storage.schema_changes:_put_aside", "for (rowid,) in rowids:", "for (rowid,) in rowids[:0]:")
NOT_PASSED_ON = Edit(
    "node.storage.reader:Reader._quarantined",
    "(oid, lo, hi, *RELAYED)",
    '(oid, lo, hi, *(reason.replace("unknown-table", "poison") for reason in RELAYED))',
)


def broken(edit: Edit) -> set[str]:
    with edited([edit]):
        return {violation.invariant for violation in play(SHORT).violations}


@pytest.mark.slow
def test_a_node_goes_to_the_next_release_and_back_and_nothing_is_lost():
    result = play(SHORT)
    assert not result.violations, [str(violation) for violation in result.violations]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "promise"),
    [(LOST_VALUES, "replicas-equal"), (LOST_ROWS, "vectors-honest")],
    ids=["values of a column lost on the way back", "rows of a table lost on the way back"],
)
def test_a_loss_on_the_way_is_noticed(edit, promise):
    assert promise in broken(edit)


@pytest.mark.slow
def test_a_node_that_does_not_hand_on_what_it_does_not_know_is_noticed():
    cut_off = replace(SHORT, faults=(*SHORT.faults, Fault(kind="kill", at_s=2.0, for_s=9.0, nodes=("n2",))))
    with edited([NOT_PASSED_ON]):
        found = {violation.invariant for violation in play(cut_off).violations}
    assert "vectors-honest" in found

"""Goal: each quarantine command asks what it should, and a drop needs its --yes. Method: a scripted node."""

from __future__ import annotations

import pytest

NAME = "node-b/0000000000000007/1"


def test_the_list_shows_rows_and_contested_keys(fake_node, relaymesh):
    fake_node.answers["quarantine-list"] = {
        "rows": [{"id": NAME, "reason": "poison", "table": "steps", "ageMs": 61_000, "key": "k"}],
        "counts": {"poison": 1},
        "keyConflicts": [{"namespace": "default", "idempotencyKey": "order-1", "taskIds": ["a", "b"]}],
    }
    ran = relaymesh("--root", fake_node.root, "quarantine", "list", "--reason", "poison")

    assert ran.code == 0
    assert fake_node.args("quarantine-list") == {"reason": "poison", "limit": 100}
    assert NAME in ran.out
    assert "order-1" in ran.out


@pytest.mark.parametrize(("stays", "code"), [(True, 1), (False, 0)])
def test_a_retry_that_changed_nothing_is_a_negative_answer(fake_node, relaymesh, stays, code):
    fake_node.answers["quarantine-retry"] = {"id": NAME, "outcome": "quarantined", "stays": stays}

    assert relaymesh("--root", fake_node.root, "quarantine", "retry", NAME).code == code


def test_a_drop_without_yes_asks_nobody(fake_node, relaymesh):
    fake_node.answers["quarantine-drop"] = {"id": NAME, "dropped": True}

    refused = relaymesh("--root", fake_node.root, "quarantine", "drop", NAME)
    assert (refused.code, refused.err.count("\n"), fake_node.calls) == (2, 1, [])

    assert relaymesh("--root", fake_node.root, "quarantine", "drop", NAME, "--yes").code == 0
    assert fake_node.args("quarantine-drop") == {"id": NAME}

"""A running daemon takes changed settings in: on a signal, on a command, and refuses a bad file alive."""

import json
import os
import signal
from collections.abc import Iterator

import pytest

from mesh.errors import ConfigError
from node.settings import SETTINGS_FILE


@pytest.fixture(scope="module")
def module_mesh(make_mesh) -> Iterator:
    with make_mesh("a") as mesh:
        yield mesh


def is_refused(entries) -> bool:
    return entries[0]["result"] == "refused"


def test_a_signal_a_command_and_a_bad_file(mesh):
    path = mesh.cluster.nodes["a"].root / SETTINGS_FILE
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | {"maxAttempts": 1}))
    os.kill(mesh.cluster.pid("a"), signal.SIGHUP)
    (entry,) = mesh.cluster.wait_answer("a", "settings-history", bool, 10, "the signal was obeyed")
    assert (entry["source"], entry["changedFields"]) == ("signal", ["maxAttempts"])
    task = mesh.wait_task("a", mesh.submit("a", "fail"), "DEAD_LETTER")
    assert task["steps"][0]["attempt"] == 1

    path.write_text(json.dumps(good | {"maxAttempts": 0}))
    os.kill(mesh.cluster.pid("a"), signal.SIGHUP)
    mesh.cluster.wait_answer("a", "settings-history", is_refused, 10, "the bad file was refused")
    with pytest.raises(ConfigError, match="maxAttempts must be a whole number from 1"):
        mesh.cluster.admin("a", "reload-settings")
    path.write_text(json.dumps(good | {"maxAttempts": 2, "agentTimeoutMs": 9_000}))
    answer = mesh.cluster.admin("a", "reload-settings")
    assert (answer["changedFields"], answer["needsRestart"]) == (["maxAttempts", "agentTimeoutMs"], ["agentTimeoutMs"])
    assert answer["settings"]["maxAttempts"] == 2

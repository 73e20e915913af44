"""Goal: each check tells trouble from health, and what mends it. Method: made-up answers of a healthy node, spoilt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from mesh.errors import ConfigError, UnavailableError
from tools.doctor_checks import CHECKS, COMMANDS, examine

HOUR_MS = 3_600_000


def healthy() -> dict[str, Any]:
    """The answers of a node of a mesh of two, of which nothing is wrong."""

    def member(name: str, is_me: bool) -> dict[str, Any]:
        return {
            "nodeId": name,
            "status": "ALIVE",
            "isThisNode": is_me,
            "updatedAtMs": 0,
            "release": "0.2.0",
            "protocolProblem": None,
        }

    peer = {
        "nodeId": "node-b",
        "missingHere": 0,
        "missingThere": 0,
        "lastPullAgeMs": 100,
        "differingRanges": 0,
        "clockOffsetMs": 3,
        "error": None,
    }
    return {
        "health": {
            "dbOk": True,
            "gateOpen": True,
            "problems": [],
            "diskFreeBytes": 50 * 1024**3,
            "databaseBytes": 1024**2,
            "diskBudgetBytes": 0,
            "diskPressure": False,
        },
        "members": [member("node-a", True), member("node-b", False)],
        "mesh-summary": {"generatedAtMs": HOUR_MS, "reclaimFrozen": False},
        "convergence-report": {"peers": [peer]},
        "mesh-keys": {"lagging": []},
        "mesh-revocations": {"lagging": []},
        "mesh-ca": {"lagging": []},
        "tls-status": {"ok": True, "enrolment": 1},
        "quarantine-list": {"counts": {}, "keyConflicts": []},
        "diagnosis": {
            "root": "/var/lib/relaymesh",
            "rootPermissions": "0700",
            "rootFileSystem": "ext4",
            "rootIsOnNetwork": False,
            "diskBytes": 100 * 1024**3,
            "openFiles": 40,
            "openFilesMax": 65_536,
            "settings": {
                "minFreeDiskBytes": 0,
                "diskBudgetBytes": 0,
                "doneRetentionMs": 7 * HOUR_MS,
                "deadRetentionMs": 30 * HOUR_MS,
                "attemptRetentionMs": 0,
                "gossipEncryption": True,
            },
            "settingsWithoutEffect": [],
            "agentsMissing": {},
            "waiting": [],
            "deadLettersLately": [],
            "latelyMs": HOUR_MS,
        },
    }


def test_of_a_healthy_mesh_every_check_is_ok():
    results = examine(healthy(), {})

    assert [result.check for result in results] == [check.name for check in CHECKS]
    assert [result for result in results if result.status != "ok" or result.mend or not result.found] == []


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at the end of a path."""
    *keys, last, value = path

    def spoil(answers: Any) -> None:
        for key in keys:
            answers = answers[key]
        answers[last] = value

    return spoil


WAITING = {"stepId": "stp_1", "waitedMs": HOUR_MS, "reason": "nobody-able", "text": "No member can run it."}
SPOILT = [
    ("store", "fail", "commits do not succeed", put("health", "dbOk", False)),
    ("store", "warn", "waits to hear from a peer", put("health", "gateOpen", False)),
    ("store", "fail", "identity conflict", put("health", "problems", ["identity conflict: two"])),
    ("disk", "fail", "less than minFreeDiskBytes", put("health", "diskPressure", True)),
    ("disk", "warn", "twice the database", put("health", "diskFreeBytes", 1000)),
    ("disk", "warn", "ended tasks go soon", put("health", "diskBudgetBytes", 1024**2 + 100)),
    ("disk", "fail", "over its budget", put("health", "diskBudgetBytes", 1024)),
    ("root", "fail", "locks do not hold", put("diagnosis", "rootIsOnNetwork", True)),
    ("root", "warn", "mode 0755", put("diagnosis", "rootPermissions", "0755")),
    ("open-files", "fail", "60000 of 65536", put("diagnosis", "openFiles", 60_000)),
    ("open-files", "warn", "the limit is low", put("diagnosis", "openFilesMax", 256)),
    ("members", "fail", "node-b DEAD for 1h", put("members", 1, "status", "DEAD")),
    ("members", "fail", "failed at once", put("mesh-summary", "reclaimFrozen", True)),
    ("clock", "warn", "2s ahead", put("convergence-report", "peers", 0, "clockOffsetMs", 2_000)),
    ("clock", "fail", "2m behind", put("convergence-report", "peers", 0, "clockOffsetMs", -120_000)),
    ("trust", "warn", "gossip keys: node-b", put("mesh-keys", "lagging", ["node-b"])),
    ("trust", "warn", "CAs: node-b", put("mesh-ca", "lagging", ["node-b"])),
    ("certificate", "fail", "refused", put("tls-status", "ok", False)),
    ("versions", "warn", "1 with 0.1.0, 1 with 0.2.0", put("members", 1, "release", "0.1.0")),
    ("versions", "fail", "upgrade node-b", put("members", 1, "protocolProblem", "upgrade node-b")),
    ("replication", "warn", "timed out", put("convergence-report", "peers", 0, "error", "timed out")),
    ("replication", "fail", "differ from node-b", put("convergence-report", "peers", 0, "differingRanges", 2)),
    ("quarantine", "warn", "2 poison", put("quarantine-list", "counts", {"poison": 2})),
    ("quarantine", "warn", "1 keys", put("quarantine-list", "keyConflicts", [{}])),
    ("agents", "fail", "nobody has resize (3 steps)", put("diagnosis", "agentsMissing", {"resize": 3})),
    ("waiting", "warn", "1 nobody-able", put("diagnosis", "waiting", [WAITING])),
    (
        "dead-letters",
        "warn",
        "4 in the last 1h; most often bill: no",
        put("diagnosis", "deadLettersLately", [{"agentId": "bill", "error": "no", "count": 4}]),
    ),
    ("settings", "warn", "go before successes", put("diagnosis", "settings", "deadRetentionMs", 1)),
    ("settings", "warn", "ever be taken", put("diagnosis", "settings", "minFreeDiskBytes", 10**15)),
    ("settings", "warn", "together", put("diagnosis", "settings", "diskBudgetBytes", 10**15)),
    ("settings", "warn", "longer than any task", put("diagnosis", "settings", "attemptRetentionMs", 10**15)),
    ("settings", "warn", "gossipEncryption is off", put("diagnosis", "settings", "gossipEncryption", False)),
    (
        "settings",
        "warn",
        "nothing reads maxRunningSteps",
        put("diagnosis", "settingsWithoutEffect", ["maxRunningSteps"]),
    ),
]


@pytest.mark.parametrize(("check", "status", "found", "spoil"), SPOILT)
def test_one_trouble_is_found_by_its_check_alone_and_has_a_mend(check, status, found, spoil):
    answers = healthy()
    spoil(answers)

    (result,) = [result for result in examine(answers, {}) if result.status != "ok"]

    assert (result.check, result.status) == (check, status)
    assert found in result.found
    assert result.mend


def test_every_check_has_a_case_in_which_it_is_not_ok():
    assert {check for check, *_ in SPOILT} == {check.name for check in CHECKS}


def test_one_of_several_peers_that_is_away_is_a_warning():
    answers = healthy()
    answers["members"] += [{**answers["members"][1], "nodeId": "node-c", "status": "SUSPECT"}]

    assert [r.status for r in examine(answers, {}) if r.check == "members"] == ["warn"]


def test_rows_that_lack_are_trouble_only_when_nothing_was_pulled_for_long():
    answers = healthy()
    peer = answers["convergence-report"]["peers"][0]
    peer["missingHere"] = 5
    (on_its_way,) = [r for r in examine(answers, {}) if r.check == "replication"]
    peer["lastPullAgeMs"] = HOUR_MS
    (late,) = [r for r in examine(answers, {}) if r.check == "replication"]

    assert (on_its_way.status, on_its_way.found) == ("ok", "1 peers, 5 rows on their way")
    assert (late.status, late.found.endswith("node-b (here 5, there 0)")) == ("warn", True)


def test_what_could_not_be_asked_is_a_warning_that_says_so():
    answers = healthy()
    del answers["diagnosis"]

    results = [r for r in examine(answers, {"diagnosis": "unknown command 'diagnosis'"}) if r.status != "ok"]

    assert {r.check for r in results} == {c.name for c in CHECKS if "diagnosis" in c.commands}
    assert all("unknown command" in r.found and "upgrade it" in r.mend for r in results)


def serve(fake_node, answers: dict[str, Any]) -> None:
    fake_node.answers.update({"version": {"nodeId": "node-a", "version": "0.2.0"}, **answers})


def test_the_exit_code_is_that_of_the_worst(fake_node, relaymesh):
    answers = healthy()
    serve(fake_node, answers)
    well = relaymesh("--root", fake_node.root, "doctor")
    answers["quarantine-list"]["counts"] = {"poison": 1}
    warned = relaymesh("--root", fake_node.root, "doctor")
    answers["tls-status"]["ok"] = False
    failed = relaymesh("--root", fake_node.root, "doctor", "--json")

    assert (well.code, warned.code, failed.code) == (0, 0, 1)
    assert well.out.splitlines()[0].split() == ["ok", "node", "node-a", "answers,", "release", "0.2.0"]
    assert well.out.endswith(f"{len(CHECKS) + 1} checks: all is well\n")
    assert "mend: relaymesh quarantine list" in warned.out
    assert (failed.json["failed"], failed.json["warnings"], failed.json["ok"]) == (1, 1, False)
    assert failed.json["checks"][0].keys() == {"check", "status", "found", "mend"}
    assert {call["command"] for call in fake_node.calls} == {"version", *COMMANDS}


def test_a_node_that_does_not_answer_is_the_finding(fake_node, relaymesh):
    fake_node.answers["version"] = UnavailableError("no node answers")

    ran = relaymesh("--root", fake_node.root, "doctor")

    assert ran.code == 1
    assert ran.out.startswith("fail  node  no node answers\n")


def test_an_older_node_is_told_of_as_far_as_it_answers(fake_node, relaymesh):
    serve(fake_node, copy.deepcopy(healthy()))
    fake_node.answers["diagnosis"] = ConfigError("unknown command 'diagnosis'")

    ran = relaymesh("--root", fake_node.root, "doctor")

    assert ran.code == 0
    assert "could not be looked at: unknown command" in ran.out

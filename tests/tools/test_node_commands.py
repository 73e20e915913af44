"""Goal: each command about nodes asks what it should. Method: a scripted node."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["members"], {}),
        (["mesh-summary"], {}),
        (["agents"], {}),
        (["stats"], {}),
        (["bootstrap-from", "node-b"], {"peer": "node-b"}),
        (["cluster-state"], {}),
        (["maintenance"], {}),
        (["mesh-recover", "--limit", "5"], {"limit": 5}),
        (["ownership-events"], {"limit": 100, "sinceHours": 24}),
        (["ownership-events", "--task", "t", "--since-hours", "2"], {"limit": 100, "sinceHours": 2, "taskId": "t"}),
        (["lease-conflicts", "--limit", "1"], {"limit": 1, "sinceHours": 24}),
        (["cluster-epoch-bump", "--reason", "r", "--actor", "me"], {"reason": "r", "actor": "me"}),
    ],
)
def test_commands_carry_their_options_and_show_the_answer(fake_node, relaymesh, command, expected):
    answer = [{"nodeId": "node-a", "status": "ALIVE", "extra": 1}]
    fake_node.answers[command[0]] = answer

    plain = relaymesh("--root", fake_node.root, *command)
    as_json = relaymesh("--root", fake_node.root, *command, "--json")

    assert (plain.code, as_json.code) == (0, 0)
    assert [call["args"] for call in fake_node.calls] == [expected, expected]
    assert "node-a" in plain.out
    assert as_json.json == answer


def test_an_epoch_is_bumped_in_the_name_of_the_user(fake_node, relaymesh, monkeypatch):
    monkeypatch.setenv("LOGNAME", "alice")
    fake_node.answers["cluster-epoch-bump"] = {"currentEpoch": 2}

    relaymesh("--root", fake_node.root, "cluster-epoch-bump")

    assert fake_node.args("cluster-epoch-bump") == {"reason": "manual", "actor": "alice"}


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_health_is_the_exit_code(fake_node, relaymesh, ok, code):
    fake_node.answers["health"] = {"ok": ok, "dbOk": ok}

    assert relaymesh("--root", fake_node.root, "health").code == code


def test_limits_outside_their_range_are_refused(fake_node, relaymesh):
    for options in (["--limit", "0"], ["--limit", "5001"], ["--since-hours", "0"], ["--limit", "x"]):
        ran = relaymesh("--root", fake_node.root, "lease-conflicts", *options)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert fake_node.calls == []


def test_members_that_are_well_fit_eighty_columns_and_trouble_is_shown_beside_them(fake_node, relaymesh):
    well = {"status": "ALIVE", "effectiveStatus": "ALIVE", "storeFailed": False, "accusers": [], "labels": {}}
    addresses = {"address": "192.168.100.101:17888", "rpcAddress": "192.168.100.101:18443", "updatedAtMs": 1}
    fake_node.answers["members"] = [{"nodeId": "node-a", **well, **addresses}]
    whole = relaymesh("--root", fake_node.root, "members").out
    fake_node.answers["members"] = [
        {"nodeId": "node-a", **well, **addresses},
        {"nodeId": "node-b", **well, **addresses, "effectiveStatus": "DEAD", "storeFailed": True},
        {"nodeId": "node-c", **well, "status": "SUSPECT", "accusers": [{"nodeId": "node-a", "reason": "probe"}]},
    ]
    troubled = relaymesh("--root", fake_node.root, "members").out

    assert max(map(len, whole.splitlines())) <= 80
    assert whole.split()[:4] == ["NODE_ID", "STATUS", "ADDRESS", "RPC_ADDRESS"]
    assert troubled.splitlines()[0].split()[4:] == ["EFFECTIVE_STATUS", "STORE_FAILED", "ACCUSERS"]
    assert troubled.splitlines()[2].split()[4:] == ["DEAD", "yes", "-"]
    assert troubled.splitlines()[3].endswith("node-a (probe)")


def test_members_show_their_release_and_protocol_and_a_problem_only_where_there_is_one(fake_node, relaymesh):
    ours = {"nodeId": "a", "status": "ALIVE", "effectiveStatus": "ALIVE", "release": "0.2.0", "protocol": "1 to 2"}
    other = {**ours, "nodeId": "b", "release": "9.1", "protocol": "7"}
    fake_node.answers["members"] = [{**ours, "protocolProblem": None}, other]
    shown = relaymesh("--root", fake_node.root, "members").out
    assert shown.splitlines()[0].split() == ["NODE_ID", "STATUS", "RELEASE", "PROTOCOL"]
    assert "0.2.0" in shown

    fake_node.answers["members"] = [ours, {**other, "protocolProblem": "b speaks protocol 7, and this node 1 to 2"}]
    shown = relaymesh("--root", fake_node.root, "members").out
    assert "PROTOCOL_PROBLEM" in shown
    assert "b speaks protocol 7, and this node 1 to 2" in shown

"""Goal: each schedule command asks what it should, and `next` needs no node. Method: a scripted node."""

from __future__ import annotations

import json

import pytest

STORED = {"name": "nightly", "state": "ACTIVE", "cron": "30 3 * * *", "timeZone": "Europe/Berlin", "nextUtc": "x"}


def test_add_sends_one_step_for_an_agent(fake_node, relaymesh):
    fake_node.answers["schedule-add"] = STORED
    ran = relaymesh(
        *("--root", fake_node.root, "schedule", "add", "nightly", "--cron", "30 3 * * *", "--tz", "Europe/Berlin"),
        *("--agent", "backup", "--input", "/srv"),
    )

    assert ran.code == 0
    assert fake_node.args("schedule-add") == {
        "name": "nightly",
        "cron": "30 3 * * *",
        "timeZone": "Europe/Berlin",
        "catchUp": "latest",
        "definition": {"steps": [{"id": "backup", "agent": "backup", "input": "/srv"}]},
    }


def test_a_group_without_a_command_says_so_in_one_line(relaymesh):
    for group in ("schedule", "quarantine"):
        ran = relaymesh(group)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == f"relaymesh: Missing command; see `relaymesh {group} --help`\n"


def test_add_sends_a_workflow_as_it_is_and_says_that_it_replaces(fake_node, relaymesh, tmp_path):
    fake_node.answers["schedule-add"] = STORED
    file = tmp_path / "workflow.json"
    workflow = {"steps": [{"id": "a", "agent": "x"}, {"id": "b", "agent": "y", "dependsOn": ["a"]}]}
    file.write_text(json.dumps(workflow))
    command = ("schedule", "add", "n", "--cron", "@daily", "--file", file, "--catch-up", "all", "--replace")

    assert relaymesh("--root", fake_node.root, *command).code == 0
    args = fake_node.args("schedule-add")
    assert (args["definition"], args["catchUp"], args["replace"]) == (workflow, "all", True)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--agent", "a", "--file", "f.json"],
        ["--file", "f.json", "--input", "x"],
        ["--agent", "a", "--catch-up", "no"],
    ],
)
def test_a_mistaken_add_asks_nobody(fake_node, relaymesh, options):
    ran = relaymesh("--root", fake_node.root, "schedule", "add", "n", "--cron", "@daily", *options)
    assert (ran.code, ran.err.count("\n"), fake_node.calls) == (2, 1, [])


def test_the_list_tells_of_a_hold_and_of_a_wrong_clock(fake_node, relaymesh):
    fake_node.answers["schedule-list"] = {"schedules": [STORED], "held": True, "clockProblem": "it is an hour late"}
    ran = relaymesh("--root", fake_node.root, "schedule", "list")

    assert ran.code == 0
    for text in ("nightly", "30 3 * * *", "Europe/Berlin", "the mesh is held", "it is an hour late"):
        assert text in ran.out


@pytest.mark.parametrize("verb", ["show", "remove", "pause", "resume"])
def test_the_others_name_the_schedule(fake_node, relaymesh, verb):
    fake_node.answers[f"schedule-{verb}"] = STORED
    assert relaymesh("--root", fake_node.root, "schedule", verb, "nightly").code == 0
    assert fake_node.args(f"schedule-{verb}") == {"name": "nightly"}


def test_next_asks_for_a_stored_one_and_works_out_another_by_itself(fake_node, relaymesh):
    fake_node.answers["schedule-next"] = {"name": "nightly", "slots": [{"local": "l", "utc": "u"}]}
    assert relaymesh("--root", fake_node.root, "schedule", "next", "nightly", "--count", "1").code == 0
    assert fake_node.args("schedule-next") == {"name": "nightly", "count": 1}

    ran = relaymesh("schedule", "next", "--cron", "30 2 * * *", "--tz", "Asia/Kolkata", "--count", "2", "--json")
    answer = json.loads(ran.out)
    assert (answer["cron"], answer["timeZone"], len(answer["slots"])) == ("30 2 * * *", "Asia/Kolkata", 2)
    assert [slot["utc"][10:] for slot in answer["slots"]] == ["T21:00:00Z"] * 2
    assert [slot["local"][10:] for slot in answer["slots"]] == ["T02:30:00+05:30"] * 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "either the NAME"),
        (["n", "--cron", "@daily"], "either the NAME"),
        (["n", "--tz", "UTC"], "--tz is for --cron"),
        (["--cron", "* 25 * * *"], "the field hour cannot be '25'"),
        (["--cron", "@daily", "--tz", "Nowhere"], "time zone 'Nowhere'"),
    ],
)
def test_a_mistaken_next_is_one_error(relaymesh, options, told):
    ran = relaymesh("schedule", "next", *options)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert told in ran.err

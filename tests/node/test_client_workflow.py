"""The workflow builder: the definition that it makes, and the mistakes that it finds while one is built."""

from __future__ import annotations

import pytest

from node.agents import api
from node.agents.api import agent
from node.client.workflow import Workflow
from node.work.definition import Limits, parse_workflow


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch):
    monkeypatch.setattr(api, "registered", {})


def test_it_makes_the_json_of_a_workflow_file():
    @agent("fetch-file")
    def fetch(name: str) -> str:
        return name

    wf = Workflow("nightly")
    a, b = wf.step(fetch, "a.csv", id="a"), wf.step(fetch, {"name": "b"}, id="b", node="pump-3", labels={"x": "y"})
    wf.step("merge", parents=[a, b, a], id="m", priority="low", timeout_s=0.5, max_attempts=2, on_partition="wait")

    assert wf.definition() == {
        "steps": [
            {"id": "a", "agent": "fetch-file", "input": "a.csv", "priority": "normal", "dependsOn": []},
            {
                "id": "b",
                "agent": "fetch-file",
                "input": '{"name":"b"}',
                "priority": "normal",
                "node": "pump-3",
                "labels": {"x": "y"},
                "dependsOn": [],
            },
            {
                "id": "m",
                "agent": "merge",
                "input": "",
                "priority": "low",
                "timeoutMs": 500,
                "maxAttempts": 2,
                "onPartition": "wait",
                "dependsOn": ["a", "b"],
            },
        ]
    }
    steps = parse_workflow(wf.definition(), Limits()).steps
    assert [(step.name, step.depends_on, step.waits) for step in steps][2] == ("m", ("a", "b"), True)


def test_without_an_id_a_step_has_its_agent_s_name_and_a_free_number():
    wf = Workflow("w")
    wf.step("echo", id="echo-2")

    assert [wf.step("echo").id for _ in range(3)] == ["echo", "echo-3", "echo-4"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"id": "a"}, "has a step 'a' already"),
        ({"id": ""}, "'id' must be a text"),
        ({"priority": "urgent"}, "priority 'urgent'"),
        ({"max_attempts": -1}, "'maxAttempts'"),
        ({"node": "no node"}, "no node"),
        ({"input": b"\xff"}, "no UTF-8 text"),
        ({"parents": ["a"]}, "'a' is no step of workflow 'w'"),
        ({"parents": [Workflow("other").step("echo", id="a")]}, "is no step of workflow 'w'"),
    ],
)
def test_a_mistake_is_a_value_error_at_once_and_adds_nothing(options, told):
    wf = Workflow("w")
    wf.step("echo", id="a")

    with pytest.raises(ValueError, match=told):
        wf.step("echo", **options)
    assert [step["id"] for step in wf.definition()["steps"]] == ["a"]


def test_an_unknown_option_is_told_with_the_known_ones():
    with pytest.raises(TypeError, match="unknown option 'key': the options are priority, node"):
        Workflow("w").step("echo", key="k")


def test_what_comes_out_cannot_change_the_workflow():
    wf = Workflow("w")
    wf.step("echo", id="a")
    wf.definition()["steps"][0]["id"] = "b"

    assert wf.definition()["steps"][0]["id"] == "a"

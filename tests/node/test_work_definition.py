"""What may be asked for: every refusal names its place, and the same wish always has the same identity."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError, LimitError
from node.work.definition import (
    ATTEMPTS_MAX,
    LABELS_MAX,
    STEP_NAME_CHARS_MAX,
    TIMEOUT_MS_MAX,
    Limits,
    StepDefinition,
    parse_labels,
    parse_pin,
    parse_priority,
    parse_workflow,
    single,
    step_id,
    task_ids,
)

LIMITS = Limits(steps_max=5, payload_bytes_max=100, submit_bytes_max=250)


def parse(*steps):
    return parse_workflow({"steps": list(steps)}, LIMITS)


def test_a_workflow_is_read_with_all_its_fields():
    definition = parse(
        {"id": "a", "agent": "echo", "input": {"n": 1}},
        {
            "id": "b",
            "agent": "other",
            "input": "text",
            "priority": "high",
            "dependsOn": ["a", "a"],
            "timeoutMs": 5000,
            "maxAttempts": 7,
            "node": "node-a",
            "labels": {"site": "north"},
        },
    )
    a, b = definition.steps
    assert a == StepDefinition(name="a", agent="echo", payload=b'{"n":1}', labels={})
    assert (b.priority, b.depends_on, b.timeout_ms, b.max_attempts) == (0, ("a",), 5000, 7)
    assert (b.node, b.labels) == ("node-a", {"site": "north"})
    assert definition.agents() == ["echo", "other"]
    assert definition.dependents() == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "a workflow is a JSON object"),
        ({"steps": {}}, "a workflow is a JSON object"),
        ({"steps": []}, "'steps' is empty"),
        ({"steps": [], "name": "x"}, "unknown key 'name'"),
        ({"steps": ["a"]}, "step 1: must be a JSON object"),
        ({"steps": [{"agent": "echo"}]}, "step 1: 'id' must be a text"),
        ({"steps": [{"id": "a"}]}, "step 'a': 'agent' must be a text"),
        ({"steps": [{"id": "a", "agent": "echo", "dependOn": []}]}, "unknown key 'dependOn'; did you mean 'dependsOn'"),
        ({"steps": [{"id": "a", "agent": "echo", "zzz": 1}]}, "unknown key 'zzz'; known keys: id, agent"),
        ({"steps": [{"id": "a", "agent": "echo", "dependsOn": "b"}]}, "'dependsOn' must be a list"),
        ({"steps": [{"id": "a", "agent": "echo", "dependsOn": ["b"]}]}, "depends on 'b', which is not a step"),
        (
            {"steps": [{"id": "first", "agent": "e"}, {"id": "b", "agent": "e", "dependsOn": ["frist"]}]},
            "did you mean 'first'",
        ),
        ({"steps": [{"id": "a", "agent": "e"}, {"id": "a", "agent": "e"}]}, "id 'a' is used twice"),
        ({"steps": [{"id": "a", "agent": "e", "dependsOn": ["a"]}]}, "circle: a -> a"),
        ({"steps": [{"id": "a", "agent": "e", "priority": "urgent"}]}, "'urgent' is not one of high, normal, low"),
        ({"steps": [{"id": "a", "agent": "e", "onFailure": "stop"}]}, "'stop' is not one of block, continue"),
        ({"steps": [{"id": "a", "agent": "e", "timeoutMs": -1}]}, "'timeoutMs' must be a whole number from 0"),
        ({"steps": [{"id": "a", "agent": "e", "timeoutMs": True}]}, "'timeoutMs' must be a whole number"),
        ({"steps": [{"id": "a", "agent": "e", "node": 3}]}, "'node' must be a node id"),
        ({"steps": [{"id": "a", "agent": "e", "labels": {"x": 1}}]}, "'labels' must be an object of strings"),
    ],
)
def test_a_workflow_that_cannot_be_used_is_refused_with_its_place(document, message):
    with pytest.raises(ConfigError) as caught:
        parse_workflow(document, LIMITS)
    assert message in str(caught.value)


def test_a_circle_is_told_step_by_step():
    steps = [
        {"id": "start", "agent": "e"},
        {"id": "a", "agent": "e", "dependsOn": ["start", "c"]},
        {"id": "b", "agent": "e", "dependsOn": ["a"]},
        {"id": "c", "agent": "e", "dependsOn": ["b"]},
        {"id": "end", "agent": "e", "dependsOn": ["c"]},
    ]
    with pytest.raises(ConfigError, match=r"circle: a -> c -> b -> a"):
        parse(*steps)


def test_limits_hold_at_the_limit_and_refuse_one_past_it():
    def chain(count):
        return [{"id": str(n), "agent": "e", "dependsOn": [str(n - 1)] if n else []} for n in range(count)]

    assert len(parse(*chain(5)).steps) == 5
    with pytest.raises(LimitError, match="6 steps, the limit is 5"):
        parse(*chain(6))
    parse({"id": "a", "agent": "e", "input": "x" * 100})
    with pytest.raises(LimitError, match="101 bytes, the limit is 100"):
        parse({"id": "a", "agent": "e", "input": "x" * 101})
    parse(*({"id": str(n), "agent": "e", "input": "x" * size} for n, size in enumerate((100, 100, 50))))
    with pytest.raises(LimitError, match="251 bytes together, the limit is 250"):
        parse(*({"id": str(n), "agent": "e", "input": "x" * size} for n, size in enumerate((100, 100, 51))))
    parse({"id": "n" * STEP_NAME_CHARS_MAX, "agent": "e"})
    with pytest.raises(ConfigError, match="1 to 128 characters"):
        parse({"id": "n" * (STEP_NAME_CHARS_MAX + 1), "agent": "e"})
    parse({"id": "a", "agent": "e", "timeoutMs": TIMEOUT_MS_MAX, "maxAttempts": ATTEMPTS_MAX})
    for name, value in (("timeoutMs", TIMEOUT_MS_MAX + 1), ("maxAttempts", ATTEMPTS_MAX + 1)):
        with pytest.raises(ConfigError, match=name):
            parse({"id": "a", "agent": "e", name: value})
    assert len(parse_labels({str(n): "x" for n in range(LABELS_MAX)}, "here")) == LABELS_MAX
    with pytest.raises(LimitError, match="33 labels, the limit is 32"):
        parse_labels({str(n): "x" for n in range(LABELS_MAX + 1)}, "here")


def test_a_thousand_steps_in_one_chain_are_no_problem():
    steps = [{"id": str(n), "agent": "e", "dependsOn": [str(n - 1)] if n else []} for n in range(1000)]
    assert len(parse_workflow({"steps": steps}, Limits()).steps) == 1000
    steps[0]["dependsOn"] = ["999"]
    with pytest.raises(ConfigError, match="circle"):
        parse_workflow({"steps": steps}, Limits())


def test_priorities_and_pins_by_name():
    assert [parse_priority(name, "x") for name in ("high", "normal", "low")] == [0, 1, 2]
    assert parse_pin(None, "x") is None
    with pytest.raises(ConfigError, match="node id"):
        parse_pin("no spaces", "x")


@st.composite
def dags(draw):
    """Steps that may depend on earlier ones only."""
    count = draw(st.integers(1, 8))
    return [
        {
            "id": f"s{index}",
            "agent": draw(st.sampled_from(["echo", "other"])),
            "input": draw(st.text(max_size=5)),
            "dependsOn": draw(st.lists(st.sampled_from([f"s{n}" for n in range(index)]), unique=True)) if index else [],
        }
        for index in range(count)
    ]


@given(dags(), st.randoms(use_true_random=False))
def test_the_order_of_writing_changes_no_identity(steps, rng):
    definition = parse_workflow({"steps": steps}, Limits())
    shuffled = [dict(step, dependsOn=rng.sample(step["dependsOn"], len(step["dependsOn"]))) for step in steps]
    rng.shuffle(shuffled)
    again = parse_workflow({"steps": shuffled}, Limits())

    assert again.digest == definition.digest
    assert again.task_id("default", "k") == definition.task_id("default", "k")
    assert sum(definition.dependents().values()) == sum(len(step["dependsOn"]) for step in steps)


@given(dags(), st.data())
def test_any_back_edge_is_a_circle_and_any_change_another_identity(steps, data):
    definition = parse_workflow({"steps": steps}, Limits())
    changed = [dict(step) for step in steps]
    index = data.draw(st.integers(0, len(steps) - 1))
    changed[index]["input"] += "!"
    assert parse_workflow({"steps": changed}, Limits()).digest != definition.digest

    child = random.Random(index).choice(changed)
    child["dependsOn"] = [*child["dependsOn"], child["id"]]
    with pytest.raises(ConfigError, match=f"{child['id']} -> "):
        parse_workflow({"steps": changed}, Limits())


@given(st.text(max_size=8), st.text(max_size=8), st.binary(max_size=8), st.binary(max_size=8))
def test_the_tasks_of_one_key_and_of_no_other_lie_between_its_bounds(key, other, payload, another):
    ids = [
        single(StepDefinition(name="a", agent="echo", payload=each, labels={}), Limits()).task_id("default", key)
        for each in (payload, another)
    ]
    low, high = task_ids("default", key)
    assert all(low <= each <= high for each in ids)
    assert (ids[0] == ids[1]) == (payload == another)
    if other != key:
        low, high = task_ids("default", other)
        assert not any(low <= each <= high for each in ids)


def test_ids_of_steps_depend_on_task_and_name_only():
    one = single(StepDefinition(name="a", agent="echo", labels={}), Limits())
    assert step_id("tsk_1", "a") == step_id("tsk_1", "a") != step_id("tsk_2", "a")
    assert one.task_id("default", "k") != one.task_id("default", "k2")

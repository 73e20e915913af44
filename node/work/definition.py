"""What a client asks for: a task is a DAG of steps, checked as a whole before anything is stored.

The identity of a task comes from its namespace, its key and its canonical definition, so the same submit at two nodes
that cannot hear each other makes the same task, and so do all of its steps.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mesh.errors import ConfigError, LimitError
from mesh.ids import content_id, parse_node_id
from mesh.support import ROSTER_MAX, ROSTER_MIN
from node.work.tables import PRIORITIES

STEP_NAME_CHARS_MAX = 128
KEY_CHARS_MAX = 256
LABELS_MAX = 32
TIMEOUT_MS_MAX = 7 * 24 * 3600 * 1000
DELAY_MS_MAX = 366 * 24 * 3600 * 1000
"""Of delays and expiries. Rules for rows of peers use it too: a stamp must have room for what comes of it."""
NOT_BEFORE_MS_MAX = 1 << 47
"""The year 6429: whatever looks like milliseconds since 1970, and not like another unit."""
ATTEMPTS_MAX = 1000
TASK_OWN_CHARS = 16
"""How many of a task id's 32 hex digits are not shared with other tasks of its key."""

_STEP_KEYS = (
    "id",
    "agent",
    "input",
    "priority",
    "dependsOn",
    "timeoutMs",
    "maxAttempts",
    "node",
    "labels",
    "onPartition",
    "onFailure",
    "delayMs",
    "notBeforeMs",
    "expiresMs",
)

PARTITION_POLICIES = ("takeover", "wait")
"""`takeover`: at least once, on both sides of a cut if need be. `wait`: in one place at a time (mesh.support)."""

FAILURE_POLICIES = ("block", "continue")
"""What a step does below a parent that failed. `block`: it waits for a replay of that one. `continue`: it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one submit may ask for. Each has a setting; exceeding one is a LimitError that names it."""

    steps_max: int = 1000
    payload_bytes_max: int = 10 * 1024 * 1024
    submit_bytes_max: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDefinition:
    """One step as asked for. `timeout_ms` 0 takes the agent's or the node's own; so does `max_attempts` 0."""

    name: str
    agent: str
    payload: bytes = b""
    priority: int = 1
    depends_on: tuple[str, ...] = ()
    timeout_ms: int = 0
    max_attempts: int = 0
    node: str | None = None
    labels: Mapping[str, str]
    waits: bool = False
    """On a partition it waits for the majority of its roster, instead of being taken over."""
    continues: bool = False
    """It runs when its parents have ended, without the outputs of those that failed."""
    delay_ms: int = 0
    """It starts so long after its submit, at the earliest."""
    not_before_ms: int = 0
    """The same as a date, in milliseconds since 1970; 0 for none. It becomes a delay when the task is stored."""
    expires_ms: int = 0
    """What has not begun so long after its submit never begins; 0 for never."""

    def __post_init__(self) -> None:
        if self.delay_ms and self.not_before_ms:
            raise ConfigError(f"step {self.name!r}: give delayMs or notBeforeMs, not both")
        if 0 < self.expires_ms <= self.delay_ms:
            raise ConfigError(
                f"step {self.name!r}: expiresMs ({self.expires_ms}) must be longer than delayMs ({self.delay_ms}), or "
                "it could never start"
            )

    def canonical(self) -> list[Any]:
        """Everything that makes this step what it is, in a fixed order."""
        asked = [
            self.name,
            self.agent,
            self.payload,
            self.priority,
            sorted(self.depends_on),
            self.timeout_ms,
            self.max_attempts,
            self.node,
            sorted(self.labels.items()),
        ]
        # Only where it was asked for: the same submit must be the same task at a node of an older release.
        if self.waits:
            asked.append("wait")
        if self.continues:
            asked.append("continue")
        # A date as it was asked for, not the delay that came of it: the same submit a second later is the same task.
        times = (("delay", self.delay_ms), ("not-before", self.not_before_ms), ("expires", self.expires_ms))
        return [*asked, *([name, value] for name, value in times if value)]

    def delay_at(self, now_ms: int) -> int:
        """The delay of a submit at this time. ConfigError when the step could then never start, or not for a year."""
        delay_ms = max(0, self.not_before_ms - now_ms) if self.not_before_ms else self.delay_ms
        if delay_ms > DELAY_MS_MAX:
            raise ConfigError(f"step {self.name!r}: notBeforeMs is more than 366 days ahead of this node's clock")
        if 0 < self.expires_ms <= delay_ms:
            raise ConfigError(
                f"step {self.name!r}: notBeforeMs is {delay_ms} ms ahead, and expiresMs ({self.expires_ms}) must be "
                "longer than that, or it could never start"
            )
        return delay_ms


@dataclass(frozen=True, slots=True)
class Definition:
    """A checked DAG: at least one step, unique names, every dependency known, no cycle."""

    steps: tuple[StepDefinition, ...]
    digest: str = field(init=False, compare=False)
    """Equal for definitions that ask for the same, whatever order their steps or dependencies were written in."""

    def __post_init__(self) -> None:
        # Names are unique, so sorting never compares further than those.
        canonical = msgspec.msgpack.encode(sorted(step.canonical() for step in self.steps))
        object.__setattr__(self, "digest", content_id("def", canonical))

    def task_id(self, namespace: str, key: str) -> str:
        """The id that every node gives this submit: a hash of namespace and key, then one of the definition too.

        So all tasks of one key stand side by side in the index of ids, which therefore serves as that of keys. Another
        index would be a further page to write for every submit, since keys are random.
        """
        asked = namespace.encode(), key.encode()
        own = content_id("tsk", *asked, self.digest.encode())
        return content_id("tsk", *asked)[:-TASK_OWN_CHARS] + own[-TASK_OWN_CHARS:]

    def agents(self) -> list[str]:
        """The agents that the steps name, each once, in order of appearance."""
        return list(dict.fromkeys(step.agent for step in self.steps))

    def dependents(self) -> dict[str, int]:
        """How many steps wait directly for each step."""
        count = {step.name: 0 for step in self.steps}
        for step in self.steps:
            for name in step.depends_on:
                count[name] += 1
        return count


def task_ids(namespace: str, key: str) -> tuple[str, str]:
    """The bounds, both included, between which lie the ids of all tasks with this key."""
    shared = content_id("tsk", namespace.encode(), key.encode())[:-TASK_OWN_CHARS]
    return shared + "0" * TASK_OWN_CHARS, shared + "f" * TASK_OWN_CHARS


def step_id(task_id: str, name: str) -> str:
    """The id that every node gives this step."""
    return content_id("stp", task_id.encode(), name.encode())


def single(step: StepDefinition, limits: Limits) -> Definition:
    """The definition of a task with one step."""
    return _checked([step], limits)


def parse_workflow(document: Any, limits: Limits) -> Definition:
    """Read `{"steps": [{"id", "agent", "input", "priority", "dependsOn", …}]}`.

    ConfigError names the step and what is wrong with it; LimitError names the limit. Nothing is stored before this.
    """
    if not isinstance(document, dict) or not isinstance(document.get("steps"), list):
        raise ConfigError('a workflow is a JSON object {"steps": [{"id": …, "agent": …, "dependsOn": […]}, …]}')
    unknown = sorted(set(document) - {"steps"})
    if unknown:
        raise ConfigError(f"workflow: unknown key {unknown[0]!r}; the only key is 'steps'")
    if len(document["steps"]) > limits.steps_max:
        raise LimitError(
            f"workflow has {len(document['steps'])} steps, the limit is {limits.steps_max} (setting stepsPerTaskMax): "
            "split it into several tasks"
        )
    steps = enumerate(document["steps"])
    return _checked([_parse_step(f"workflow step {index + 1}", step) for index, step in steps], limits)


def parse_task(document: Mapping[str, Any], place: str, limits: Limits) -> Definition:
    """Read one task of a batch: a workflow `{"steps": […]}`, or a single step, which is called like its agent.

    A single step has the keys of a workflow's, without `id` and `dependsOn`. Errors as of `parse_workflow`.
    """
    if "steps" in document:
        return parse_workflow(document, limits)
    for key in ("id", "dependsOn"):
        if key in document:
            raise ConfigError(f"{place}: {key!r} is for a step of a workflow; give 'steps', or leave it out")
    agent = _text(document, "agent", place)
    return _checked([_parse_step(place, {**document, "id": agent}, alone=True)], limits)


def _parse_step(place: str, document: Any, *, alone: bool = False) -> StepDefinition:
    if not isinstance(document, dict):
        raise ConfigError(f"{place}: must be a JSON object with 'id' and 'agent'")
    for key in document:
        if key not in _STEP_KEYS:
            near = difflib.get_close_matches(str(key), _STEP_KEYS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(_STEP_KEYS)}"
            raise ConfigError(f"{place}: unknown key {key!r}{hint}")
    name = _text(document, "id", place)
    place = place if alone else f"workflow step {name!r}"
    payload = document.get("input", "")
    depends = document.get("dependsOn", [])
    if not isinstance(depends, list) or not all(isinstance(item, str) for item in depends):
        raise ConfigError(f"{place}: 'dependsOn' must be a list of step ids")
    return StepDefinition(
        name=name,
        agent=_text(document, "agent", place),
        payload=payload.encode() if isinstance(payload, str) else json.dumps(payload, separators=(",", ":")).encode(),
        priority=parse_priority(document.get("priority", "normal"), place),
        depends_on=tuple(dict.fromkeys(depends)),
        timeout_ms=_whole(document, "timeoutMs", place, TIMEOUT_MS_MAX),
        max_attempts=_whole(document, "maxAttempts", place, ATTEMPTS_MAX),
        node=parse_pin(document.get("node"), place),
        labels=parse_labels(document.get("labels", {}), place),
        waits=parse_partition_policy(document.get("onPartition", "takeover"), place),
        continues=_parse_failure_policy(document.get("onFailure", "block"), place),
        delay_ms=_whole(document, "delayMs", place, DELAY_MS_MAX),
        not_before_ms=_whole(document, "notBeforeMs", place, NOT_BEFORE_MS_MAX),
        expires_ms=_whole(document, "expiresMs", place, DELAY_MS_MAX),
    )


def parse_priority(value: Any, place: str) -> int:
    """`high`, `normal` or `low` as the number that steps store."""
    if value not in PRIORITIES:
        raise ConfigError(f"{place}: priority {value!r} is not one of {', '.join(PRIORITIES)}")
    return PRIORITIES.index(value)


def parse_partition_policy(value: Any, place: str) -> bool:
    """Whether the step waits on a partition; ConfigError for anything but `takeover` and `wait`."""
    if value not in PARTITION_POLICIES:
        raise ConfigError(f"{place}: onPartition {value!r} is not one of {', '.join(PARTITION_POLICIES)}")
    return bool(value == "wait")


def _parse_failure_policy(value: Any, place: str) -> bool:
    if value not in FAILURE_POLICIES:
        raise ConfigError(f"{place}: onFailure {value!r} is not one of {', '.join(FAILURE_POLICIES)}")
    return bool(value == "continue")


def check_roster(definition: Definition, members: Sequence[str]) -> list[str]:
    """The roster of the steps that wait on a partition: all members, in order; empty when no step does.

    ConfigError when they are too few for a majority to mean anything, LimitError when they are too many.
    """
    waiting = [step.name for step in definition.steps if step.waits]
    if not waiting:
        return []
    if len(members) < ROSTER_MIN:
        raise ConfigError(
            f"step {waiting[0]!r} asks for onPartition=wait, and this node knows {len(members)} member(s) "
            f"({', '.join(sorted(members))}): a majority needs {ROSTER_MIN} at least. Start more nodes, or submit it "
            "with onPartition=takeover"
        )
    if len(members) > ROSTER_MAX:
        raise LimitError(
            f"step {waiting[0]!r} asks for onPartition=wait in a mesh of {len(members)} members, the limit is "
            f"{ROSTER_MAX}: submit it with onPartition=takeover"
        )
    return sorted(members)


def parse_pin(value: Any, place: str) -> str | None:
    """The one node that may run a step, or None for any."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ConfigError(f"{place}: 'node' must be a node id")
    return parse_node_id(value)


def parse_labels(value: Any, place: str) -> dict[str, str]:
    """Labels that a node must carry, all of them."""
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ConfigError(f'{place}: \'labels\' must be an object of strings, like {{"site": "north"}}')
    if len(value) > LABELS_MAX:
        raise LimitError(f"{place}: {len(value)} labels, the limit is {LABELS_MAX}")
    return dict(value)


def _text(document: Mapping[str, Any], key: str, place: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= STEP_NAME_CHARS_MAX:
        raise ConfigError(f"{place}: {key!r} must be a text of 1 to {STEP_NAME_CHARS_MAX} characters")
    return value


def _whole(document: Mapping[str, Any], key: str, place: str, largest: int) -> int:
    value = document.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise ConfigError(f"{place}: {key!r} must be a whole number from 0 to {largest}")
    return value


def _checked(steps: list[StepDefinition], limits: Limits) -> Definition:
    if not steps:
        raise ConfigError("workflow: 'steps' is empty; give at least one step")
    names: dict[str, StepDefinition] = {}
    for step in steps:
        if step.name in names:
            raise ConfigError(f"workflow: step id {step.name!r} is used twice; ids must be unique")
        names[step.name] = step
    for step in steps:
        for name in step.depends_on:
            if name not in names:
                near = difflib.get_close_matches(name, list(names), 1)
                raise ConfigError(
                    f"workflow step {step.name!r}: depends on {name!r}, which is not a step"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                )
    _check_sizes(steps, limits)
    cycle = _find_cycle(names) if any(step.depends_on for step in steps) else None
    if cycle:
        raise ConfigError(f"workflow: steps depend on each other in a circle: {' -> '.join(cycle)}")
    return Definition(tuple(steps))


def _check_sizes(steps: Iterable[StepDefinition], limits: Limits) -> None:
    total = 0
    for step in steps:
        total += len(step.payload)
        if len(step.payload) > limits.payload_bytes_max:
            raise LimitError(
                f"step {step.name!r}: its input has {len(step.payload):,} bytes, the limit is "
                f"{limits.payload_bytes_max:,} (setting payloadMaxBytes): pass a path or an address instead"
            )
    if total > limits.submit_bytes_max:
        raise LimitError(
            f"the inputs of this submit have {total:,} bytes together, the limit is {limits.submit_bytes_max:,} "
            "(setting submitMaxBytes): split it into several tasks"
        )


def _find_cycle(steps: Mapping[str, StepDefinition]) -> list[str] | None:
    """One circle of dependencies, its first name repeated at the end; None when there is none.

    Removes steps without open dependencies until none is left (Kahn); what stays holds a circle. No recursion, since a
    thousand steps may stand in one chain.
    """
    waiting = {name: len(step.depends_on) for name, step in steps.items()}
    dependents: dict[str, list[str]] = {name: [] for name in steps}
    for step in steps.values():
        for name in step.depends_on:
            dependents[name].append(step.name)
    ready = [name for name, count in waiting.items() if count == 0]
    while ready:
        done = ready.pop()
        del waiting[done]
        for name in dependents[done]:
            waiting[name] -= 1
            if waiting[name] == 0:
                ready.append(name)
    if not waiting:
        return None
    path = [next(iter(waiting))]
    while True:
        # Every step left has a dependency that is left too, so this walk must meet itself.
        following = next(name for name in steps[path[-1]].depends_on if name in waiting)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)

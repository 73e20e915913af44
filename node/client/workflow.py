"""Builds the definition of a workflow, step by step; a step names its parents by what `step` returned for them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, Unpack, overload

from mesh.errors import ConfigError
from node.client.agent_names import agent_name
from node.client.options import StepOptions, arguments
from node.client.values import UNTYPED, encode_input, return_type
from node.work.definition import Limits, parse_workflow

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Step(Generic[R_co]):
    """One step of a workflow, for its children to name as a parent. Made by `Workflow.step`.

    >>> wf = Workflow("nightly")
    >>> fetch = wf.step("echo", "a.csv", id="fetch")
    >>> fetch.id
    'fetch'
    """

    workflow: Workflow = field(repr=False)
    id: str
    agent: str


class Workflow:
    """A DAG of steps, for `submit_workflow`. A step runs when its parents have succeeded, and gets their outputs.

    A handler finds the outputs in `ctx.parents`, in bytes, by the parents' ids. The task succeeds when every step has.
    `name` is for people; it is no part of what is submitted.

    >>> @agent("count")
    ... def count(ctx: Context, text: str) -> int:
    ...     return len(text.split())
    >>> @agent("total")
    ... def total(ctx: Context) -> int:
    ...     return sum(int(output) for output in ctx.parents.values())
    >>> wf = Workflow("nightly")
    >>> parts = [wf.step(count, text, id=f"part-{text[0]}") for text in ("a b c", "d e")]
    >>> merge = wf.step(total, parents=parts, id="merge")
    >>> Mesh.memory().submit_workflow(wf).result()
    {'merge': 5}
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._steps: list[dict[str, Any]] = []
        self._types: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Workflow {self.name!r} of {len(self._steps)} steps>"

    @overload
    def step(
        self,
        agent: str,
        input: object = ...,
        *,
        id: str | None = ...,
        parents: Sequence[Step[Any]] = ...,
        **options: Unpack[StepOptions],
    ) -> Step[Any]: ...

    @overload
    def step(
        self,
        agent: Callable[..., Coroutine[Any, Any, R]],
        input: object = ...,
        *,
        id: str | None = ...,
        parents: Sequence[Step[Any]] = ...,
        **options: Unpack[StepOptions],
    ) -> Step[R]: ...

    @overload
    def step(
        self,
        agent: Callable[..., R],
        input: object = ...,
        *,
        id: str | None = ...,
        parents: Sequence[Step[Any]] = ...,
        **options: Unpack[StepOptions],
    ) -> Step[R]: ...

    def step(
        self,
        agent: str | Callable[..., Any],
        input: object = "",  # noqa: A002  (the name that nodes and the command line have for it)
        *,
        id: str | None = None,  # noqa: A002
        parents: Sequence[Step[Any]] = (),
        **options: Unpack[StepOptions],
    ) -> Step[Any]:
        """Add a step that runs `agent`, a decorated function or a name, and return it.

        `id` is 1 to 128 characters; without one it is the agent's name, with `-2`, `-3` and so on behind it when that
        is taken. `input` is text, bytes of UTF-8 text, or anything that JSON can hold. ValueError, with nothing added,
        for an id that is taken, a parent of another workflow, or an option that no node would accept.

        >>> wf = Workflow("nightly")
        >>> first, second = wf.step("echo", "a"), wf.step("echo", {"b": 1})
        >>> third = wf.step("echo", parents=[first, second])
        >>> [step["id"] for step in wf.definition()["steps"]]
        ['echo', 'echo-2', 'echo-3']
        >>> wf.step("echo", id="echo")
        Traceback (most recent call last):
        ValueError: workflow 'nightly' has a step 'echo' already: give each its own id
        """
        name = agent_name(agent)
        step_id = self._free_id(name) if id is None else id
        if step_id in self._types:
            raise ValueError(f"workflow {self.name!r} has a step {step_id!r} already: give each its own id")
        for parent in parents:
            if not isinstance(parent, Step) or parent.workflow is not self:
                raise ValueError(
                    f"{parent!r} is no step of workflow {self.name!r}: parents are what its own step() returned"
                )
        document = {
            "id": step_id,
            "agent": name,
            "input": _text(input),
            "priority": "normal",
            **arguments(options, StepOptions),
            "dependsOn": list(dict.fromkeys(parent.id for parent in parents)),
        }
        try:
            parse_workflow({"steps": [{**document, "dependsOn": []}]}, Limits())
        except ConfigError as error:
            raise ValueError(str(error)) from None
        self._steps.append(document)
        self._types[step_id] = UNTYPED if isinstance(agent, str) else return_type(agent)
        return Step(self, step_id, name)

    def definition(self) -> dict[str, Any]:
        """What is submitted: the JSON of a workflow file, `{"steps": [{"id", "agent", "input", "dependsOn", …}]}`.

        >>> wf = Workflow("nightly")
        >>> fetch = wf.step("echo", "a.csv", id="fetch")
        >>> merge = wf.step("echo", id="merge", parents=[fetch])
        >>> wf.definition()["steps"][1]
        {'id': 'merge', 'agent': 'echo', 'input': '', 'priority': 'normal', 'dependsOn': ['fetch']}
        """
        return {"steps": [dict(step) for step in self._steps]}

    @property
    def result_types(self) -> Mapping[str, Any]:
        """What each step's function says it returns, by step id.

        >>> wf = Workflow("nightly")
        >>> step = wf.step("echo", "x")
        >>> list(wf.result_types)
        ['echo']
        """
        return self._types

    def _free_id(self, name: str) -> str:
        number, free = 1, name
        while free in self._types:
            number += 1
            free = f"{name}-{number}"
        return free


def _text(value: object) -> str:
    try:
        return encode_input(value).decode()
    except UnicodeDecodeError:
        raise ValueError("a workflow is JSON, and cannot hold an input of bytes that are no UTF-8 text") from None

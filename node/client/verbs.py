"""The one body of logic behind the sync and the async client: what is asked of a node, and what its answers mean."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from mesh.errors import UnavailableError
from node.client.agent_names import agent_name
from node.client.options import SubmitOptions, TaskOptions, arguments
from node.client.outcomes import CancelState, StepState, TaskCancelled, TaskFailed, TaskStatus
from node.client.port import Port
from node.client.values import decode_result, encode_input

WAIT_MS = 30_000
"""Longest single question of a wait: a peer that lost the task meanwhile, in a cut, is left for another one then."""
PATIENCE_S = 30.0
"""How long a wait goes on without any answer: nodes restart, and an answer may come from the next one."""

Decode = Callable[[Mapping[str, Any]], Any]
"""From a task's answer to its result."""


async def submit(port: Port, agent: str | Callable[..., Any], payload: object, options: Mapping[str, Any]) -> str:
    """The id of a new task of one step."""
    args = {**arguments(options, SubmitOptions), "agent": agent_name(agent), "input": encode_input(payload)}
    return await _accepted(port, "submit", args)


async def submit_workflow(port: Port, definition: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The id of a new task of many steps."""
    return await _accepted(port, "submit-workflow", {**arguments(options, TaskOptions), "definition": definition})


async def _accepted(port: Port, command: str, args: dict[str, Any]) -> str:
    # Our own key, not the node's: a submit whose answer was lost is sent again, perhaps to another node.
    args.setdefault("idempotencyKey", secrets.token_hex(16))
    answer = await port.ask(command, args)
    return str(answer["taskId"])


async def status(port: Port, task_id: str) -> TaskStatus:
    """What the task is doing."""
    task_status: TaskStatus = (await port.ask("task", {"taskId": task_id}))["status"]
    return task_status


async def wait(port: Port, task_id: str, timeout_s: float | None) -> Mapping[str, Any]:
    """The task, once it has ended. TimeoutError after `timeout_s`."""
    deadline = None if timeout_s is None else port.now() + timeout_s
    heard_at = port.now()
    while True:
        args: dict[str, Any] = {"taskId": task_id}
        if deadline is not None:
            args["timeoutMs"] = max(0, min(WAIT_MS, round((deadline - port.now()) * 1000)))
        try:
            task: Mapping[str, Any] = await port.ask("wait", args)
        except UnavailableError:
            if port.now() - heard_at > PATIENCE_S or (deadline is not None and port.now() >= deadline):
                raise
            continue
        heard_at = port.now()
        if not task["timedOut"]:
            return task
        if deadline is not None and heard_at >= deadline:
            raise TimeoutError(f"task {task_id} is still {task['status']} after {timeout_s} s; it goes on")


async def result(port: Port, task_id: str, timeout_s: float | None, decode: Decode) -> Any:
    """The decoded result. TaskFailed, TaskCancelled, TimeoutError."""
    task = await wait(port, task_id, timeout_s)
    if task["status"] == "DEAD_LETTER":
        raise TaskFailed(task_id, _reason(task))
    if task["status"] == "CANCELLED":
        raise TaskCancelled(task_id, _reason(task))
    return decode(task)


class Watch:
    """Follows the steps of one task."""

    def __init__(self, port: Port, task_id: str) -> None:
        self._port = port
        self._args: dict[str, Any] = {"taskId": task_id}
        self._known: dict[str, StepState] = {}
        self._ended = False

    async def more(self) -> list[StepState] | None:
        """The steps that have changed since the last call, all at the first one; None when the task has ended."""
        if self._ended:
            return None
        task = await self._port.ask("watch", self._args)
        self._args["seen"] = task["version"]
        self._ended = task["ended"]
        changed = [state for state in map(_state, task["steps"]) if self._known.get(state.name) != state]
        self._known.update((state.name, state) for state in changed)
        return changed


async def cancel(port: Port, task_id: str, mode: str, reason: str) -> CancelState:
    """Ask for the end of a task."""
    args = {"taskId": task_id, "mode": mode, **({"reason": reason} if reason else {})}
    state: CancelState = (await port.ask("cancel", args))["state"]
    return state


async def replay(port: Port, task_id: str, step: str | None) -> list[str]:
    """Begin ended steps anew; their names."""
    args = {"taskId": task_id, **({} if step is None else {"step": step})}
    # Twice would be two replays: who asks must find out itself what became of a lost answer.
    return list((await port.ask("replay", args, repeatable=False))["steps"])


def decoder(wanted: Any) -> Decode:
    """Reads the result of a task as one value of this type."""
    return lambda task: decode_result(_content(task), wanted)


def _content(task: Mapping[str, Any]) -> bytes:
    text = task.get("resultPayload")
    return base64.b64decode(task["resultPayloadBase64"]) if text is None else str(text).encode()


def workflow_decoder(types: Mapping[str, Any]) -> Decode:
    """Reads the result of a workflow: the outputs of the steps that no other waits for, by id, each as its own type."""

    def decode(task: Mapping[str, Any]) -> dict[str, Any]:
        content = _content(task)
        if len(task["steps"]) == 1:
            (name,) = types
            return {name: decode_result(content, types[name])}
        fields = decode_result(content, dict[str, str])
        waited_for = {parent for step in task["steps"] for parent in step["dependsOn"]}
        outputs = {}
        for name in types:
            if name not in waited_for:
                raw = fields[name].encode() if name in fields else base64.b64decode(fields[f"{name}Base64"])
                outputs[name] = decode_result(raw, types[name])
        return outputs

    return decode


def _reason(task: Mapping[str, Any]) -> str:
    failed = next((step for step in task["steps"] if step["status"] == task["status"]), None)
    if failed is None or not failed["lastError"]:
        return str(task["lastError"] or "no reason was given")
    if task["status"] == "CANCELLED":
        return str(failed["lastError"])
    return f"step {failed['name']!r} (agent {failed['agentId']}): {failed['lastError']}"


def _state(step: Mapping[str, Any]) -> StepState:
    return StepState(
        name=step["name"],
        agent=step["agentId"],
        status=step["status"],
        blocked=step["blocked"],
        attempt=step["attempt"],
        owner=step["owner"],
        error=step["lastError"],
    )

"""Many tasks in one request and one commit, each judged by itself.

What is wrong with one task is told of that task, and nothing of it is written; the others are stored. Only a limit of
the whole batch, or of the node, refuses all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.errors import ConfigError, LimitError, RelayMeshError
from node.admin.arguments import Arguments
from node.node import Node
from node.storage.transaction import Transaction
from node.streams.rpc_messages import error_code
from node.work import transitions
from node.work.definition import KEY_CHARS_MAX, Definition, Limits, parse_task

BATCH_TASKS_MAX = 1_000
BATCH_STEPS_MAX = 10_000
"""In all. One commit of more would keep other requests waiting for seconds."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One task of a batch, as it was asked for."""

    key: str
    definition: Definition
    trace_id: str


def read_tasks(
    node: Node, args: Arguments, limits: Limits, check_agents: Callable[[Sequence[str]], None]
) -> list[Asked | RelayMeshError]:
    """The tasks of the request in their order, each or what is wrong with it. LimitError when it is too much in all."""
    documents = args.raw("tasks")
    if not isinstance(documents, list) or not documents:
        raise ConfigError('submit-batch: tasks must be a list of objects, like [{"agent": "echo", "input": "hello"}]')
    if len(documents) > BATCH_TASKS_MAX:
        raise LimitError(f"submit-batch: {len(documents)} tasks, the limit is {BATCH_TASKS_MAX}: split them")
    asked = [_read(node, number, document, limits, check_agents) for number, document in enumerate(documents)]
    steps = [step for each in asked if isinstance(each, Asked) for step in each.definition.steps]
    if len(steps) > BATCH_STEPS_MAX:
        raise LimitError(f"submit-batch: {len(steps)} steps in all, the limit is {BATCH_STEPS_MAX}: split them")
    total = sum(len(step.payload) for step in steps)
    if total > limits.submit_bytes_max:
        raise LimitError(
            f"submit-batch: the inputs have {total:,} bytes together, the limit is {limits.submit_bytes_max:,} "
            "(setting submitMaxBytes): split them"
        )
    return asked


def _read(
    node: Node, number: int, document: Any, limits: Limits, check_agents: Callable[[Sequence[str]], None]
) -> Asked | RelayMeshError:
    place = f"task {number + 1}"
    try:
        if not isinstance(document, dict):
            raise ConfigError(f"{place}: must be a JSON object with 'agent', or with 'steps'")
        rest = dict(document)
        key = rest.pop("idempotencyKey", None)
        if key is not None and (not isinstance(key, str) or not 0 < len(key) <= KEY_CHARS_MAX):
            raise ConfigError(f"{place}: 'idempotencyKey' must be a text of 1 to {KEY_CHARS_MAX} characters")
        definition = parse_task(rest, place, limits)
        check_agents(definition.agents())
    except RelayMeshError as error:
        return error
    return Asked(key or node.env.entropy(16).hex(), definition, node.env.entropy(16).hex())


def store_tasks(
    tx: Transaction, *, me: str, namespace: str, asked: Sequence[Asked | RelayMeshError], members: Sequence[str]
) -> list[dict[str, Any]]:
    """Store each task that can be; returns what became of each, in order."""
    return [_store(tx, me, namespace, number, each, members) for number, each in enumerate(asked)]


def _store(
    tx: Transaction, me: str, namespace: str, number: int, each: Asked | RelayMeshError, members: Sequence[str]
) -> dict[str, Any]:
    if isinstance(each, RelayMeshError):
        return _refusal(number, each)
    try:
        # It refuses before it writes anything, so what is caught here leaves nothing of this task behind.
        submitted = transitions.submit(
            tx,
            me=me,
            namespace=namespace,
            key=each.key,
            definition=each.definition,
            trace_id=each.trace_id,
            members=members,
        )
    except RelayMeshError as error:
        return _refusal(number, error)
    return {
        "index": number,
        "taskId": submitted.task_id,
        "deduplicated": submitted.deduplicated,
        "idempotencyKey": each.key,
        "traceId": submitted.trace_id,
    }


def _refusal(number: int, error: RelayMeshError) -> dict[str, Any]:
    return {"index": number, "error": {"code": error_code(error), "message": str(error)}}


def batch_answer(results: Sequence[Mapping[str, Any]], replicated: int, wanted: int) -> dict[str, Any]:
    """The answer to the request."""
    refused = sum("error" in result for result in results)
    repeated = sum(bool(result.get("deduplicated")) for result in results)
    message = f"{len(results) - refused} task(s) accepted, durable at this node"
    if repeated:
        message += f"; {repeated} of them were submitted before"
    if refused:
        message += f"; {refused} refused, each with its error"
    if wanted:
        message += f"; {replicated} of {wanted} replicas"
    return {
        "results": list(results),
        "accepted": len(results) - refused,
        "deduplicated": repeated,
        "refused": refused,
        "replicated": replicated,
        "replicasWanted": wanted,
        "message": message,
    }

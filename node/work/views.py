"""Tasks and steps as the JSON that people and programs read: the field names of the old contract, and some new."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from mesh.errors import NotFoundError
from mesh.fences import Fence
from mesh.ids import content_id
from mesh.rows import Row
from node.storage.reader import Reader
from node.work.payloads import load_payload
from node.work.status import continues, depends_on, is_runnable, roster_of, step_status, task_status, waits
from node.work.tables import PRIORITIES, Status


def payload_fields(name: str, content: bytes) -> dict[str, str]:
    """`{name: text}` when the content is UTF-8, else `{nameBase64: …}`: JSON has no bytes."""
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}Base64": base64.b64encode(content).decode()}


def task_view(reader: Reader, task: Row, steps: Sequence[Row], *, with_steps: bool = True) -> dict[str, Any]:
    """A task with its folded status. `with_steps` adds the steps and the result."""
    status = task_status(task, steps)
    errors = [step.text("last_error") for step in steps if step.text("last_error") and step.rank != Status.SUCCESS.rank]
    view: dict[str, Any] = {
        "taskId": task.key,
        "status": status.value,
        "namespace": task.namespace,
        "idempotencyKey": task.text("idempotency_key"),
        "traceId": task.text("trace_id"),
        "lastError": errors[0] if errors else None,
        "createdAtMs": task.integer("created_hlc") >> 16,
        "updatedAtMs": max(row.hlc for row in (task, *steps)) >> 16,
        "cancelRequested": task.rank > 0,
        "stepCount": task.integer("step_count"),
    }
    if with_steps:
        view.update(task_result(reader, steps) if status is Status.SUCCESS else {"resultPayload": None})
        by_name = {step.text("name"): step for step in steps}
        view["steps"] = [step_view(reader, step, by_name) for step in steps]
    return view


def watched_view(reader: Reader, task: Row, steps: Sequence[Row]) -> dict[str, Any]:
    """A task for who follows it: with its `version`, and whether it has `ended` and no step runs any more."""
    ended = task_status(task, steps).is_terminal and all(step_status(step) is not Status.RUNNING for step in steps)
    return {**task_view(reader, task, steps), "version": task_version(task, steps), "ended": ended}


def task_version(task: Row, steps: Sequence[Row]) -> str:
    """A text that differs whenever any row of the task does."""
    dots = (f"{row.origin.node} {row.origin.incarnation} {row.seq}".encode() for row in (task, *steps))
    return content_id("ver", *dots)


def step_view(reader: Reader, step: Row, by_name: dict[str, Row]) -> dict[str, Any]:
    """One step. `blocked` says that a parent has not succeeded yet; it is derived, never stored."""
    status, roster = step_status(step), roster_of(step)
    return {
        "stepId": step.key,
        "name": step.text("name"),
        "agentId": step.text("agent"),
        "status": status.value,
        "blocked": waits(step) and not is_runnable(step, by_name),
        "owner": step.text("owner"),
        "leaseEpoch": step.lease_epoch,
        "generation": step.generation,
        "clusterEpoch": step.cluster_epoch,
        "fence": Fence.of(step, step.text("owner")).encode(),
        "attempt": step.integer("attempt"),
        "progress": None,  # known to the node that runs it (work.runtime); never stored
        "priority": PRIORITIES[step.integer("priority")],
        "dependsOn": depends_on(step),
        "onFailure": "continue" if continues(step) else "block",
        "node": step.text("pin_node") or None,
        "onPartition": "wait" if roster else "takeover",
        "delayMs": step.integer("delay_ms"),
        "expiresMs": step.integer("expires_ms"),
        "roster": roster,
        "lostLeases": len(json.loads(step.text("lost_leases") or "[]")),
        "lastError": step.text("last_error") or None,
        "resultBytes": _result_bytes(reader, step),
        "createdAtMs": step.integer("created_hlc") >> 16,
        "claimedAtMs": step.lease_hlc >> 16 or None,
        "updatedAtMs": step.hlc >> 16,
    }


def _result_bytes(reader: Reader, step: Row) -> int | None:
    if step_status(step) is not Status.SUCCESS:
        return None
    try:
        return len(load_payload(reader, step, "result"))
    except NotFoundError:
        return None


def task_result(reader: Reader, steps: Sequence[Row]) -> dict[str, Any]:
    """The result of a finished task: its only step's own, or an object of the results of the steps nobody waits for.

    `resultPayload` as text, or `resultPayloadBase64` when a single step's result is not text.
    """
    if len(steps) == 1:
        return payload_fields("resultPayload", load_payload(reader, steps[0], "result"))
    results: dict[str, str] = {}
    for step in steps:
        if not step.integer("dependents"):
            fields = payload_fields(step.text("name"), load_payload(reader, step, "result"))
            results.update(fields)
    return {"resultPayload": json.dumps(results, sort_keys=True)}


def workflow_view(reader: Reader, task: Row, steps: Sequence[Row]) -> dict[str, Any]:
    """The contract's form of a workflow: the task, its steps, and the edges of the graph."""
    view = task_view(reader, task, steps)
    listed = view.pop("steps")
    edges = [f"{parent} -> {step['name']}" for step in listed for parent in step["dependsOn"]]
    return {"task": view, "steps": listed, "edges": edges}


def event_view(row: Row) -> dict[str, Any]:
    """One history row."""
    fence = Fence.decode(row.text("fence"))
    return {
        "action": row.text("action"),
        "nodeId": row.node,
        "fromNode": row.text("from_node") or None,
        "taskId": row.text("task_id"),
        "stepId": row.text("step_id"),
        "generation": fence.generation,
        "leaseEpoch": fence.lease_epoch,
        "attempt": row.integer("attempt"),
        "fence": row.text("fence"),
        "occurredAtMs": row.hlc >> 16,
        "details": json.loads(row.text("detail") or "{}"),
    }

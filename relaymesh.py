"""The public face of RelayMesh: what authors of agents, and those who submit work, import. Nothing here but names that
are defined elsewhere. Agent hosts import it too, so what only submitters use is loaded when it is used.

from relaymesh import Context, Fail, Retry, agent

@agent("word-count", retry=Retry(max_attempts=5), timeout_s=60)
def word_count(ctx: Context, text: str) -> dict[str, int]:
    return {"words": len(text.split())}

with Client(root="data") as client:
    print(client.submit(word_count, "one two three").result(timeout_s=30))
"""

from __future__ import annotations

import importlib
import os.path
from typing import TYPE_CHECKING, Any

import node as _node

_home = os.path.dirname(os.path.abspath(__file__))
if os.path.abspath(_node.__file__ or "") != os.path.join(_home, "node", "__init__.py"):
    # `node` is a common name; half an import of somebody else's package would fail later and say nothing useful.
    _found = _node.__file__ or list(_node.__path__)
    raise ImportError(
        f"relaymesh lives in {_home}, but the name `node` means {_found}: another package or folder called `node` "
        "comes first on sys.path. Rename that one, or start Python from another folder."
    )

from node.agents.api import (  # noqa: E402  (only after the check above)
    Cancel,
    CheckpointError,
    Context,
    Fail,
    LeaseMovedError,
    Retry,
    Snooze,
    agent,
)

if TYPE_CHECKING:
    from mesh.errors import (
        ConfigError,
        ConflictError,
        LimitError,
        NotFoundError,
        RelayMeshError,
        StoreError,
        UnavailableError,
    )
    from node.client.async_client import AsyncClient, AsyncTaskHandle
    from node.client.client import Client, TaskHandle
    from node.client.memory import AsyncMemoryMesh, MemoryMesh
    from node.client.mesh import Mesh
    from node.client.options import StepOptions, SubmitOptions, TaskOptions
    from node.client.outcomes import ResultTypeError, StepState, TaskCancelled, TaskFailed
    from node.client.workflow import Step, Workflow

_LAZY = {
    "mesh.errors": (
        "ConfigError",
        "ConflictError",
        "LimitError",
        "NotFoundError",
        "RelayMeshError",
        "StoreError",
        "UnavailableError",
    ),
    "node.client.async_client": ("AsyncClient", "AsyncTaskHandle"),
    "node.client.client": ("Client", "TaskHandle"),
    "node.client.memory": ("AsyncMemoryMesh", "MemoryMesh"),
    "node.client.mesh": ("Mesh",),
    "node.client.options": ("StepOptions", "SubmitOptions", "TaskOptions"),
    "node.client.outcomes": ("ResultTypeError", "StepState", "TaskCancelled", "TaskFailed"),
    "node.client.workflow": ("Step", "Workflow"),
}
_HOMES = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'relaymesh' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


__all__ = [
    "AsyncClient",
    "AsyncMemoryMesh",
    "AsyncTaskHandle",
    "Cancel",
    "CheckpointError",
    "Client",
    "ConfigError",
    "ConflictError",
    "Context",
    "Fail",
    "LeaseMovedError",
    "LimitError",
    "MemoryMesh",
    "Mesh",
    "NotFoundError",
    "RelayMeshError",
    "ResultTypeError",
    "Retry",
    "Snooze",
    "Step",
    "StepOptions",
    "StepState",
    "StoreError",
    "SubmitOptions",
    "TaskCancelled",
    "TaskFailed",
    "TaskHandle",
    "TaskOptions",
    "UnavailableError",
    "Workflow",
    "agent",
]

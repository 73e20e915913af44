"""Agents as submitters name them: by text, or by the decorated function itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.agents import api


def agent_name(agent: str | Callable[..., Any]) -> str:
    """The name under which nodes know the agent. TypeError for a function that `@agent` did not decorate here."""
    if isinstance(agent, str):
        return agent
    for spec in api.registered.values():
        if spec.function is agent:
            return spec.name
    raise TypeError(f'{agent!r} is no agent: put @agent("name") above the function, or give an agent\'s name as text')

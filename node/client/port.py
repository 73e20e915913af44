"""Whom the verbs ask: nodes of a mesh, or one in memory. And how the sync face runs coroutines."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Port(Protocol):
    """Answers admin commands (node/admin/work_commands.py), in whatever way."""

    async def ask(self, command: str, args: Mapping[str, Any], *, repeatable: bool = True) -> Any:
        """The answer to one command; raises the classes of `mesh.errors`.

        `repeatable`: it may be sent again, also to another node, when the answer to it was lost.
        """
        ...

    def now(self) -> float:
        """Seconds on the clock by which timeouts of this port run out."""
        ...


def complete(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends, since all that it awaits blocks instead."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise AssertionError("a coroutine of the sync client suspended")

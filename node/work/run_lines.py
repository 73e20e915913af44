"""The node's end of what a running attempt says and hears: progress, checkpoints, and that a cancel was asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from mesh.errors import LimitError
from node.agents.api import CHECKPOINT_BYTES_MAX

PROGRESS_CHARS_MAX = 200


class Progress(NamedTuple):
    """How far an attempt said it was. Kept in memory only, by the node that runs it."""

    fraction: float
    text: str
    at_ms: int


class AttemptLine:
    """`node.env.RunLine` of one attempt."""

    def __init__(self, *, save: Callable[[bytes], Awaitable[None]], now_ms: Callable[[], int]) -> None:
        """`save` makes a checkpoint durable, or raises as `save_checkpoint` may."""
        self._save = save
        self._now_ms = now_ms
        self.progress: Progress | None = None
        self.cancel_asked = False
        self.on_cancel: Callable[[], None] = _nothing

    def note_progress(self, fraction: float, text: str) -> None:
        """Keep it; what comes from an agent is put within bounds."""
        within = min(max(fraction, 0.0), 1.0) if fraction == fraction else 0.0  # NaN is not equal to itself
        self.progress = Progress(within, text[:PROGRESS_CHARS_MAX], self._now_ms())

    async def save_checkpoint(self, content: bytes) -> None:
        """See node.env.RunLine."""
        if len(content) > CHECKPOINT_BYTES_MAX:
            raise LimitError(f"the checkpoint has {len(content)} bytes, above the limit of {CHECKPOINT_BYTES_MAX}")
        await self._save(content)

    def ask_to_cancel(self) -> None:
        """Tell the attempt, once, that its task is to be cancelled."""
        if not self.cancel_asked:
            self.cancel_asked = True
            self.on_cancel()

    def view(self) -> dict[str, Any] | None:
        """The progress as it is shown."""
        if self.progress is None:
            return None
        return {"fraction": self.progress.fraction, "text": self.progress.text, "atMs": self.progress.at_ms}


def _nothing() -> None: ...

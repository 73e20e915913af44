"""The one seam through which payloads and results are stored and read back.

Small ones live in their row. Larger ones are stored once, by content hash, in an immutable table, so that a step's row
stays small however often its status changes. Compression, encryption and blobs outside the database belong here.
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh.errors import NotFoundError
from mesh.ids import content_id
from mesh.rows import Row
from node.storage.reader import Reader
from node.storage.transaction import Transaction


class PayloadMissingError(NotFoundError):
    """A row is here and the payload that it refers to is not: it is on its way, or was lost with the only disk."""

    def __init__(self, text: str, *, reference: str) -> None:
        """`reference` is the key of the missing row of `payloads`."""
        super().__init__(text)
        self.reference = reference


INLINE_BYTES_MAX = 512
"""Two such values, a row's metadata and a signature still fit one 1,200-byte datagram with room for other news."""


def store_payload(tx: Transaction, namespace: str, task_id: str, content: bytes) -> tuple[bytes | None, str | None]:
    """Keep `content` for a task; return the (inline, reference) pair that belongs into the row.

    The same content is stored once in a task, not once in all: a payload goes when its task does, and another task that
    had begun to refer to it on the other side of a cut would lose it.
    """
    if len(content) <= INLINE_BYTES_MAX:
        return content, None
    reference = content_id("blb", task_id.encode(), content)
    if tx.get("payloads", namespace, reference) is None:
        tx.put("payloads", namespace, reference, {"content": content, "task_id": task_id})
    return None, reference


def load_payload(reader: Reader, row: Row, column: str) -> bytes:
    """The content that `column` of this row holds or refers to; empty when it holds nothing.

    PayloadMissingError when the reference's row is not here, which only a partial replica can show.
    """
    inline = row.blob(column)
    if inline is not None:
        return inline
    reference = row.text(f"{column}_ref")
    if not reference:
        return b""
    stored = reader.get("payloads", row.namespace, reference)
    content = stored.blob("content") if stored is not None else None
    if content is None:
        raise PayloadMissingError(
            f"the {column} of {row.key} ({reference}) has not arrived at this node yet; ask again soon",
            reference=reference,
        )
    return content


def missing_payloads(reader: Reader, rows: Iterable[Row]) -> frozenset[str]:
    """The references of these steps to inputs, results and checkpoints that are not here."""
    named = {(row.namespace, row.text(f"{column}_ref")) for row in rows for column in ("input", "result", "checkpoint")}
    return frozenset(key for namespace, key in named if key and reader.get("payloads", namespace, key) is None)

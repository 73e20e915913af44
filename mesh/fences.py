"""The fence: one text that says which lease a piece of work ran under, made so that byte order is merge order.

A handler passes its fence to whatever it changes outside the mesh; a resource that remembers the greatest fence it has
seen and refuses smaller ones cannot be harmed by a stale owner. The parts are those of the `lifecycle` order in
`mesh.registers` that change with a lease: generation, cluster epoch, lease epoch, the stamp that opened the lease, and
the node, of which the lexically lower one wins.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mesh.ids import NODE_ID_CHARS_MAX
from mesh.rows import Row

_FENCE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{16}-[0-9a-f]{64}")
COUNTER_MAX = (1 << 32) - 1
_COMPLEMENT = bytes(255 - byte for byte in range(256))


class Fence(NamedTuple):
    """A lease, as numbers. Its text form is `encode()`; two fences are compared by that text only."""

    generation: int
    cluster_epoch: int
    lease_epoch: int
    lease_hlc: int
    node: str

    def encode(self) -> str:
        """108 characters of lower-case hex and dashes. Greater text means the lease that wins."""
        # Fixed width is what makes text order equal number order, so a counter that outgrows its field must not pass.
        assert max(self.generation, self.cluster_epoch, self.lease_epoch) <= COUNTER_MAX, self
        return (
            f"{self.generation:08x}-{self.cluster_epoch:08x}-{self.lease_epoch:08x}-{self.lease_hlc:016x}"
            f"-{_inverted(self.node).hex()}"
        )

    @classmethod
    def decode(cls, text: str) -> Fence:
        """The inverse of `encode`; ValueError for anything that `encode` could not have produced."""
        if not _FENCE.fullmatch(text):
            raise ValueError(f"not a fence: {text[:120]!r}")
        generation, cluster_epoch, lease_epoch, lease_hlc, node = text.split("-")
        name = bytes.fromhex(node).translate(_COMPLEMENT).rstrip(b"\0")
        return cls(int(generation, 16), int(cluster_epoch, 16), int(lease_epoch, 16), int(lease_hlc, 16), name.decode())

    @classmethod
    def of(cls, row: Row, node: str) -> Fence:
        """The fence of the lease that `row` records, held by `node`."""
        return cls(row.generation, row.cluster_epoch, row.lease_epoch, row.lease_hlc, node)


def _inverted(node: str) -> bytes:
    """Bytes that sort opposite to the node id: complemented, and padded so that a prefix sorts after its extensions."""
    raw = node.encode()
    # Node ids are at most 32 ASCII characters (mesh.ids.parse_node_id), so no two of them are cut to the same field.
    assert len(raw) <= NODE_ID_CHARS_MAX, node
    return raw.ljust(NODE_ID_CHARS_MAX, b"\0").translate(_COMPLEMENT)

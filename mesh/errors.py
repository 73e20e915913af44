"""Every exception of RelayMesh's core, each saying who caused it and what it touched.

    RelayMeshError
    ├── PacketError      a peer (or noise) sent a datagram that was refused; nothing changed
    ├── RecordError      a signed record, certificate or bundle does not hold; nothing changed
    ├── FrameError       a stream broke its framing; the stream ends, nothing else changed
    ├── ConfigError      the operator gave something unusable; nothing was started or written
    ├── LimitError       a caller exceeded a named limit; nothing was stored
    ├── ConflictError    the request contradicts what is stored; nothing was stored
    ├── NotFoundError    the named thing does not exist here
    ├── UnavailableError the node cannot serve this now; retry later or at another peer
    └── StoreError       the local database failed; the request's outcome may be unknown

Broken promises of our own are `assert`s and are never caught.
"""

from __future__ import annotations


class RelayMeshError(Exception):
    """Base of all errors that RelayMesh raises on purpose. Its text says what to do."""


class PacketError(RelayMeshError):
    """A datagram was refused, and nothing in this node changed.

    `reason` is a short label from a fixed set, safe to use as a metric label; `detail` says more to people, or nothing.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class RecordError(RelayMeshError):
    """A certificate, signed record or row bundle does not verify. Nothing changed."""


class FrameError(RelayMeshError):
    """A stream peer broke the framing or a limit. The stream is closed; nothing else changed."""


class ConfigError(RelayMeshError):
    """The operator's flags, files or environment cannot be used. Nothing was started or written."""


class LimitError(RelayMeshError):
    """A request exceeds a named limit. Nothing was stored."""


class ConflictError(RelayMeshError):
    """A request contradicts what is already stored, which its text names. Nothing was stored."""


class NotFoundError(RelayMeshError):
    """The named task, step, agent or node is not known here. Nothing changed."""


class UnavailableError(RelayMeshError):
    """This node cannot serve the request now; its text says why and for how long.

    `retry_after_ms`: after how many milliseconds it may, where that can be told and waiting helps; None elsewhere.
    """

    def __init__(self, text: str = "", *, retry_after_ms: int | None = None) -> None:
        super().__init__(text)
        self.retry_after_ms = retry_after_ms


class StoreError(RelayMeshError):
    """The local database failed. A failed COMMIT may have happened: re-read before retrying."""

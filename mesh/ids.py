"""Names and numbers that identify things, and how they are derived and parsed.

A node has a human `NodeId`. On the wire it travels as `node_tag`, sixteen hashed bytes. A `Life` orders the lives of
one node id: the number of its enrolment, then the count of its starts; it never depends on a clock.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple, NewType

from mesh.errors import ConfigError

NodeId = NewType("NodeId", str)
Life = NewType("Life", int)

NODE_ID_CHARS_MAX = 32  # the fence pads node ids to this width, see mesh/fences.py
_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

_BOOT_BITS = 39
BOOT_MAX = (1 << _BOOT_BITS) - 1
ENROLMENT_MAX = (1 << 24) - 1  # life stays below 2**63, the largest integer SQLite keeps


class Origin(NamedTuple):
    """Who stamped a row: a node, and a random 63-bit incarnation of its database.

    A new incarnation is minted whenever the database might have forgotten what it once told others.
    """

    node: str
    incarnation: int


class Address(NamedTuple):
    """A host (IPv4, IPv6 or name) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_node_id(text: str) -> NodeId:
    """Return `text` as a node id, or raise ConfigError saying which characters are allowed."""
    if not _NODE_ID.fullmatch(text):
        raise ConfigError(
            f"node id {text[:64]!r} is not usable: give 1 to {NODE_ID_CHARS_MAX} characters of A-Z a-z 0-9 . _ -, "
            "beginning with a letter or digit"
        )
    return NodeId(text)


def parse_namespace(text: str) -> str:
    """Return `text` as a namespace, or raise ConfigError saying which characters are allowed."""
    if not _NAMESPACE.fullmatch(text):
        raise ConfigError(
            f"namespace {text[:64]!r} is not usable: give 1 to 63 characters of a-z 0-9 . _ -, "
            "beginning with a letter or digit"
        )
    return text


def parse_address(text: str) -> Address:
    """Parse `HOST:PORT` or `[IPV6]:PORT`; raise ConfigError with the form that is wanted."""
    host, separator, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {text[:80]!r}: write an IPv6 address in brackets, like [::1]:17888")
    if not separator or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"address {text[:80]!r} is not HOST:PORT with a port from 1 to 65535")
    return Address(host, int(port))


def node_tag(node_id: str) -> bytes:
    """The sixteen bytes that stand for a node id in packet headers and digests."""
    return hashlib.blake2b(node_id.encode(), digest_size=16, person=b"relaymesh-node").digest()


def make_life(enrolment: int, boot: int) -> Life:
    """Order lives by enrolment, then by boot: a re-enrolled host beats every earlier life of its id."""
    assert 0 < enrolment <= ENROLMENT_MAX, enrolment
    assert 0 <= boot <= BOOT_MAX, boot
    return Life(enrolment << _BOOT_BITS | boot)


def split_life(life: int) -> tuple[int, int]:
    """The (enrolment, boot) that `make_life` packed."""
    return life >> _BOOT_BITS, life & BOOT_MAX


def content_id(prefix: str, *parts: bytes) -> str:
    """A name derived from content: equal parts give equal names on every node.

    Parts are length-prefixed, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"relaymesh-id")
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return f"{prefix}_{digest.hexdigest()}"

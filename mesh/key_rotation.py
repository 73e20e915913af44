"""How a key ring becomes the next one: add, promote, retire; and the CA's signed statement that carries it.

Promises: every step makes a ring that differs in one thing and has the next number. A key is only ever used after it
was installed, and goes in two steps: RETIRING for a day, in which it still opens packets, then away. Whether all
members have the ring before is for the node to check that takes the next one in (`node.trust`).

    add       a new key, INSTALLED: accepted, not used
    promote   PRIMARY: all seal with it; the former primary is INSTALLED again
    retire    RETIRING: accepted for `GRACE_MS` more; once again after that: gone
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.ca_statements import Statement, open_statement, sign_statement
from mesh.errors import ConfigError, ConflictError, NotFoundError, RecordError
from mesh.identity import Authority
from mesh.sealing import SECRET_BYTES, KeyRing, KeyState, RingKey

GRACE_MS = 24 * 3_600_000
KEYS_MAX = 16
KIND = "ring"

_NAME = re.compile(r"[0-9a-f]{8}")


class _WireKey(msgspec.Struct, frozen=True, array_like=True):
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    state: KeyState
    retiring_since_ms: Annotated[int, msgspec.Meta(ge=0)]


_decoder = msgspec.msgpack.Decoder(Annotated[list[_WireKey], msgspec.Meta(min_length=1, max_length=KEYS_MAX)])


def add(ring: KeyRing, secret: bytes) -> KeyRing:
    """The ring with one more key, INSTALLED."""
    if len(list(ring)) >= KEYS_MAX:
        raise ConflictError(f"the ring has {KEYS_MAX} keys: retire one first")
    return KeyRing([*ring, RingKey(secret, KeyState.INSTALLED)], number=ring.number + 1)


def promote(ring: KeyRing, key_id: int) -> KeyRing:
    """The ring whose PRIMARY is this key. ConflictError when it is that already."""
    chosen = _known(ring, key_id)
    if chosen.state is KeyState.PRIMARY:
        raise ConflictError(f"key {key_name(key_id)} is the primary key already")
    states = {ring.primary.key_id: KeyState.INSTALLED, key_id: KeyState.PRIMARY}
    keys = [replace(key, state=states.get(key.key_id, key.state)) for key in ring]
    return KeyRing([_without_date(key) for key in keys], number=ring.number + 1)


def retire(ring: KeyRing, key_id: int, now_ms: int) -> KeyRing:
    """The ring in which this key is RETIRING, or from which it is gone when its day of grace is over.

    ConflictError for the primary key, and for a retiring one whose grace lasts on.
    """
    chosen = _known(ring, key_id)
    if chosen.state is KeyState.PRIMARY:
        raise ConflictError(f"key {key_name(key_id)} is what all members seal with: promote another one first")
    if chosen.state is KeyState.INSTALLED:
        marked = replace(chosen, state=KeyState.RETIRING, retiring_since_ms=now_ms)
        keys = [marked if key is chosen else key for key in ring]
        return KeyRing(keys, number=ring.number + 1)
    left_ms = chosen.retiring_since_ms + GRACE_MS - now_ms
    if left_ms > 0:
        raise ConflictError(
            f"key {key_name(key_id)} is retiring: packets under it are accepted for {left_ms / 3_600_000:.1f} h more; "
            "retire it again after that"
        )
    return KeyRing([key for key in ring if key is not chosen], number=ring.number + 1)


def only_grew(before: KeyRing, after: KeyRing) -> bool:
    """True when nobody who still has the ring `before` can miss anything: every key is there, in the same state."""
    states = {key.key_id: key.state for key in after}
    return all(states.get(key.key_id) is key.state for key in before)


def key_name(key_id: int) -> str:
    """How people name a key; tells nothing about its secret."""
    return f"{key_id:08x}"


def parse_key_name(text: str) -> int:
    """The key id in a name; ConfigError when it is none."""
    if not _NAME.fullmatch(text):
        raise ConfigError(f"{text[:40]!r} names no key: give the eight characters that `mesh keys list` shows")
    return int(text, 16)


def sign_ring(ca_key: Ed25519PrivateKey, cluster: bytes, ring: KeyRing) -> bytes:
    """The CA's statement of this ring. It holds secrets: it travels on TLS streams only, and lies in files of 0600."""
    wire = [_WireKey(key.secret, key.state, key.retiring_since_ms) for key in ring]
    content = msgspec.msgpack.encode(wire)
    return sign_statement(ca_key, cluster=cluster, kind=KIND, number=ring.number, content=content)


def open_ring(authority: Authority, raw: bytes) -> tuple[KeyRing, Statement]:
    """The ring in a statement of our CA; RecordError when it does not hold or makes no ring."""
    statement = open_statement(authority, raw, KIND)
    try:
        keys = [RingKey(key.secret, key.state, key.retiring_since_ms) for key in _decoder.decode(statement.content)]
        return KeyRing(keys, number=statement.number), statement
    except (msgspec.DecodeError, ConfigError):
        raise RecordError("the CA's statement holds no usable key ring") from None


def _known(ring: KeyRing, key_id: int) -> RingKey:
    key = ring.get(key_id)
    if key is None:
        known = ", ".join(key_name(each.key_id) for each in ring)
        raise NotFoundError(f"there is no key {key_name(key_id)}; the ring has {known}")
    return key


def _without_date(key: RingKey) -> RingKey:
    return key if key.state is KeyState.RETIRING else replace(key, retiring_since_ms=0)

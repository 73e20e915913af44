"""One seed, many independent streams of chance.

Promise: a draw depends on the seed and on its own name only, never on how often others drew. So one fault less, or one
packet more, does not re-roll everything else: that is what makes shrinking a failure possible.
"""

from __future__ import annotations

import hashlib
import random
import struct

_EIGHT = struct.Struct(">8Q")


def stream(seed: int, name: str) -> random.Random:
    """A generator of its own for whatever is called `name`."""
    # Seeding by a text or number of our own making never depends on the hash seed of the process.
    return random.Random(int.from_bytes(hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=16).digest(), "big"))


class Fates:
    """Numbered draws under one name: the n-th is the same whoever asks in between."""

    __slots__ = ("_count", "_prefix")

    def __init__(self, seed: int, name: str) -> None:
        self._prefix = hashlib.blake2b(f"{seed}|{name}|".encode())
        self._count = 0

    def draw(self) -> tuple[float, ...]:
        """The next eight numbers in [0, 1)."""
        self._count += 1
        digest = self._prefix.copy()
        digest.update(self._count.to_bytes(8, "big"))
        return tuple([number / 2**64 for number in _EIGHT.unpack(digest.digest())])

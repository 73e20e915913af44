"""Which bytes a drive holds of writes that were never synced.

The drive writes sectors of 512 bytes, each in one piece, in any order and at any moment: of a sector that was written
several times it may hold any version, and with it all that earlier writes had put there. A truncation is a change of
metadata, and those keep their order: a crash that loses it also loses what was written to that file afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Literal

SECTOR_BYTES = 512
SURVIVES = 0.5
"""Chance of an unsynced sector."""

CrashImage = Literal["drop", "subset", "torn"]
"""What a power cut leaves of unsynced work: nothing; any sectors and a prefix of the names; or, of everything in its
order, a prefix whose last write is torn, between two sectors or (a drive without whole sectors) at any byte."""

Change = tuple[int, int, bytes | None]
"""(operation number, offset, bytes written), or (operation number, new size, None) for a truncation."""


def apply_change(content: bytearray, offset: int, data: bytes | None) -> None:
    """Write bytes, or cut the file to `offset` when there are none. What lies between reads as zeros."""
    size = len(content)
    if offset > size:
        content.extend(bytes(offset - size))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


def torn_bytes(offset: int, length: int, rng: random.Random) -> int:
    """How many bytes of a write arrived before the power went."""
    if rng.random() < SURVIVES:
        return rng.randint(0, length)
    return rng.choice([0, *(end - offset for _, end in _sectors(offset, length))])


def _sectors(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts (begin, end) of a write that lie in one sector each."""
    end = offset + length
    while offset < end:
        border = min(end, offset - offset % SECTOR_BYTES + SECTOR_BYTES)
        yield offset, border
        offset = border


def keep_sectors(durable: bytearray, pending: Sequence[Change], rng: random.Random) -> None:
    """Make some pending sectors durable, each in one of the versions that the page cache had of it."""
    truncations = sum(data is None for _, _, data in pending)
    kept = rng.randint(0, truncations)
    stretch: list[tuple[int, bytes]] = []
    for _, offset, data in pending:
        if data is not None:
            stretch.append((offset, data))
            continue
        if not kept:
            break
        kept -= 1
        _keep_written(durable, stretch, rng)
        stretch.clear()
        apply_change(durable, offset, None)
    _keep_written(durable, stretch, rng)


def _keep_written(durable: bytearray, stretch: list[tuple[int, bytes]], rng: random.Random) -> None:
    # A sector that reaches the drive takes along all that earlier writes had put into it, and nothing of later ones.
    versions: dict[int, list[tuple[int, bytes]]] = {}
    for offset, data in stretch:
        for begin, end in _sectors(offset, len(data)):
            versions.setdefault(begin // SECTOR_BYTES, []).append((begin, data[begin - offset : end - offset]))
    for sector in sorted(versions):
        if rng.random() < SURVIVES:
            parts = versions[sector]
            for begin, part in parts[: rng.randint(1, len(parts))]:
                apply_change(durable, begin, part)

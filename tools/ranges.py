"""Seeds and sizes as people write them: `1000-1999`, `7`."""

from __future__ import annotations

import re

from mesh.errors import ConfigError

SEED_MAX = 2**53 - 1
"""What every reader of JSON keeps exact."""
_RANGE = re.compile(r"([0-9]{1,16})(?:-([0-9]{1,16}))?")


def parse_range(text: str, *, option: str, lowest: int = 0, highest: int = SEED_MAX) -> range:
    """The whole numbers from the first to the last, both included. Raises ConfigError naming `option`."""
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{option}: {text[:40]!r} is no range: write one number, or the first and the last as 3-7")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if not lowest <= first <= last <= highest:
        raise ConfigError(f"{option}: {text[:40]!r} must go upwards from {lowest} or more to {highest} at most")
    return range(first, last + 1)

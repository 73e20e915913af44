"""Where in a TOML text each key stands: tomllib reads values, but forgets their lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_INLINE_KEY = re.compile(r"([A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')\s*=")

Place = tuple[str | int, ...]
"""Tables from the outside in, the number of an element of an array of tables, and last the key."""


class Lines:
    """The line of every key and table of a text that is valid TOML."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Place, int] = {}
        counts: dict[Place, int] = {}
        table: Place = ()
        for number, line in _statements(text):
            header = _HEADER.match(line)
            if header is not None:
                table = _keys(header[2])
                if header[1] == "[[":
                    counts[table] = counts.get(table, -1) + 1
                    self._lines.setdefault(table, number)
                    table = (*table, counts[table])
                self._lines.setdefault(table, number)
            elif (key := _KEY.match(line)) is not None:
                place = (*table, *_keys(key[1]))
                for length in range(len(table) + 1, len(place) + 1):
                    self._lines.setdefault(place[:length], number)
                for inner in _INLINE_KEY.finditer(_without_texts(line[key.end() :])):
                    self._lines.setdefault((*place, *_keys(inner[1])), number)

    def of(self, place: Place) -> int:
        """The line of a key, or of the nearest table around it that has one; 1 for the whole file."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)


def _keys(dotted: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _without_texts(value: str) -> str:
    """The value with the insides of its texts gone, so that nothing in them looks like a key."""
    return re.sub(r"\"(?:[^\"\\]|\\.)*\"(?!\s*=)|'[^']*'(?!\s*=)", '""', value)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Lines at which something begins: not those inside of a list or a text that goes over several."""
    depth, fence = 0, ""
    for number, line in enumerate(text.split("\n"), 1):
        if not depth and not fence:
            yield number, line
            if _HEADER.match(line):
                continue
        depth, fence = _scan(line, depth, fence)


def _scan(line: str, depth: int, fence: str) -> tuple[int, str]:
    """How deep in brackets, and in which kind of long text, the line ends."""
    at = 0
    while at < len(line):
        if fence:
            end = line.find(fence, at)
            if end < 0:
                return depth, fence if len(fence) == 3 else ""
            is_escaped = fence[0] == '"' and (len(line[:end]) - len(line[:end].rstrip("\\"))) % 2
            at = end + (1 if is_escaped else len(fence))
            fence = fence if is_escaped else ""
        elif line.startswith(('"""', "'''"), at):
            fence, at = line[at : at + 3], at + 3
        elif line[at] in "\"'":
            fence, at = line[at], at + 1
        elif line[at] == "#":
            return depth, ""
        else:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(line[at], 0)
            at += 1
    return depth, fence if len(fence) == 3 else ""

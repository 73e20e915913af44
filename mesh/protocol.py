"""Which versions of the protocol a release speaks, and which one two releases use with each other.

A version number names everything that members say to each other: items of packets, rumors, verbs of streams and the
form of their answers. A release speaks a range of them, without gaps, and two members use the highest that both speak.
Most of what a release adds needs no number: whoever does not know an item, a topic, a field, a column or a table passes
it on or leaves it unread. The number rises when something is said that the other side must understand, and `OLDEST`
rises when a release no longer understands what an old one says.

What is here is said in each member's signed record and in the first message of each stream.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

OLDEST = 1
"""The oldest version that this release still speaks."""
NEWEST = 2
"""The newest. 1: all of release 0.1. 2: members say what they speak, and verify compares the tables of both."""

RELEASE_CHARS_MAX = 16  # of a version such as `0.12.0.dev3`; a member's record has no room for more

_SILENT_SCHEMA = 3  # release 0.1 does not say what it is; this is what it is

Version = Annotated[int, msgspec.Meta(ge=1, le=65_535)]


class Speaks(msgspec.Struct, frozen=True, array_like=True):
    """What one member understands. Releases may append fields; older ones skip them."""

    oldest: Version
    newest: Version
    schema: Version
    """The newest migration that its database has had: which replicated tables and columns it knows."""
    release: Annotated[str, msgspec.Meta(max_length=RELEASE_CHARS_MAX, pattern=r"^[!-~]*\Z")]
    """For people only. Nothing is decided by it."""

    @property
    def versions(self) -> str:
        """The range in words: `2`, or `1 to 2`."""
        return str(self.newest) if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


SILENT = Speaks(1, 1, _SILENT_SCHEMA, "")
"""What a member speaks that does not say so."""


def this_release(schema: int = _SILENT_SCHEMA, release: str = "") -> Speaks:
    """What this release speaks, with a database of this schema. `release` is visible ASCII, and cut to its limit."""
    assert all("!" <= letter <= "~" for letter in release), release
    return Speaks(OLDEST, NEWEST, schema, release[:RELEASE_CHARS_MAX])


def common(ours: Speaks, theirs: Speaks) -> int | None:
    """The version that both use with each other, or None when there is none. Symmetric."""
    shared = min(ours.newest, theirs.newest)
    return shared if shared >= max(ours.oldest, theirs.oldest) else None


def refusal(ours: Speaks, theirs: Speaks, name: str) -> str:
    """Why we cannot talk to this member, and what to do, in one line that names both sides' versions."""
    older = "this node" if ours.newest < theirs.oldest else name
    return (
        f"{name}{_of(theirs)} speaks protocol {theirs.versions}, and this node{_of(ours)} {ours.versions}: "
        f"upgrade {older} to a release between theirs first"
    )


def _of(speaks: Speaks) -> str:
    return f" (release {speaks.release})" if speaks.release else ""

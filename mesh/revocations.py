"""Who is a member no more, by the CA's word: enrolments, and TLS certificates by serial number or fingerprint.

Promises: a list only grows; the next one contains the one before. An enrolment entry covers that enrolment and all
earlier ones of the name, so a host that is enrolled anew is welcome at once. Serial numbers and fingerprints name a
TLS certificate and are enforced on streams; `node.trust_files` adds the enrolment that they belong to, which is what
datagrams, member records and row bundles are refused by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.ca_statements import Statement, open_statement, sign_statement
from mesh.errors import ConfigError, LimitError, RecordError
from mesh.identity import NAME_CHARS_MAX, Authority
from mesh.ids import ENROLMENT_MAX

ENTRIES_MAX = 4_096
KIND = "revocations"

_SERIAL = re.compile(r"[0-9a-f]{1,40}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class RevokedEnrolment(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Enrolments 1 to `enrolment` of a node or an operator."""

    role: Annotated[str, msgspec.Meta(max_length=8)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    enrolment: Annotated[int, msgspec.Meta(ge=1, le=ENROLMENT_MAX)]


class _Wire(msgspec.Struct, frozen=True, array_like=True):
    enrolments: Annotated[list[RevokedEnrolment], msgspec.Meta(max_length=ENTRIES_MAX)]
    serials: Annotated[list[str], msgspec.Meta(max_length=ENTRIES_MAX)]
    fingerprints: Annotated[list[str], msgspec.Meta(max_length=ENTRIES_MAX)]


_decoder = msgspec.msgpack.Decoder(_Wire)


@dataclass(frozen=True, slots=True)
class Revocations:
    """One list. Lists of equal content are equal in bytes, whatever order they were made in."""

    number: int = 0
    enrolments: tuple[RevokedEnrolment, ...] = ()
    serials: tuple[str, ...] = ()
    """Lower-case hex without leading zeros."""
    fingerprints: tuple[str, ...] = ()
    """SHA-256 of a certificate's DER form, in lower-case hex."""
    _highest: dict[tuple[str, str], int] = field(init=False, repr=False, compare=False)
    _tls: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_highest", {(each.role, each.name): each.enrolment for each in self.enrolments})
        # Only membership is asked, never iterated. The kinds cannot be mixed up: their lengths differ.
        object.__setattr__(self, "_tls", frozenset((*self.serials, *self.fingerprints)))

    def __len__(self) -> int:
        return len(self.enrolments) + len(self.serials) + len(self.fingerprints)

    def refusal(self, role: str, name: str, enrolment: int) -> str | None:
        """Why this enrolment may take no part, in words for its owner; None when it may."""
        highest = self._highest.get((role, name))
        if highest is None or enrolment > highest:
            return None
        return f"enrolment {enrolment} of {role} {name} was revoked: enroll it anew, or remove it"

    def refusal_of_tls(self, serial: str, fingerprint: str) -> str | None:
        """The same for a TLS certificate."""
        if serial in self._tls or fingerprint in self._tls:
            return f"the certificate with serial {serial} was revoked: enroll its holder anew, or remove it"
        return None

    def with_more(
        self, enrolments: Iterable[RevokedEnrolment], serials: Iterable[str], fingerprints: Iterable[str]
    ) -> Revocations:
        """The next list. LimitError past `ENTRIES_MAX` of a kind."""
        highest = dict(self._highest)
        for each in enrolments:
            highest[each.role, each.name] = max(each.enrolment, highest.get((each.role, each.name), 0))
        made = Revocations(
            self.number + 1,
            tuple(RevokedEnrolment(role, name, number) for (role, name), number in sorted(highest.items())),
            tuple(sorted(dict.fromkeys([*self.serials, *map(parse_serial, serials)]))),
            tuple(sorted(dict.fromkeys([*self.fingerprints, *map(parse_fingerprint, fingerprints)]))),
        )
        if max(len(made.enrolments), len(made.serials), len(made.fingerprints)) > ENTRIES_MAX:
            raise LimitError(
                f"more than {ENTRIES_MAX} revocations of a kind: make a new mesh, whose CA trusts nobody yet"
            )
        return made


def parse_serial(text: str) -> str:
    """A certificate's serial number as it is kept; ConfigError when it is none."""
    plain = text.strip().lower().replace(":", "").removeprefix("0x")
    if not _SERIAL.fullmatch(plain):
        raise ConfigError(f"{text[:80]!r} is no serial number: give up to 40 hex digits")
    return plain.lstrip("0") or "0"


def parse_fingerprint(text: str) -> str:
    """A SHA-256 fingerprint as it is kept; ConfigError when it is none."""
    plain = text.strip().lower().replace(":", "")
    if not _FINGERPRINT.fullmatch(plain):
        raise ConfigError(f"{text[:80]!r} is no SHA-256 fingerprint: give 64 hex digits")
    return plain


def sign_revocations(ca_key: Ed25519PrivateKey, cluster: bytes, revocations: Revocations) -> bytes:
    """The CA's statement of this list."""
    wire = _Wire(list(revocations.enrolments), list(revocations.serials), list(revocations.fingerprints))
    content = msgspec.msgpack.encode(wire)
    return sign_statement(ca_key, cluster=cluster, kind=KIND, number=revocations.number, content=content)


def open_revocations(authority: Authority, raw: bytes) -> tuple[Revocations, Statement]:
    """The list in a statement of our CA; RecordError when it does not hold."""
    statement = open_statement(authority, raw, KIND)
    try:
        wire = _decoder.decode(statement.content)
    except msgspec.DecodeError:
        raise RecordError("the CA's statement holds no usable list of revocations") from None
    listed = Revocations(statement.number, tuple(wire.enrolments), tuple(wire.serials), tuple(wire.fingerprints))
    return listed, statement

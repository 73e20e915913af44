"""Revocation files as operators keep them: read in any of their forms, and written as a template.

A file has one entry a line, `serial:HEX` or `sha256:HEX` (also `fingerprint:` and `sha256fingerprint:`; without a word,
64 hex digits are a fingerprint and fewer a serial number), `#` begins a comment; or it is a JSON object with
`serialNumbers` and `sha256Fingerprints`. UTF-8 or UTF-16 with a byte order mark. One bad entry refuses the whole file.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mesh.errors import ConfigError
from mesh.revocations import RevokedEnrolment, parse_fingerprint, parse_serial
from node.identity_files import IssuedCertificate
from node.small_files import FILE_BYTES_MAX

_FINGERPRINT_WORDS = ("sha256", "fingerprint", "sha256fingerprint")
_FINGERPRINT_DIGITS = 64


class _JsonFile(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    serial_numbers: list[str] = []
    sha256_fingerprints: list[str] = msgspec.field(name="sha256Fingerprints", default_factory=list)


@dataclass(frozen=True, slots=True)
class CertificateNames:
    """Certificates by serial number and by fingerprint, in the form of `mesh.revocations`."""

    serials: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.serials) + len(self.fingerprints)


def certificate_names(serials: Iterable[str], fingerprints: Iterable[str]) -> CertificateNames:
    """Names in any spelling (upper case, colons), each once; ConfigError for one that is none."""
    return CertificateNames(
        tuple(dict.fromkeys(map(parse_serial, serials))), tuple(dict.fromkeys(map(parse_fingerprint, fingerprints)))
    )


def read_revocation_file(path: Path) -> CertificateNames:
    """Everything that a file revokes; ConfigError naming the line when any of it cannot be used."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {FILE_BYTES_MAX} bytes: it is no revocation file")
    text = _text(path, data)
    return _from_json(path, text) if text.lstrip().startswith("{") else _from_lines(path, text)


def template(names: CertificateNames) -> bytes:
    """A revocation file with these entries."""
    lines = [
        "# RelayMesh revocation file: relaymesh mesh revoke --mesh DIR --file THIS",
        "# One entry a line: serial:HEX or sha256:HEX; # begins a comment.",
        *(f"serial:{serial}" for serial in names.serials),
        *(f"sha256:{fingerprint}" for fingerprint in names.fingerprints),
    ]
    return "\n".join([*lines, ""]).encode()


def enrolments_of(names: CertificateNames, issued: Sequence[IssuedCertificate]) -> list[RevokedEnrolment]:
    """The enrolments that these certificates belong to, as far as the mesh directory knows them."""
    return [
        RevokedEnrolment(each.role, each.name, each.enrolment)
        for each in issued
        if each.serial in names.serials or each.fingerprint in names.fingerprints
    ]


def _text(path: Path, data: bytes) -> str:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is neither UTF-8 nor UTF-16 text: save it as UTF-8") from error


def _from_json(path: Path, text: str) -> CertificateNames:
    try:
        file = msgspec.json.decode(text, type=_JsonFile)
        return certificate_names(file.serial_numbers, file.sha256_fingerprints)
    except (msgspec.DecodeError, RecursionError, ConfigError) as error:
        raise ConfigError(f"{path} is no revocation file: {error}") from error


def _from_lines(path: Path, text: str) -> CertificateNames:
    serials: list[str] = []
    fingerprints: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip().lower()
        if not entry:
            continue
        word, _, rest = entry.partition(":")
        try:
            if word in _FINGERPRINT_WORDS:
                fingerprints.append(parse_fingerprint(rest))
            elif word == "serial":
                serials.append(parse_serial(rest))
            elif len(entry.replace(":", "")) == _FINGERPRINT_DIGITS:
                fingerprints.append(parse_fingerprint(entry))
            else:
                serials.append(parse_serial(entry))
        except ConfigError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
    return CertificateNames(tuple(dict.fromkeys(serials)), tuple(dict.fromkeys(fingerprints)))

"""Small files of an operator or a node: read with a limit and a check of their mode, or refused in one line.

Whatever raises here is a ConfigError that names the path. Functions block.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from mesh.errors import ConfigError

FILE_BYTES_MAX = 2 * 1024 * 1024
"""A CA statement of the largest size as base64 is two thirds of it."""

S = TypeVar("S", bound=msgspec.Struct)


def to_json(value: msgspec.Struct) -> bytes:
    """The content of a file that people may look at."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def read_json(path: Path, kind: type[S], what: str, *, secret: bool = True) -> S:
    """The content of a file as the type that it promises; `what` is what people call such a file."""
    try:
        return msgspec.json.decode(read_small(path, secret=secret), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not {what} of RelayMesh: {error}") from error


def read_small(path: Path, *, secret: bool = True) -> bytes:
    """The content of a small file, which only its owner may read if it is secret."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if secret and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} holds secrets, and its mode {mode:04o} lets others in: chmod 600 {path}")
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {FILE_BYTES_MAX} bytes: it is none of RelayMesh's files")
    return data


def exists(path: Path) -> bool:
    """Whether there is anything at this path."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which path could not be written, and why."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise ConfigError(f"{path} exists: give another place, or move it away first") from error
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error

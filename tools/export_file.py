"""Files that a command leaves: whole or not at all, never over an existing one unless told to, and never in memory
whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mesh.errors import ConfigError
from node import durable_files


def check_free(out: Path, *, force: bool) -> None:
    """Refuse a name that is taken before any work is done for it. ConfigError."""
    if out.exists() and not force:
        raise ConfigError(f"{out} exists already: give --out another name, or --force to replace it")


def write_document(out: Path, head: Mapping[str, Any], lists: Mapping[str, Iterable[Any]], *, force: bool) -> int:
    """One JSON object in a file of mode 0600: `head`, then every list, item by item as it comes; returns its bytes.

    ConfigError, with nothing left behind, when the file cannot be written or the name is taken.
    """
    check_free(out, force=force)
    with _told(out), durable_files.writing(out, may_replace=force) as file:
        _write(file, head, lists)
        return file.tell()


def _write(file: BinaryIO, head: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]) -> None:
    separator = "{\n"
    for name, value in head.items():
        file.write(f"{separator}{_json(name)}: {_json(value)}".encode())
        separator = ",\n"
    for name, items in lists.items():
        file.write(f"{separator}{_json(name)}: [".encode())
        separator = ",\n"
        for number, item in enumerate(items):
            file.write(f"{',' if number else ''}\n{_json(item)}".encode())
        file.write(b"\n]")
    file.write(b"\n}\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)  # texts may hold what UTF-8 cannot


@contextmanager
def _told(out: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise ConfigError(f"{out} came into being meanwhile: give --out another name") from None
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}") from None

"""Deliberate faults as edits of the product's own source: another text in one function, compiled into its place.

What a mutant breaks reads like a diff, and cannot rot: an edit whose text is gone, or stands there twice, is an
AssertionError and never a mutant that changes nothing. Edited functions stay the objects that they are, so whoever
imported one by its name runs the edited code, too; the block's end gives the old code back.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Edit:
    """In the function `target`, named as `module:Class.method`, the text `before` becomes `after`.

    Lines after the first are indented as in the file.
    """

    target: str
    before: str
    after: str


@contextmanager
def edited(edits: Sequence[Edit]) -> Iterator[None]:
    """Run the product with these edits until the block ends. Nodes that were assembled before may mix both."""
    targets = dict.fromkeys(edit.target for edit in edits)
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(_replaced(target, [edit for edit in edits if edit.target == target]))
        yield


@contextmanager
def _replaced(target: str, edits: Sequence[Edit]) -> Iterator[None]:
    function = find(target)
    original = function.__code__
    function.__code__ = _edited_code(function, edits)
    try:
        yield
    finally:
        function.__code__ = original


def find(target: str) -> FunctionType:
    """The function of this name; AssertionError when there is none any more."""
    module, _, path = target.partition(":")
    try:
        found: object = functools.reduce(getattr, path.split("."), cast(Any, importlib.import_module(module)))
    except (ImportError, AttributeError) as error:
        raise AssertionError(f"there is no {target} to edit: {error}") from None
    assert isinstance(found, FunctionType), f"{target} is no plain function"
    return found


def _edited_code(function: FunctionType, edits: Sequence[Edit]) -> CodeType:
    lines = Path(function.__code__.co_filename).read_text().splitlines(keepends=True)
    assert _compiled(function, lines) == function.__code__, (
        f"the source of {function.__qualname__} is not what runs: it is edited already, or its file has changed"
    )
    own_lines, first = inspect.getsourcelines(function)
    source = "".join(own_lines)
    for edit in edits:
        count = source.count(edit.before)
        assert count == 1, f"the text {edit.before!r} is there {count} times in {edit.target}, and must be once"
        source = source.replace(edit.before, edit.after)
    code = _compiled(function, [*lines[: first - 1], source, *lines[first - 1 + len(own_lines) :]])
    assert _meaning(code) != _meaning(function.__code__), f"the edits of {function.__qualname__} change nothing"
    return code


def _compiled(function: FunctionType, lines: Sequence[str]) -> CodeType:
    """The function's code as its whole module compiles to it: a part alone would not be the same, byte for byte."""
    module = compile("".join(lines), function.__code__.co_filename, "exec", dont_inherit=True)
    (code,) = (code for code in _codes(module) if code.co_qualname == function.__qualname__)
    return code


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _meaning(code: CodeType) -> tuple[object, ...]:
    return code.co_code, code.co_names, code.co_consts, code.co_freevars

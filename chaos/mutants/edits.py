"""Deliberate faults as edits of the product's own source: another text in one function, compiled into its place.

What a mutant breaks reads like a diff, and cannot rot: an edit whose text is gone, or stands there twice, is an
AssertionError and never a mutant that changes nothing. Edited functions stay the objects that they are, so whoever
imported one by its name runs the edited code, too; the block's end gives the old code back.
"""

from __future__ import annotations
import __future__

import ast
import functools
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, cast

_FLAGS = __future__.annotations.compiler_flag
"""Every module of the product postpones its annotations; so must what is compiled into one."""


@dataclass(frozen=True, slots=True)
class Edit:
    """In the function `target`, as `module:Class.method`, the text `before` becomes `after`.

    Lines after the first are indented as in the file, counted from the `def`.
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
    source = textwrap.dedent(inspect.getsource(function))
    assert _compiled(function, source).co_code == function.__code__.co_code, (
        f"the source of {function.__qualname__} is not what runs: it is edited already, or its file has changed"
    )
    for edit in edits:
        count = source.count(edit.before)
        assert count == 1, f"the text {edit.before!r} is there {count} times in {edit.target}, and must be once"
        source = source.replace(edit.before, edit.after)
    code = _compiled(function, source)
    assert code.co_code != function.__code__.co_code or code.co_consts != function.__code__.co_consts, (
        f"the edits of {function.__qualname__} change nothing"
    )
    assert code.co_freevars == function.__code__.co_freevars, f"{function.__qualname__} needs what lies around it"
    return code


def _compiled(function: FunctionType, source: str) -> CodeType:
    """The code of the one function in this source, with the line numbers of its file."""
    tree = ast.parse(source)
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef), function
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    module = compile(tree, function.__code__.co_filename, "exec", flags=_FLAGS, dont_inherit=True)
    (code,) = (
        each for each in module.co_consts if isinstance(each, CodeType) and each.co_name == function.__code__.co_name
    )
    return code

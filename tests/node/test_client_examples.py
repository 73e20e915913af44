"""Every public name for submitters says what it does and shows it: the examples of its docstrings are run here.

Those that need a node (they name `root`) are run by tests/e2e/test_client.py.
"""

from __future__ import annotations

import doctest
import inspect
import re

import pytest
import trio

import relaymesh
from node.agents import api

PUBLIC = [name for name in relaymesh.__all__ if getattr(relaymesh, name).__module__.startswith("node.client")]


def documented() -> list[tuple[str, object]]:
    """Public classes and their public methods, inherited ones too, by name."""
    found: list[tuple[str, object]] = []
    for name in PUBLIC:
        kind = getattr(relaymesh, name)
        found.append((name, kind))
        if issubclass(kind, (Exception, dict)):
            continue
        for method, value in inspect.getmembers(kind):
            if not method.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                found.append((f"{name}.{method}", value))
    return found


NAMED = dict(documented())
EXAMPLES = doctest.DocTestParser()


def examples_of(name: str) -> list[doctest.Example]:
    return EXAMPLES.get_examples(inspect.getdoc(NAMED[name]) or "")


def test_there_is_something_to_look_at():
    assert {"Client", "Client.submit", "AsyncClient.cancel", "MemoryMesh.run", "TaskHandle.result"} <= NAMED.keys()


@pytest.mark.parametrize("name", NAMED)
def test_a_public_name_has_an_example_or_names_the_twin_that_has_one(name):
    text = inspect.getdoc(NAMED[name])

    assert text, name
    twin = re.match(r"As `([\w.]+)`", text)
    assert examples_of(name) or examples_of(twin[1] if twin else name) or name.endswith(".aclose")


@pytest.mark.parametrize("name", [name for name in NAMED if examples_of(name)])
def test_the_examples_run(name, monkeypatch):
    examples = examples_of(name)
    if any("root" in example.source for example in examples):
        pytest.skip("needs a node: tests/e2e/test_client.py runs it")
    monkeypatch.setattr(api, "registered", {})
    names = {public: getattr(relaymesh, public) for public in relaymesh.__all__}
    test = doctest.DocTest(examples, {**names, "trio": trio}, name, None, None, None)
    told: list[str] = []

    result = doctest.DocTestRunner(verbose=False).run(test, out=told.append)

    assert result.failed == 0, "".join(told)

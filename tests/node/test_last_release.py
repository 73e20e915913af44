"""What the last release left on disks, held against its kept wheel: it binds this release."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from mesh.tables import declared_at
from node.storage.migrate import load_migrations
from node.work.tables import WORK_TABLES

REPOSITORY = Path(__file__).parent.parent.parent
(WHEEL,) = (REPOSITORY / "tests" / "releases").glob("*.whl")
WHEEL_BYTES_MAX = 1 << 20

SHOW_DECLARATIONS = """
import json
from node.work.tables import WORK_TABLES
shown = [[t.name, t.register.value, [[c.name, c.kind] for c in t.columns]] for t in WORK_TABLES]
print(json.dumps(shown))
"""


def kept_migrations() -> dict[str, str]:
    with zipfile.ZipFile(WHEEL) as wheel:
        names = [name for name in wheel.namelist() if name.startswith("node/storage/migrations/")]
        return {name: wheel.read(name).decode() for name in names}


@pytest.fixture
def unpacked(tmp_path) -> Path:
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(tmp_path)
    return tmp_path


def test_the_kept_wheel_is_small_and_older_than_this_release():
    release = re.fullmatch(r"relaymesh-([0-9.]+)-py3-none-any\.whl", WHEEL.name)
    assert release is not None
    ours = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert tuple(map(int, release[1].split("."))) < tuple(map(int, ours.split(".")))
    assert WHEEL.stat().st_size < WHEEL_BYTES_MAX


def test_migrations_that_databases_have_had_are_as_they_were():
    for name, text in kept_migrations().items():
        assert (REPOSITORY / name).read_text() == text, f"{name} was edited after a release: add a migration instead"


def test_what_came_after_the_last_release_says_with_which_migration_it_came(unpacked):
    schema = len(kept_migrations())
    shown = subprocess.run(
        [sys.executable, "-c", SHOW_DECLARATIONS],
        env={"PYTHONPATH": str(unpacked)},
        cwd=unpacked,
        capture_output=True,
        text=True,
        check=True,
    )
    ours = [
        [table.name, table.register.value, [[column.name, column.kind] for column in table.columns]]
        for table in declared_at(WORK_TABLES, schema)
    ]
    kept = json.loads(shown.stdout)
    assert ours == kept, "a table or column that the last release lacks needs a migration, named in its `since`"


def test_no_declaration_claims_a_migration_that_does_not_exist():
    newest = load_migrations()[-1].version
    claimed = [table.since for table in WORK_TABLES] + [c.since for table in WORK_TABLES for c in table.columns]
    assert max(claimed) <= newest

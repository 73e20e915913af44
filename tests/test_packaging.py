"""What a user installs: four packages and one module, with the files that they need and no others."""

import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory) -> list[str]:
    directory = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(directory))
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_holds_exactly_our_four_packages_and_the_public_module(wheel_files):
    top = {name.split("/")[0] for name in wheel_files if ".dist-info/" not in name}

    assert top == {"mesh", "node", "tools", "chaos", "relaymesh.py"}


def test_the_wheel_holds_every_file_that_code_reads(wheel_files):
    data = [*ROOT.glob("node/storage/migrations/*.sql"), ROOT / "tools" / "demo_hash.sh"]

    assert len(data) >= 3
    for path in data:
        assert str(path.relative_to(ROOT)) in wheel_files


def test_every_dependency_is_pinned_for_the_readme_s_commands():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {requirement.split(">")[0].split("=")[0].split("<")[0].strip() for requirement in wanted}

    assert names <= pinned

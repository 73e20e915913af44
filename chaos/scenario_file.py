"""Scenarios as TOML files: reading with every mistake named by its line, and writing what reads back the same.

A file that is wrong in any way is refused whole. Nothing is guessed: a scenario that does not do what its writer meant
would prove something else.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import msgspec

from chaos.fault_menu import MENU
from chaos.scenario import Fault, Scenario
from chaos.scenario_reader import TABLES, Reader, hint
from chaos.toml_lines import Lines
from mesh.errors import ConfigError

SCENARIOS = Path(__file__).with_name("scenarios")


def named(name: str) -> Scenario:
    """One of the scenarios that come with RelayMesh; ConfigError with their names for any other."""
    path = SCENARIOS / f"{name}.toml"
    known = [each.stem for each in sorted(SCENARIOS.glob("*.toml"))]
    if name not in known:
        raise ConfigError(f"there is no scenario {name!r}{hint(name, known)}. Known: {', '.join(known)}")
    return load(path)


def all_named() -> list[Scenario]:
    """All scenarios that come with RelayMesh, by name."""
    return [load(path) for path in sorted(SCENARIOS.glob("*.toml"))]


def load(path: Path) -> Scenario:
    """Read a file; ConfigError that names the line and what is allowed there when anything in it is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> Scenario:
    """Read a scenario from text. `name` is what errors call it, and the scenario's name when it gives itself none."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: is no TOML: {error}") from error
    return Reader(name, content, Lines(text)).scenario()


# --- writing ---


def dump(scenario: Scenario) -> str:
    """The scenario as a file, which reads back as this very scenario."""
    lines = ["# Play it with: relaymesh chaos replay THIS-FILE"]
    plain = Scenario(name=scenario.name)
    lines.append(f"name = {_toml(scenario.name)}")
    for key, value, default in (
        ("about", scenario.about, plain.about),
        ("scale", scenario.scale, plain.scale),
        ("nodes", scenario.nodes, None),
        ("duration", scenario.duration_s, None),
        ("settle", scenario.settle_s, None),
        ("seed", scenario.seed, None),
        ("profile", scenario.profile, plain.profile),
        ("expect", list(scenario.expect), []),
        ("pending", scenario.pending, plain.pending),
    ):
        if value != default:
            lines.append(f"{key} = {_toml(value)}")
    for name in TABLES:
        spec = getattr(scenario, name)
        if spec != getattr(plain, name):
            lines += ["", f"[{name}]"]
            lines += [
                f"{field.name} = {_toml(getattr(spec, field.name))}"
                for field in dataclasses.fields(spec)
                if getattr(spec, field.name) != field.default
            ]
    if dict(scenario.settings) != dict(plain.settings):
        lines += ["", "[settings]", *(f"{key} = {_toml(value)}" for key, value in scenario.settings.items())]
    if scenario.random is not None:
        menu = ", ".join(f"{kind} = {_toml(weight)}" for kind, weight in scenario.random.menu.items())
        lines += ["", "[random]", f"faults = {scenario.random.faults}", f"menu = {{{menu}}}"]
    for fault in scenario.faults:
        lines += ["", "[[fault]]", *_fault_lines(fault)]
    return "\n".join(lines) + "\n"


def _fault_lines(fault: Fault) -> list[str]:
    entry = MENU[fault.kind]
    lines = [f"kind = {_toml(fault.kind)}", f"at = {_toml(fault.at_s)}"]
    if fault.for_s:
        lines.append(f"for = {_toml(fault.for_s)}")
    if fault.nodes:
        one = entry.hits == "node"
        lines.append(f"node = {_toml(fault.nodes[0])}" if one else f"nodes = {_toml(list(fault.nodes))}")
    if fault.groups:
        is_one_way = entry.hits == "towards"
        groups = [list(group) for group in fault.groups]
        lines.append(f"to = {_toml(groups[0])}" if is_one_way else f"groups = {_toml(groups)}")
    return [*lines, *(f"{name} = {_toml(value)}" for name, value in fault.options.items())]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which JSON writes as it is.
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    assert isinstance(value, int | float), value
    return repr(value)

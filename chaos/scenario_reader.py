"""Reads a scenario out of parsed TOML. What is wrong in it is refused, by its line and with what is allowed there."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import msgspec

from chaos.coverage import POINTS
from chaos.fault_menu import MENU, RESTARTS, FaultKind, Option
from chaos.scenario import (
    NODES_MAX,
    NODES_MIN,
    SCALES,
    ClockSpec,
    DiskSpec,
    Fault,
    NetSpec,
    RandomFaults,
    Scenario,
    Value,
    WorkloadSpec,
)
from chaos.toml_lines import Lines, Place
from mesh.errors import ConfigError
from mesh.profiles import PROFILES
from node.settings import Settings, check_order, check_value

LONGEST_S = 7 * 86_400.0
"""A run may take a week of its own time."""
CHANGES_MAX = 0.5
"""Share of requests that may cancel or replay: without submits there is nothing to change."""

TABLES = {"net": NetSpec, "clock": ClockSpec, "disk": DiskSpec, "workload": WorkloadSpec}

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_PLAIN = ("name", "about", "scale", "nodes", "duration", "settle", "seed", "profile", "expect", "pending")
_KEYS = (*_PLAIN, *TABLES, "settings", "random", "fault")
_OF_ENGINES: Mapping[str, tuple[str, ...]] = {
    "clock": ("drift_ppm",),
    "disk": (),
    "workload": ("rate",),
    "settings": (),
}
"""Bare engines have no disk, no date and no settings file, and rumors for work: what of these tables they heed."""
_TARGETS = {
    "lines": ("node", "nodes"),
    "sides": ("groups",),
    "towards": ("node", "nodes", "to"),
    "node": ("node",),
    "nodes": ("node", "nodes"),
    "mesh": (),
}


def hint(word: str, known: Iterable[str]) -> str:
    """The known word that is most like a wrong one, as a question to put behind it; empty when none is like it."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (do you mean {close[0]!r}?)" if close else ""


class Reader:
    """One file being read. A place is where a key is: the table's path, the number of the fault, the key."""

    def __init__(self, name: str, content: Mapping[str, Any], lines: Lines) -> None:
        self._name = name
        self._content = content
        self._lines = lines

    def _fail(self, place: Place, text: str) -> ConfigError:
        return ConfigError(f"{self._name} line {self._lines.of(place)}: {text}")

    def scenario(self) -> Scenario:
        """What the file says, with defaults filled in; ConfigError for the first thing that is wrong."""
        content = self._content
        self._known_keys((), content, _KEYS)
        scale = self._choice(("scale",), content.get("scale", "node"), SCALES)
        if scale == "protocol":
            self._heeded_by_engines()
        nodes = self._number(("nodes",), content.get("nodes", 5), int, NODES_MIN, NODES_MAX[scale])
        scenario = Scenario(
            name=self._text("name", PurePath(self._name).stem),
            about=self._text("about", ""),
            scale=scale,
            nodes=int(nodes),
            duration_s=self._span("duration", 60.0),
            settle_s=self._span("settle", 120.0),
            seed=int(self._number(("seed",), content.get("seed", 1), int, 0, 2**63 - 1)),
            profile=self._choice(("profile",), content.get("profile", "local"), tuple(PROFILES)),
            pending=self._text("pending", ""),
            expect=self._expect(),
            net=self._net(),
            clock=self._table("clock", ClockSpec),
            disk=self._table("disk", DiskSpec),
            workload=self._workload(),
            **self._settings(),
            random=self._random(scale),
        )
        faults = content.get("fault", [])
        if not isinstance(faults, list) or not all(isinstance(fault, dict) for fault in faults):
            raise self._fail(("fault",), "faults are tables, each under its own [[fault]]")
        return dataclasses.replace(
            scenario, faults=tuple(self._fault(number, fault, scenario) for number, fault in enumerate(faults))
        )

    # --- values ---

    def _known_keys(self, table: Place, given: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in given:
            if key not in known:
                raise self._fail((*table, key), f"unknown key {key!r}{hint(key, known)}. Known: {', '.join(known)}")

    def _text(self, key: str, default: str) -> str:
        value = self._content.get(key, default)
        if not isinstance(value, str):
            raise self._fail((key,), f"{key} must be a text")
        return value

    def _choice(self, place: Place, value: object, allowed: Sequence[str]) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise self._fail(place, f"{place[-1]} must be one of {', '.join(allowed)}, not {value!r}")
        return value

    def _number(self, place: Place, value: object, kind: type, lowest: float, highest: float) -> float:
        is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not is_number or not lowest <= value <= highest:  # type: ignore[operator]
            word = "a whole number" if kind is int else "a number"
            raise self._fail(place, f"{place[-1]} must be {word} from {lowest:g} to {highest:g}, not {value!r}")
        return kind(value)  # type: ignore[no-any-return]

    def _duration(self, place: Place, value: object) -> float:
        if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
            return float(match[1]) * _UNITS_S[match[2]]
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
            return float(value)
        raise self._fail(place, f'{place[-1]} must be seconds, or a text such as "500ms", "30s", "2m", not {value!r}')

    def _span(self, key: str, default: float) -> float:
        value = self._duration((key,), self._content.get(key, default))
        if not 0 < value <= LONGEST_S:
            raise self._fail((key,), f"{key} must be more than 0 s and at most {LONGEST_S:g} s, not {value:g}")
        return value

    # --- tables ---

    def _heeded_by_engines(self) -> None:
        for name, heeded in _OF_ENGINES.items():
            given = self._content.get(name, {})
            for key in given if isinstance(given, dict) else ():
                if key not in heeded:
                    known = f"only {', '.join(heeded)} of [{name}]" if heeded else f"nothing of [{name}]"
                    raise self._fail((name, key), f"scale protocol heeds {known}, not {key!r}")

    def _table(self, name: str, kind: type) -> Any:
        given = self._content.get(name, {})
        if not isinstance(given, dict):
            raise self._fail((name,), f"{name} is a table: write [{name}], or {name} = {{…}}")
        fields = {field.name: field for field in dataclasses.fields(kind)}
        self._known_keys((name,), given, tuple(fields))
        values: dict[str, float] = {}
        for key, value in given.items():
            highest = 1.0 if key.endswith("share") or key in ("loss", "duplicate", "reorder") else 1e9
            whole = isinstance(fields[key].default, int)
            lowest = 1.0 if key == "clients" else 0.0
            values[key] = self._number((name, key), value, int if whole else float, lowest, highest)
        return kind(**values)

    def _net(self) -> NetSpec:
        net: NetSpec = self._table("net", NetSpec)
        if net.delay_mean_ms < net.delay_min_ms:
            raise self._fail(
                ("net", "delay_min_ms"),
                f"delay_min_ms ({net.delay_min_ms:g}) may be at most delay_mean_ms ({net.delay_mean_ms:g})",
            )
        return net

    def _workload(self) -> WorkloadSpec:
        work: WorkloadSpec = self._table("workload", WorkloadSpec)
        if work.cancel_share + work.replay_share > CHANGES_MAX:
            raise self._fail(
                ("workload", "cancel_share" if "cancel_share" in self._content["workload"] else "replay_share"),
                f"cancel_share ({work.cancel_share:g}) and replay_share ({work.replay_share:g}) may be at most "
                f"{CHANGES_MAX:g} together: the rest must submit what they change",
            )
        return work

    def _settings(self) -> dict[str, Any]:
        given = self._content.get("settings")
        if given is None:
            return {}
        if not isinstance(given, dict):
            raise self._fail(("settings",), "settings is a table: write [settings]")
        sources = {key: f"{self._name} line {self._lines.of(('settings', key))}" for key in given}
        for key, value in given.items():
            check_value(sources[key], key, value)
        check_order(msgspec.convert(given, Settings), sources, self._name)
        return {"settings": given}

    def _random(self, scale: str) -> RandomFaults | None:
        given = self._content.get("random")
        if given is None:
            return None
        if not isinstance(given, dict):
            raise self._fail(("random",), "random is a table: write [random]")
        self._known_keys(("random",), given, ("faults", "menu"))
        if "faults" not in given:
            raise self._fail(("random",), "random needs `faults`: how many to draw")
        menu = given.get("menu", {})
        if not isinstance(menu, dict):
            raise self._fail(("random", "menu"), "menu is a table of weights by kind: {partition = 3, kill = 1}")
        playable = [kind for kind, entry in MENU.items() if scale in entry.scales and not entry.pending]
        self._known_keys(("random", "menu"), menu, playable)
        weights = {kind: self._number(("random", "menu", kind), weight, float, 0, 1e6) for kind, weight in menu.items()}
        return RandomFaults(
            faults=int(self._number(("random", "faults"), given["faults"], int, 0, 1_000)), menu=weights
        )

    def _expect(self) -> tuple[str, ...]:
        given = self._content.get("expect", [])
        if not isinstance(given, list):
            raise self._fail(("expect",), "expect is a list of coverage points")
        for point in given:
            if point not in POINTS:
                raise self._fail(
                    ("expect",),
                    f"unknown coverage point {point!r}{hint(str(point), POINTS)}. Known: {', '.join(POINTS)}",
                )
        return tuple(given)

    # --- faults ---

    def _fault(self, number: int, given: Mapping[str, Any], scenario: Scenario) -> Fault:
        place: Place = ("fault", number)
        kind = given.get("kind")
        if not isinstance(kind, str) or kind not in MENU:
            text = f"unknown fault {kind!r}{hint(str(kind), MENU)}" if "kind" in given else "a fault needs a kind"
            where = (*place, "kind") if "kind" in given else place
            raise self._fail(where, f"{text}. Known: {', '.join(MENU)}")
        entry = MENU[kind]
        if scenario.scale not in entry.scales:
            raise self._fail(
                (*place, "kind"),
                f"{kind} cannot be played at scale {scenario.scale}, only at {', '.join(entry.scales)}",
            )
        if entry.pending and not scenario.pending:
            raise self._fail(
                (*place, "kind"), f"{kind} is pending ({entry.pending}): give the scenario a `pending`, too"
            )
        targets = _TARGETS[entry.hits]
        unit = ("for",) if entry.longest_s else ()
        self._known_keys(place, given, ("kind", "at", *unit, *targets, *entry.options))
        nodes, groups = self._targets(place, given, entry, scenario)
        at_s, for_s = self._times(place, given, scenario)
        options = {
            name: self._option((*place, name), given.get(name, option.default), option)
            for name, option in entry.options.items()
        }
        return Fault(kind=kind, at_s=at_s, for_s=for_s, nodes=nodes, groups=groups, options=options)

    def _times(self, place: Place, given: Mapping[str, Any], scenario: Scenario) -> tuple[float, float]:
        if "at" not in given:
            raise self._fail(place, "a fault needs `at`: the second when it begins")
        kind = given["kind"]
        at_s = self._duration((*place, "at"), given["at"])
        for_s = self._duration((*place, "for"), given.get("for", 0.0))
        if not for_s and MENU[kind].longest_s and kind not in RESTARTS:
            where = (*place, "for") if "for" in given else place
            raise self._fail(where, f"{kind} needs `for`, more than 0 s: how long it lasts")
        if at_s + for_s > scenario.duration_s:
            where = (*place, "for") if "for" in given and at_s <= scenario.duration_s else (*place, "at")
            raise self._fail(
                where,
                f"the fault ends at {at_s + for_s:g} s, outside the run: `at` and `for` may reach "
                f"{scenario.duration_s:g} s together (its duration)",
            )
        return at_s, for_s

    def _targets(
        self, place: Place, given: Mapping[str, Any], entry: FaultKind, scenario: Scenario
    ) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        if "node" in given and "nodes" in given:
            raise self._fail((*place, "nodes"), "give `node` or `nodes`, not both")
        nodes: tuple[str, ...] = ()
        if "node" in given:
            if not isinstance(given["node"], str):
                raise self._fail((*place, "node"), f'node must be the name of one, such as "n0", not {given["node"]!r}')
            nodes = self._nodes((*place, "node"), [given["node"]], scenario)
            if len(nodes) > 1 and entry.hits == "node":
                raise self._fail((*place, "node"), f"{given['kind']} hits one node at a time")
        elif "nodes" in given:
            nodes = self._nodes((*place, "nodes"), given["nodes"], scenario)
            if not nodes:
                raise self._fail((*place, "nodes"), 'nodes names nobody: give some, such as ["n0"], or "all"')
        if entry.hits in ("node", "nodes", "towards") and not nodes:
            word = "node" if entry.hits == "node" else "nodes"
            raise self._fail(place, f"{given['kind']} needs `{word}`: {', '.join(scenario.node_names()[:3])}, …")
        if entry.hits == "towards":
            return nodes, (self._receivers(place, given, nodes, scenario),)
        if entry.hits == "sides":
            return nodes, self._sides(place, given, scenario)
        return nodes, ()

    def _receivers(
        self, place: Place, given: Mapping[str, Any], senders: Sequence[str], scenario: Scenario
    ) -> tuple[str, ...]:
        if "to" not in given:
            raise self._fail(place, f"{given['kind']} needs `to`: the nodes that do not hear")
        receivers = self._nodes((*place, "to"), given["to"], scenario)
        both = [name for name in senders if name in receivers]
        if both or not receivers:
            raise self._fail((*place, "to"), f"{', '.join(both) or 'nobody'} is on both sides: name others in `to`")
        return receivers

    def _sides(self, place: Place, given: Mapping[str, Any], scenario: Scenario) -> tuple[tuple[str, ...], ...]:
        where = (*place, "groups")
        groups = given.get("groups")
        if not isinstance(groups, list) or len(groups) < 2:
            raise self._fail(
                where if "groups" in given else place, 'needs `groups`: two sides or more, [["n0"], ["n1"]]'
            )
        sides = tuple(self._nodes(where, group, scenario) for group in groups)
        names = [name for side in sides for name in side]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise self._fail(where, f"{twice} is on two sides: each node may be on one")
        if not all(sides):
            raise self._fail(where, "a side without nodes")
        return sides

    def _nodes(self, place: Place, given: object, scenario: Scenario) -> tuple[str, ...]:
        known = scenario.node_names()
        if given == "all":
            return known
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            raise self._fail(place, f'{place[-1]} must be a list of nodes such as ["n0", "n2-n4"], or "all"')
        found: list[str] = []
        for word in given:
            first, _, last = word.partition("-")
            for name in (first, last or first):
                if name not in known:
                    raise self._fail(place, f"there is no node {name!r} among {known[0]} to {known[-1]}")
            start, end = known.index(first), known.index(last or first)
            if end < start:
                raise self._fail(place, f"{word} counts backwards")
            found += known[start : end + 1]
        if len(set(found)) != len(found):
            raise self._fail(place, "a node is named twice")
        return tuple(found)

    def _option(self, place: Place, value: object, option: Option) -> Value:
        if option.choices:
            return self._choice(place, value, option.choices)
        assert option.lowest is not None
        assert option.highest is not None
        kind = int if isinstance(option.default, int) else float
        return self._number(place, value, kind, option.lowest, option.highest)

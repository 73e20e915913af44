from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos import scenario_file, scenario_reader, swarm
from chaos.fault_menu import MENU
from chaos.scenario import Scenario
from chaos.toml_lines import Lines
from mesh.errors import ConfigError

RUN = 'nodes = 3\nduration = "20s"\n'
KILL = '[[fault]]\nkind = "kill"\n'


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_every_scenario_reads_back_as_it_was_written(seed):
    scenario = swarm.draw(seed)
    assert scenario_file.parse(scenario_file.dump(scenario), "drawn.toml") == scenario


@given(st.text(), st.text())
def test_any_text_reads_back_as_it_was_written(about, pending):
    scenario = dataclasses.replace(Scenario(name="x"), about=about, pending=pending)
    assert scenario_file.parse(scenario_file.dump(scenario), "x.toml") == scenario


def test_defaults_are_filled_in_and_names_come_from_the_file():
    scenario = scenario_file.parse(RUN + KILL + 'at = 1\nfor = "500ms"\nnodes = ["n0-n1"]\n', "some/where.toml")
    (fault,) = scenario.faults
    assert (scenario.name, fault.nodes, fault.at_s, fault.for_s) == ("where", ("n0", "n1"), 1.0, 0.5)
    cut = scenario_file.parse(RUN + '[[fault]]\nkind = "power-cut"\nat = 1\nnodes = "all"\n', "x").faults[0]
    assert (cut.nodes, cut.options) == (("n0", "n1", "n2"), {"image": "subset"})


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("nodez = 3\n", 1, "unknown key 'nodez' (do you mean 'nodes'?). Known: name, about"),
        ("nodes = 3.5\n", 1, "nodes must be a whole number from 2 to 50, not 3.5"),
        ("\n# more\nnodes = 51\n", 3, "from 2 to 50"),
        ('scale = "protocol"\nnodes = 1001\n', 2, "from 2 to 1000"),
        ('scale = "big"\n', 1, "one of node, protocol"),
        ('profile = "moon"\n', 1, "one of local, lan, wan"),
        ('duration = "5x"\n', 1, 'such as "500ms", "30s", "2m"'),
        ("duration = 0\n", 1, "duration must be more than 0 s and at most 604800 s"),
        ('settle = "169h"\n', 1, "at most 604800 s"),
        ("seed = -1\n", 1, "seed must be"),
        ("name = 3\n", 1, "name must be a text"),
        (RUN + "[net]\nlos = 0.1\n", 4, "unknown key 'los' (do you mean 'loss'?)"),
        (RUN + "[net]\nloss = 1.1\n", 4, "loss must be a number from 0 to 1"),
        (RUN + "[workload]\nclients = 1.5\n", 4, "clients must be a whole number"),
        (RUN + "[net]\ndelay_min_ms = 5\n", 4, "delay_min_ms (5) may be at most delay_mean_ms (1)"),
        (RUN + "[workload]\nclients = 0\n", 4, "clients must be a whole number from 1"),
        (RUN + "[workload]\nreplay_share = 0.5\n", 4, "may be at most 0.5 together"),
        (RUN + "[settings]\nmaxAttempt = 3\n", 4, "unknown setting 'maxAttempt'; did you mean maxAttempts?"),
        (
            RUN + '[settings]\nmaxAttempts = "3"\n',
            4,
            "maxAttempts must be a whole number from 1 to 1000000, not a text",
        ),
        (RUN + "[settings]\nsuspectAfterMs = 900\ndeadAfterMs = 300\n", 5, "must not be smaller than suspectAfterMs"),
        ('scale = "protocol"\n[disk]\nlatency_ms = 3\n', 3, "scale protocol heeds nothing of [disk], not 'latency_ms'"),
        ('scale = "protocol"\n[workload]\nclients = 3\n', 3, "heeds only rate of [workload]"),
        (RUN + "[random]\nmenu = {kill = 1}\n", 3, "`faults`"),
        (RUN + "[random]\nfaults = 3\nmenu = {kil = 1}\n", 5, "(do you mean 'kill'?)"),
        (RUN + 'expect = [\n  "taken-over",\n  "xx",\n]\n', 3, "unknown coverage point 'xx'"),
        (RUN + '[[fault]]\nkind = "kil"\nat = 1\n', 4, "unknown fault 'kil' (do you mean 'kill'?)"),
        (RUN + "[[fault]]\nat = 1\n", 3, "a fault needs a kind"),
        (RUN + KILL + 'nodes = ["n0"]\n', 3, "a fault needs `at`"),
        (RUN + KILL + "at = 1\n", 3, "kill needs `nodes`"),
        (RUN + KILL + 'at = 1\nnode = "n3"\n', 6, "there is no node 'n3' among n0 to n2"),
        (RUN + KILL + 'at = 1\nnode = "n0"\nnodes = ["n1"]\n', 7, "not both"),
        (RUN + KILL + 'at = 21\nnode = "n0"\n', 5, "outside the run"),
        (RUN + KILL + 'at = 19\nfor = "2s"\nnode = "n0"\n', 6, "ends at 21 s, outside the run"),
        (RUN + KILL + 'at = -1\nnode = "n0"\n', 5, "at must be seconds"),
        (RUN + KILL + 'at = 1\nnode = "n0"\nshare = 0.1\n', 7, "unknown key 'share'"),
        (RUN + '[[fault]]\nkind = "loss"\nat = 1\nfor = 1\nshare = 2\n', 7, "share must be a number from 0 to 1"),
        (RUN + '[[fault]]\nkind = "pause"\nat = 1\nnode = "n0"\n', 3, "pause needs `for`, more than 0 s"),
        (RUN + '[[fault]]\nkind = "clog"\nat = 1\nfor = "0s"\n', 6, "clog needs `for`, more than 0 s"),
        (RUN + '[[fault]]\nkind = "clog"\nat = 1\nfor = 1\nnodes = []\n', 7, "nodes names nobody"),
        (RUN + KILL + 'at = 1\nnode = ["n0"]\n', 6, "node must be the name of one"),
        (RUN + '[[fault]]\nkind = "power-cut"\nat = 1\nnode = "n0"\nimage = "all"\n', 7, "one of drop, subset, torn"),
        (RUN + '[[fault]]\nkind = "isolate"\nat = 1\nnode = "n0-n1"\n', 6, "one node at a time"),
        (RUN + '[[fault]]\nkind = "partition"\nat = 1\n', 3, "two sides or more"),
        (RUN + '[[fault]]\nkind = "partition"\nat = 1\ngroups = [["n0"], ["n0", "n1"]]\n', 6, "n0 is on two sides"),
        (RUN + '[[fault]]\nkind = "one-way"\nat = 1\nnode = "n0"\nto = ["n0"]\n', 7, "on both sides"),
        (RUN + '[[fault]]\nkind = "one-way"\nat = 1\nnode = "n0"\n', 3, "needs `to`"),
        (
            'scale = "protocol"\n' + RUN + '[[fault]]\nkind = "wipe"\nat = 1\nnode = "n0"\n',
            5,
            "cannot be played at scale",
        ),
        (RUN + "fault = 3\n", 3, "[[fault]]"),
    ],
)
def test_what_is_wrong_is_named_by_its_line_with_what_is_allowed(text, line, words):
    with pytest.raises(ConfigError) as caught:
        scenario_file.parse(text, "bad.toml")
    assert str(caught.value).startswith(f"bad.toml line {line}: ")
    assert words in str(caught.value)


def test_a_fault_whose_defence_is_missing_needs_a_pending_scenario(monkeypatch):
    menu = {**MENU, "kill": dataclasses.replace(MENU["kill"], pending="nobody starts it again")}
    monkeypatch.setattr(scenario_reader, "MENU", menu)
    text = RUN + KILL + 'at = 1\nfor = "1s"\nnode = "n0"\n'
    with pytest.raises(ConfigError, match=r"line 4: kill is pending .nobody starts it again.: give the scenario"):
        scenario_file.parse(text, "bad.toml")
    assert scenario_file.parse('pending = "later"\n' + text, "good.toml").pending == "later"


def test_broken_toml_and_missing_files_and_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"bad\.toml: is no TOML: .*line 1"):
        scenario_file.parse("x = = 1\n", "bad.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        scenario_file.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="there is no scenario 'none'"):
        scenario_file.named("none")


def test_lines_are_found_behind_texts_and_lists_of_several_lines():
    text = "\n".join(
        [
            'about = """a text',
            "nodes = 3  # no key",
            '[net]"""',
            "list = [  # one",
            "  'x = 1',",
            "]",
            "[a.b]",
            'c = "# ] ="',
            "d = 1",
            "[[e]]",
            "f = {g = 1, h = 'i = 2'}",
            "[[e]]",
            "f = 2",
        ]
    )
    lines = Lines(text)
    places = {("about",): 1, ("list",): 4, ("a", "b"): 7, ("a", "b", "c"): 8, ("a", "b", "d"): 9}
    places |= {("e", 0, "f"): 11, ("e", 0, "f", "g"): 11, ("e", 1): 12, ("e", 1, "f"): 13, ("e", 1, "none"): 12}
    assert {place: lines.of(place) for place in places} == places
    assert lines.of(("nodes",)) == 1

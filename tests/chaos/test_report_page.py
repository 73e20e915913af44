"""timeline.html: complete, closed in itself, safe whatever a run said, and never too large."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chaos.report.layout import lay_out
from chaos.report.page import DETAILS_CHARS_MAX, page, script_json
from chaos.report.palette import INK, LOOKS, WORST_LAST
from chaos.runs import RunResult, TimelineEvent, Violation
from chaos.scenario import Scenario

HOSTILE = "</script><script>alert(1)</script><!-- & <b>\"'</b> {{data}} \u2028"
VOID = ("meta", "input")


class Reader(HTMLParser):
    """Elements with their attributes and text; fails on anything left open or closed wrongly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[int] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            self.elements[element][2].append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [
            "".join(text)
            for name, attrs, text in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in attributes.items())
        ]

    def data(self) -> Any:
        return json.loads(self.texts("script", id="data")[0])


def run(*events: TimelineEvent, violations: tuple[Violation, ...] = ()) -> RunResult:
    return RunResult(
        scenario=Scenario(name="split-brain", seed=7, about="Two sides."),
        violations=violations,
        coverage={"takeover": 3},
        trace_hash="abc",
        simulated_s=70.0,
        cpu_s=123.456,
        healed_ms=60_000.0,
        settled_ms=65_000.0,
        timeline=events,
        facts={"submits": 11},
    )


def html(result: RunResult) -> str:
    return page(result, lay_out(result), replay_command="relaymesh chaos replay x", options="seed = 7")


def call(detail: str, at_ms: float = 5.0, host: str = "n0") -> TimelineEvent:
    return TimelineEvent(at_ms=at_ms, until_ms=at_ms + 1, lane="clients", host=host, label="submit", detail=detail)


def test_a_page_is_well_formed_and_shows_verdict_replay_and_options() -> None:
    read = Reader(html(run(call("key k1"))))

    assert read.texts("title") == ["split-brain, seed 7: ok"]
    assert read.texts("code", id="replay") == ["relaymesh chaos replay x"]
    assert "seed = 7" in read.texts("pre")
    assert [row["lane"] for row in read.data()["rows"]] == ["clients"]


def test_a_page_contains_every_violation_as_text_and_as_data() -> None:
    violations = tuple(Violation(f"promise-{number}", number * 10.0, f"detail {number}") for number in range(1_000))

    read = Reader(html(run(violations=violations)))

    shown = [text for name, attrs, text in read.elements if "data-violation" in attrs]
    assert len(shown) == 1_000
    assert "".join(shown[700]) == "promise-700 7.000 s detail 700"
    assert read.data()["violations"][700] == [7_000.0, "promise-700", "detail 700"]


def test_nothing_that_a_run_says_becomes_markup_or_program() -> None:
    result = run(call(HOSTILE, host=HOSTILE), violations=(Violation(HOSTILE, 1, HOSTILE),))
    result = replace(result, scenario=replace(result.scenario, name=HOSTILE, about=HOSTILE), facts={HOSTILE: [HOSTILE]})
    plain = run(call("x"), violations=(Violation("x", 1, "x"),))

    read = Reader(page(result, lay_out(result), replay_command=HOSTILE, options=HOSTILE))
    scripts, bold = (len(read.texts(tag)) for tag in ("script", "b"))

    assert scripts == 2
    assert bold == len(Reader(html(plain)).texts("b"))
    assert HOSTILE in read.data()["texts"]
    assert read.texts("code", id="replay") == [HOSTILE]


@given(st.text())
def test_json_in_a_script_reads_back_and_cannot_end_it(text: str) -> None:
    put = script_json({"text": text})

    assert json.loads(put) == {"text": text}
    assert not any(letter in put for letter in "<>&\u2028\u2029")


def test_a_page_loads_nothing_from_elsewhere() -> None:
    read = Reader(html(run(call("x"))))

    loads = [
        name for name, attrs, _ in read.elements if "src" in attrs or "href" in attrs or name in ("link", "iframe")
    ]
    assert loads == []
    assert "url(" not in read.texts("style")[0]
    assert "default-src 'none'" in html(run())


def test_every_colour_has_a_light_and_a_dark_form_and_every_look_its_place_in_the_legend() -> None:
    read = Reader(html(run()))

    style = read.texts("style")[0]
    assert all(style.count(f"--{name}:#") == 2 for name in [*INK, *LOOKS])
    assert sorted(WORST_LAST) == sorted(LOOKS)
    assert [attrs["data-look"] for _, attrs, _ in read.elements if "data-look" in attrs] == list(LOOKS)


def test_very_much_detail_is_cut_and_small_pages_keep_theirs() -> None:
    large = run(*(call(f"{number} " + "x" * 1_490, at_ms=number) for number in range(20_000)))

    assert len(html(large)) < DETAILS_CHARS_MAX * 1.5
    assert "x" * 1_490 in Reader(html(run(call("x" * 1_490)))).data()["texts"]


def test_a_page_depends_on_nothing_but_the_run() -> None:
    result = run(call("x"), violations=(Violation("a", 1, "b"),))

    assert html(result) == html(replace(result, cpu_s=999.0))

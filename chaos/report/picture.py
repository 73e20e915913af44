"""timeline.png: the chart as a picture of fixed width, for where a page cannot be opened."""

from __future__ import annotations

from chaos.report.bitmap import GLYPH_HEIGHT, GLYPH_WIDTH, Bitmap, fitted
from chaos.report.chart import Bar, Chart, Row
from chaos.report.palette import INK, LOOKS, WORST_LAST
from chaos.report.verdict import headline
from chaos.runs import RunResult

WIDTH = 1_600
HEIGHT_MAX = 8_000
VIOLATIONS_SHOWN = 12

_GUTTER, _MARGIN = 110, 16
_TRACK = 11
_ROW_GAP, _HOST_GAP = 3, 10
_TOP = 84
_TICKS_MAX = 16

_COLOURS = [*(light for light, _ in INK.values()), *(look.light for look in LOOKS.values())]
_INDEX = {name: index for index, name in enumerate([*INK, *LOOKS])}


def picture(result: RunResult, chart: Chart) -> bytes:
    """The PNG. Rows that would make it higher than HEIGHT_MAX are left out, and it says so."""
    rows = list(_placed(chart))
    bottom = rows[-1][1] + rows[-1][0].tracks * _TRACK if rows else _TOP + 20
    notes = _notes(chart, left_out=len(chart.rows) - len(rows))
    bitmap = Bitmap(WIDTH, bottom + 40 + (len(notes) + 1) * (GLYPH_HEIGHT + 5), _COLOURS)
    drawing = _Drawing(bitmap, chart, bottom)
    drawing.head(result)
    drawing.axis()
    host = None
    for row, y in rows:
        if row.host != host:
            drawing.host(row, y)
            host = row.host
        drawing.row(row, y)
    drawing.moments()
    for number, (note, ink) in enumerate(notes):
        line = fitted(note, WIDTH - 2 * _MARGIN)
        bitmap.text(_MARGIN, bottom + 40 + number * (GLYPH_HEIGHT + 5), line, _INDEX[ink])
    return bitmap.png()


def _placed(chart: Chart) -> list[tuple[Row, int]]:
    """The rows with the y of their upper edge."""
    placed: list[tuple[Row, int]] = []
    y, host = _TOP + 12, None
    for row in chart.rows:
        y += _HOST_GAP if placed and row.host != host else 0
        host = row.host
        if y + row.tracks * _TRACK > HEIGHT_MAX:
            break
        placed.append((row, y))
        y += row.tracks * _TRACK + _ROW_GAP
    return placed


def _notes(chart: Chart, *, left_out: int) -> list[tuple[str, str]]:
    """Lines of text under the chart, with their ink."""
    notes = [
        (f"{number}. {violation}", "violation")
        for number, violation in enumerate(chart.violations[:VIOLATIONS_SHOWN], 1)
    ]
    more = len(chart.violations) - len(notes)
    omitted = "; ".join(part for part in (chart.omitted, f"{left_out} rows" if left_out else "") if part)
    return [
        *notes,
        *([(f"and {more} more violations: see verdict.json", "violation")] if more else []),
        *([(f"Not drawn: {omitted}", "faint")] if omitted else []),
    ]


class _Drawing:
    """One chart on one bitmap, whose rows end at `bottom`."""

    def __init__(self, bitmap: Bitmap, chart: Chart, bottom: int) -> None:
        self._bitmap = bitmap
        self._chart = chart
        self._bottom = bottom

    def _x(self, at_ms: float) -> int:
        span_ms = self._chart.end_ms - self._chart.begin_ms
        return _GUTTER + round((at_ms - self._chart.begin_ms) / span_ms * (WIDTH - _GUTTER - _MARGIN))

    def head(self, result: RunResult) -> None:
        """Title and legend."""
        ink = _INDEX["violation" if result.violations else "text"]
        self._bitmap.text(_MARGIN, 14, fitted(headline(result), WIDTH - 2 * _MARGIN, scale=2), ink, scale=2)
        x = _MARGIN
        for name, look in LOOKS.items():
            self._shape(name, x, 40, 14, _TRACK)
            self._bitmap.text(x + 19, 42, look.meaning, _INDEX["faint"])
            x += 19 + (len(look.meaning) + 3) * GLYPH_WIDTH

    def axis(self) -> None:
        """Seconds, as lines behind the rows."""
        step_ms = tick_ms(self._chart.end_ms - self._chart.begin_ms, _TICKS_MAX)
        number = -int(-self._chart.begin_ms // step_ms)
        while (at_ms := number * step_ms) <= self._chart.end_ms:
            x = self._x(at_ms)
            text = f"{at_ms / 1000:g} s"
            self._bitmap.fill(x, _TOP, 1, self._bottom - _TOP, _INDEX["line"])
            self._bitmap.text(min(x, WIDTH - len(text) * GLYPH_WIDTH), _TOP - 12, text, _INDEX["faint"])
            number += 1

    def host(self, row: Row, y: int) -> None:
        """A line above a host's first row, and its name."""
        self._bitmap.fill(_MARGIN, y - 4, WIDTH - 2 * _MARGIN, 1, _INDEX["line"])
        self._bitmap.text(_MARGIN, y + 2, fitted(row.host, 48), _INDEX["text"])

    def row(self, row: Row, y: int) -> None:
        """Its title and bars, the gravest last."""
        title = fitted(row.title, 46)
        self._bitmap.text(_GUTTER - 8 - len(title) * GLYPH_WIDTH, y + 2, title, _INDEX["faint"])
        drawn: dict[tuple[str, int, int], int] = {}
        for bar in sorted(row.bars, key=lambda bar: WORST_LAST.index(bar.look)):
            left = self._x(bar.from_ms)
            width = max(2, self._x(bar.end_ms) - left)
            if drawn.get((bar.look, bar.track, left), 0) < width:  # what falls on one pixel is drawn once
                drawn[bar.look, bar.track, left] = width
                self._bar(bar, left, y + bar.track * _TRACK, width)

    def _bar(self, bar: Bar, left: int, y: int, width: int) -> None:
        self._shape(bar.look, left, y, width, _TRACK - 1)
        if bar.look == "fault":
            self._bitmap.text(left + 3, y + 1, fitted(bar.label, width - 4), _INDEX["text"])

    def _shape(self, look_name: str, x: int, y: int, width: int, height: int) -> None:
        look, colour = LOOKS[look_name], _INDEX[look_name]
        tall = max(2, round(height * look.height))
        top = y + height - tall
        if look.filling == "full" or width < 4:
            self._bitmap.fill(x, top, width, tall, colour)
        elif look.filling == "stripes":
            self._bitmap.stripes(x, top, width, tall, colour)
        else:
            self._bitmap.outline(x, top, width, tall, colour)

    def moments(self) -> None:
        """Healing, settling and violations, through all rows."""
        foot = self._bottom + 6
        for at_ms, text, y in ((self._chart.healed_ms, "healed", foot), (self._chart.settled_ms, "settled", foot + 12)):
            if at_ms is not None:
                self._bitmap.fill(self._x(at_ms), _TOP, 1, y + 6 - _TOP, _INDEX["healed"])
                x = min(self._x(at_ms) + 3, WIDTH - len(text) * GLYPH_WIDTH)
                self._bitmap.text(x, y, text, _INDEX["healed"])
        free_x = 0
        for number, violation in enumerate(self._chart.violations, 1):
            x = self._x(violation.at_ms)
            if x < free_x:
                continue  # its number would cover the one before
            free_x = x + (len(str(number)) + 1) * GLYPH_WIDTH
            self._bitmap.dashes(x, _TOP, self._bottom - _TOP, _INDEX["violation"])
            self._bitmap.text(x - 1, _TOP - 24, str(number), _INDEX["violation"])


def tick_ms(span_ms: float, ticks_max: int) -> float:
    """A round distance between lines of an axis: 1, 2 or 5 times a power of ten."""
    power = 1.0
    while True:
        for factor in (1, 2, 5):
            if span_ms / (power * factor) <= ticks_max:
                return power * factor
        power *= 10

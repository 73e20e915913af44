"""Goal: `30s` means the same everywhere. Method: tables of forms, and the law that what is shown can be read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError
from tools.durations import DURATION_MS_MAX, format_age, format_duration, parse_duration_ms


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("500ms", 500),
        ("30s", 30_000),
        (" 2h ", 7_200_000),
        ("1.5s", 1_500),
        ("5m", 300_000),
        ("0.001s", 1),
        ("1d", 86_400_000),
    ],
)
def test_durations_are_read_as_milliseconds(text, expected_ms):
    assert parse_duration_ms(text, option="--timeout") == expected_ms


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "1 s", "1w", "1e3s", "0s", "0.5ms", "367d", "٣s", "9" * 20 + "ms"]
)
def test_anything_else_is_refused_naming_the_option(text):
    with pytest.raises(ConfigError, match="--timeout"):
        parse_duration_ms(text, option="--timeout")


def test_the_longest_duration_is_accepted_and_one_more_millisecond_is_not():
    assert parse_duration_ms(f"{DURATION_MS_MAX}ms", option="--timeout") == DURATION_MS_MAX
    with pytest.raises(ConfigError):
        parse_duration_ms(f"{DURATION_MS_MAX + 1}ms", option="--timeout")


@pytest.mark.parametrize(
    ("duration_ms", "expected"),
    [(0, "0ms"), (999, "999ms"), (1_000, "1s"), (185_000, "3m 5s"), (7_200_000, "2h"), (90_000_000, "1d 1h")],
)
def test_spans_are_shown_in_at_most_two_units(duration_ms, expected):
    assert format_duration(duration_ms) == expected


@given(st.integers(1, DURATION_MS_MAX))
def test_a_shown_span_reads_back_within_its_smaller_unit(duration_ms):
    parts = format_duration(duration_ms).split()
    read_back = sum(parse_duration_ms(part, option="x") for part in parts)

    assert 0 <= duration_ms - read_back < max(1_000, duration_ms * 0.05)


def test_ages_look_back_and_ahead():
    assert format_age(1_000, now_ms=13_000) == "12s ago"
    assert format_age(13_000, now_ms=1_000) == "in 12s"
    assert format_age(1_000, now_ms=1_500) == "now"

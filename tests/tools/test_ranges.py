from __future__ import annotations

import pytest

from mesh.errors import ConfigError
from tools.ranges import SEED_MAX, parse_range


def test_a_range_holds_both_its_ends():
    assert parse_range("3-7", option="--nodes") == range(3, 8)
    assert parse_range(" 7 ", option="--seeds") == range(7, 8)
    assert parse_range(f"0-{SEED_MAX}", option="--seeds")[-1] == SEED_MAX


@pytest.mark.parametrize("text", ["", "-", "3-", "-3", "7-3", "2-5", "3-51", "3..7", "a-b", "3-7-9", "٣"])
def test_anything_else_is_refused_with_the_name_of_the_option(text):
    with pytest.raises(ConfigError, match="--nodes"):
        parse_range(text, option="--nodes", lowest=3, highest=50)

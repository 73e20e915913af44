"""Goal: what the commands about settings print. Method: a scripted node."""

from __future__ import annotations

import time


def test_the_history_tells_people_how_long_ago_and_programs_when(fake_node, relaymesh):
    reload = {"timestamp": int(time.time() * 1000) - 90_000, "result": "applied", "source": "file", "message": "fine"}
    fake_node.answers["settings-history"] = [reload]

    shown = relaymesh("--root", fake_node.root, "settings-history").out.splitlines()

    assert shown[0].split()[0] == "RELOADED"
    assert shown[1].startswith("1m 30s ago")
    assert relaymesh("--root", fake_node.root, "settings-history", "--json").json == [reload]

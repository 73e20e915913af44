"""The Python agents of `relaymesh demo`, written as a user would: count words, and merge what all steps found."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from relaymesh import Context, agent

_WORD = re.compile(rb"[A-Za-z]{3,24}")
TOP_WORDS = 10


def count_words_of(paths: list[str]) -> dict[str, Any]:
    """Files, bytes and words of some files, and how often each word (3 to 24 letters, in lower case) occurs."""
    size, words = 0, Counter[bytes]()
    for path in paths:
        content = Path(path).read_bytes()
        size += len(content)
        words.update(_WORD.findall(content.lower()))
    return {"files": len(paths), "bytes": size, "words": {word.decode(): times for word, times in words.items()}}


def combine(counts: list[dict[str, Any]], digest_lines: list[str]) -> dict[str, Any]:
    """One result of many parts; the order of the parts does not matter."""
    words = Counter[str]()
    for part in counts:
        words.update(part["words"])
    top = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:TOP_WORDS]
    return {
        "files": sum(part["files"] for part in counts),
        "bytes": sum(part["bytes"] for part in counts),
        "words": words.total(),
        "distinctWords": len(words),
        "topWords": [list(item) for item in top],
        "digestedFiles": len(digest_lines),
        "digest": hashlib.sha256("\n".join(sorted(digest_lines)).encode()).hexdigest(),
    }


@agent("demo-count", timeout_s=60)
def count_words(payload: dict[str, Any]) -> dict[str, Any]:
    """Count the words of one batch. `holdS` keeps the slot a little longer, so that people can watch."""
    counted = count_words_of(payload["paths"])
    time.sleep(payload["holdS"])
    return counted


@agent("demo-merge", timeout_s=60)
def merge(ctx: Context, payload: str) -> dict[str, Any]:
    """Merge the outputs of all steps before: `hash-*` gives lines of digests, `count-*` gives JSON."""
    counts = [json.loads(output) for name, output in ctx.parents.items() if name.startswith("count-")]
    lines = [
        line
        for name, output in ctx.parents.items()
        if name.startswith("hash-")
        for line in output.decode("utf-8", "surrogateescape").splitlines()
    ]
    return combine(counts, lines)

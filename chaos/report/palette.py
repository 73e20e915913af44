"""The colours of a timeline, once for the page and the picture.

Blue, amber and dark red keep apart for the colour-blind by hue and by lightness. No meaning rests on colour alone:
looks also differ in height and filling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """How one kind of bar is drawn, everywhere."""

    light: str
    """Colour on white, as #rrggbb."""
    dark: str
    """Colour on black."""
    height: float
    """Share of the track's height, measured from its foot."""
    filling: str
    """`full`, `stripes` or `outline`."""
    meaning: str
    """What the legend says."""


LOOKS: Mapping[str, Look] = {
    "plain": Look("#7d8590", "#8b949e", 0.7, "full", "neutral"),
    "good": Look("#2474b5", "#58a6e6", 0.7, "full", "went well"),
    "warn": Look("#d98e04", "#f0b43c", 1.0, "stripes", "error or refusal"),
    "bad": Look("#b3261e", "#ff6b5e", 1.0, "full", "failed, or outcome unknown"),
    "fault": Look("#7a4fa3", "#b890e0", 1.0, "outline", "fault"),
    "alive": Look("#2474b5", "#58a6e6", 0.3, "full", "all ALIVE"),
    "suspect": Look("#d98e04", "#f0b43c", 0.7, "stripes", "some SUSPECT"),
    "dead": Look("#b3261e", "#ff6b5e", 1.0, "full", "some DEAD"),
    "left": Look("#7d8590", "#8b949e", 0.7, "outline", "some LEFT"),
    "down": Look("#57606a", "#6e7681", 1.0, "outline", "process down"),
}
"""By name: tones of events, then what a membership row shows. Later ones in `WORST_LAST` hide earlier ones."""

WORST_LAST = ("plain", "good", "alive", "left", "down", "fault", "warn", "suspect", "bad", "dead")
"""Order of drawing: where several marks fall on one pixel the gravest stays visible."""

INK: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#0d1117"),
    "panel": ("#f6f8fa", "#161b22"),
    "text": ("#1f2328", "#e6edf3"),
    "faint": ("#59636e", "#9198a1"),
    "line": ("#d1d9e0", "#30363d"),
    "violation": ("#cf1322", "#ff4d4f"),
    "healed": ("#1a7f37", "#3fb950"),
    "accent": ("#0969da", "#4493f8"),
}
"""Everything that is no bar: (light, dark)."""

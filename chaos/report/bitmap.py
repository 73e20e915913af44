"""A picture of few colours with rectangles and text, and its PNG: without a drawing library, so equal everywhere.

One byte a pixel, an index into the palette. Text is a 5x7 font of printable ASCII; everything else shows as "?".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

GLYPH_WIDTH, GLYPH_HEIGHT = 6, 9
"""Pixels that a character takes at scale 1, with the gap to the next character and line."""

_GLYPHS = bytes.fromhex(
    "0000000000" "00005f0000" "0007000700" "147f147f14" "242a7f2a12" "2313086462" "3649562050" "0008070300"
    "001c224100" "0041221c00" "2a1c7f1c2a" "08083e0808" "0080703000" "0808080808" "0000606000" "2010080402"
    "3e5149453e" "00427f4000" "7249494946" "2141494d33" "1814127f10" "2745454539" "3c4a494931" "4121110907"
    "3649494936" "464949291e" "0000140000" "0040340000" "0008142241" "1414141414" "0041221408" "0201590906"
    "3e415d594e" "7c1211127c" "7f49494936" "3e41414122" "7f4141413e" "7f49494941" "7f09090901" "3e41415173"
    "7f0808087f" "00417f4100" "2040413f01" "7f08142241" "7f40404040" "7f021c027f" "7f0408107f" "3e4141413e"
    "7f09090906" "3e4151215e" "7f09192946" "2649494932" "03017f0103" "3f4040403f" "1f2040201f" "3f4038403f"
    "6314081463" "0304780403" "6159494d43" "007f414141" "0204081020" "004141417f" "0402010204" "4040404040"
    "0003070800" "2054547840" "7f28444438" "3844444428" "384444287f" "3854545418" "00087e0902" "18a4a49c78"
    "7f08040478" "00447d4000" "2040403d00" "7f10284400" "00417f4000" "7c04780478" "7c08040478" "3844444438"
    "fc18242418" "18242418fc" "7c08040408" "4854545424" "04043f4424" "3c4040207c" "1c2040201c" "3c4030403c"
    "4428102844" "4c9090907c" "4464544c44" "0008364100" "0000770000" "0041360800" "0201020402"
)  # fmt: skip
"""Space to tilde, five columns each; the lowest bit is the top row."""


class Bitmap:
    """A canvas, filled with the first colour. What lies outside it is clipped. `colours` are #rrggbb, at most 256."""

    def __init__(self, width: int, height: int, colours: Sequence[str]) -> None:
        assert len(colours) <= 256, "an index is one byte"
        self.width = width
        self.height = height
        self._colours = colours
        self._pixels = bytearray(width * height)

    def pixel(self, x: int, y: int) -> int:
        """The colour there."""
        return self._pixels[y * self.width + x]

    def fill(self, x: int, y: int, width: int, height: int, colour: int) -> None:
        """A full rectangle."""
        left, right = max(0, x), min(self.width, x + width)
        if right <= left:
            return
        run = bytes([colour]) * (right - left)
        for line in range(max(0, y), min(self.height, y + height)):
            self._pixels[line * self.width + left : line * self.width + right] = run

    def outline(self, x: int, y: int, width: int, height: int, colour: int) -> None:
        """An empty rectangle with a border of one pixel."""
        self.fill(x, y, width, 1, colour)
        self.fill(x, y + height - 1, width, 1, colour)
        self.fill(x, y, 1, height, colour)
        self.fill(x + width - 1, y, 1, height, colour)

    def stripes(self, x: int, y: int, width: int, height: int, colour: int) -> None:
        """A rectangle of slanting stripes, continuous between neighbours."""
        for line in range(max(0, y), min(self.height, y + height)):
            for column in range(max(0, x), min(self.width, x + width)):
                if (column + line) % 4 < 2:
                    self._pixels[line * self.width + column] = colour

    def dashes(self, x: int, y: int, height: int, colour: int) -> None:
        """A dashed vertical line, one pixel wide."""
        for start in range(y, y + height, 6):
            self.fill(x, start, 1, min(4, y + height - start), colour)

    def text(self, x: int, y: int, text: str, colour: int, *, scale: int = 1) -> None:
        """One line, its upper left corner at x, y."""
        for position, character in enumerate(text):
            code = ord(character) if " " <= character <= "~" else ord("?")
            for column, bits in enumerate(_GLYPHS[(code - 32) * 5 : (code - 31) * 5]):
                for row in range(8):
                    if bits >> row & 1:
                        left = x + (position * GLYPH_WIDTH + column) * scale
                        self.fill(left, y + row * scale, scale, scale, colour)

    def png(self) -> bytes:
        """The file."""
        assert len(_GLYPHS) == 95 * 5, "one glyph for every printable character"
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 3, 0, 0, 0)  # 8 bits, indexed colour
        lines = b"".join(
            b"\0" + self._pixels[start : start + self.width] for start in range(0, len(self._pixels), self.width)
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            (
                _chunk(b"IHDR", header),
                _chunk(b"PLTE", b"".join(bytes.fromhex(colour[1:]) for colour in self._colours)),
                _chunk(b"IDAT", zlib.compress(lines, 9)),
                _chunk(b"IEND", b""),
            )
        )


def fitted(text: str, width: int, *, scale: int = 1) -> str:
    """As much of the first line of `text` as `width` pixels hold."""
    line = text.partition("\n")[0]
    characters = max(0, width) // (GLYPH_WIDTH * scale)
    if len(line) <= characters:
        return line
    return line[: characters - 2] + ".." if characters > 4 else ""


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

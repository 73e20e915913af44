"""The PNG writer: what is drawn can be read back by anyone's decoder, here one of our own."""

from __future__ import annotations

import struct
import zlib

from hypothesis import given
from hypothesis import strategies as st

from chaos.report.bitmap import Bitmap, fitted

COLOURS = ("#ffffff", "#000000", "#b3261e")


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length) == (zlib.crc32(kind + data),)
        found.append((kind, data))
        at += 12 + length
    return found


def art(bitmap: Bitmap) -> list[str]:
    return ["".join(".#o"[bitmap.pixel(x, y)] for x in range(bitmap.width)) for y in range(bitmap.height)]


def test_a_png_holds_size_palette_and_pixels() -> None:
    bitmap = Bitmap(5, 3, COLOURS)
    bitmap.fill(1, 1, 2, 1, 2)

    found = dict(chunks(bitmap.png()))

    assert struct.unpack(">IIBBBBB", found[b"IHDR"]) == (5, 3, 8, 3, 0, 0, 0)
    assert found[b"PLTE"] == bytes.fromhex("ffffff000000b3261e")
    assert zlib.decompress(found[b"IDAT"]) == b"\0" + bytes(5) + b"\0\0\2\2\0\0" + b"\0" + bytes(5)
    assert [kind for kind, _ in chunks(bitmap.png())][-1] == b"IEND"


def test_letters_have_the_shapes_that_people_know() -> None:
    bitmap = Bitmap(12, 8, COLOURS)

    bitmap.text(0, 0, "Tp", 1)

    assert art(bitmap) == [
        "#####.......",
        "#.#.#.......",
        "..#...#.##..",
        "..#...##..#.",
        "..#...##..#.",
        "..#...#.##..",
        "..#...#.....",
        "......#.....",
    ]


def test_other_letters_than_ascii_show_as_question_marks() -> None:
    one, other = Bitmap(6, 8, COLOURS), Bitmap(6, 8, COLOURS)

    one.text(0, 0, "é", 1)
    other.text(0, 0, "?", 1)

    assert art(one) == art(other)


number = st.integers(-20, 40)


@given(number, number, number, number)
def test_whatever_lies_outside_is_clipped(x: int, y: int, width: int, height: int) -> None:
    bitmap = Bitmap(12, 9, COLOURS)

    bitmap.fill(x, y, width, height, 1)
    bitmap.stripes(x, y, width, height, 1)
    bitmap.dashes(x, y, height, 1)
    bitmap.text(x, y, "Wj", 1)
    bitmap.outline(x, y, width, height, 2)

    assert all(len(line) == 12 for line in art(bitmap))
    assert len(art(bitmap)) == 9
    assert len(zlib.decompress(dict(chunks(bitmap.png()))[b"IDAT"])) == 9 * 13


@given(st.text(max_size=40), st.integers(-5, 200))
def test_fitted_text_never_takes_more_room_than_there_is(text: str, width: int) -> None:
    shown = fitted(text, width)

    assert len(shown) * 6 <= max(0, width)
    assert "\n" not in shown

"""Pictures as terminals are sent them, read back as a terminal reads them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lorapod.cli.pictures import draw


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """Four fields of plain colours, 40 x 26: no multiple of a sixel's six rows."""
    pixels = np.zeros((26, 40, 3), np.uint8)
    pixels[:13, :20], pixels[:13, 20:], pixels[13:, :20], pixels[13:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    Image.fromarray(pixels).save(tmp_path / "flag.png")
    return tmp_path / "flag.png"


def from_sixels(text: str) -> NDArray[np.uint8]:
    """Decodes DEC's sixels as the VT340's manual describes them."""
    found = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\\n', text, re.DOTALL)
    assert found
    width, height = int(found[1]), int(found[2])
    pixels, colours = np.zeros((height + 6, width + 1, 3), np.uint8), {}
    colour, x, top = 0, 0, 0
    for number, kind, r, g, b, times, sign in re.findall(
        r"#(\d+)(?:;(\d);(\d+);(\d+);(\d+))?|(?:!(\d+))?([?-~$-])", found[3]
    ):
        if number and kind:
            colours[int(number)] = [round(int(part) * 2.55) for part in (r, g, b)]
        elif number:
            colour = int(number)
        elif sign == "$":
            x = 0
        elif sign == "-":
            x, top = 0, top + 6
        else:
            for bit in range(6):
                if (ord(sign) - 63) >> bit & 1:
                    pixels[top + bit, x : x + int(times or 1)] = colours[colour]
            x += int(times or 1)
    assert not pixels[height:].any() and not pixels[:, width:].any(), "nothing beyond the picture"
    return pixels[:height, :width]


def test_sixels_are_the_picture(flag: Path) -> None:
    assert np.array_equal(from_sixels(draw(flag, 80, 20, "sixel")), np.asarray(Image.open(flag)))


def test_kittys_pieces_are_the_picture(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    sent = draw(tmp_path / "noise.png", 80, 20, "kitty")
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", sent)
    assert len(pieces) > 1 and all(len(data) <= 4096 for _, data in pieces)
    assert [keys.endswith("m=0") for keys, _ in pieces] == [False] * (len(pieces) - 1) + [True]
    png = base64.standard_b64decode("".join(data for _, data in pieces))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), noise)


def test_half_blocks_keep_the_shape_and_stay_within_the_room(flag: Path) -> None:
    lines = draw(flag, 20, 5, "blocks").splitlines()
    widths = {line.count("▀") for line in lines}
    assert len(lines) <= 5 and widths == {15}, "40 x 26 within 20 x 10 is 15 x 10"
    assert "38;2;255;0;0" in lines[0] and "48;2;255;255;255" in lines[-1]


def test_pictures_without_a_ground_stand_on_white_and_turned_ones_upright(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert "38;2;255;255;255" in draw(tmp_path / "clear.png", 8, 8, "blocks")
    turned = Image.new("RGB", (40, 10), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    lines = draw(tmp_path / "turned.jpg", 40, 20, "blocks").splitlines()
    assert len(lines) == 20 and lines[0].count("▀") == 10

"""Embedded colour profiles. The profile here is sRGB with its red and green primaries exchanged."""

import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lorapod.data import Bucket, load_picture, place, probe

RED, GREEN, BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
"""sRGB's primaries, adapted to D50."""


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(*primaries: tuple[float, float, float], space: bytes = b"RGB ") -> bytes:
    """An ICC profile of version 2: primaries and a gamma of 2.2, or grey with that gamma."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78
    tags = {b"desc": text + b"\0" * (-len(text) % 4), b"cprt": b"text\0\0\0\0none\0\0\0\0"}
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)
    if primaries:
        for letter, primary in zip("rgb", primaries, strict=True):
            tags[f"{letter}XYZ".encode()] = b"XYZ \0\0\0\0" + fixed(*primary)
            tags[f"{letter}TRC".encode()] = curve
    else:
        tags[b"kTRC"] = curve
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I", at + len(body)) + b"\0\0\0\0" + struct.pack(">I", 0x02400000) + b"mntr" + space + b"XYZ "
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


EXCHANGED = profile(GREEN, RED, BLUE)


def load(path: Path) -> np.ndarray:
    info = probe(path)
    return load_picture(path, place(info.width, info.height, [Bucket(info.width, info.height)]))


@pytest.mark.parametrize(
    ("name", "options"), [("a.png", {}), ("a.jpg", {"quality": 100}), ("a.webp", {"quality": 100})]
)
def test_colours_are_brought_from_their_profile_to_srgb(tmp_path: Path, name: str, options: dict) -> None:
    Image.new("RGB", (32, 16), (250, 10, 10)).save(tmp_path / name, icc_profile=EXCHANGED, **options)
    assert np.abs(load(tmp_path / name).astype(int) - (10, 250, 10)).max() <= 12


def test_transparent_pictures_are_converted_before_they_are_put_over_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (32, 16), (255, 0, 0, 255))
    picture.paste((255, 0, 0, 0), (0, 0, 16, 16))
    picture.save(tmp_path / "a.png", icc_profile=EXCHANGED)
    pixels = load(tmp_path / "a.png").astype(int)
    assert np.abs(pixels[:, :14] - 255).max() <= 2
    assert np.abs(pixels[:, 18:] - (0, 255, 0)).max() <= 6


def test_a_palette_and_a_large_reduced_jpeg_are_converted_too(tmp_path: Path) -> None:
    Image.new("RGB", (32, 16), (255, 0, 0)).quantize(4).save(tmp_path / "a.png", icc_profile=EXCHANGED)
    assert np.abs(load(tmp_path / "a.png").astype(int) - (0, 255, 0)).max() <= 6
    Image.new("RGB", (800, 400), (255, 0, 0)).save(tmp_path / "a.jpg", icc_profile=EXCHANGED, quality=95)
    pixels = load_picture(tmp_path / "a.jpg", place(800, 400, [Bucket(64, 32)])).astype(int)
    assert np.abs(pixels - (0, 255, 0)).max() <= 8


def test_a_grey_profile_of_another_gamma_is_followed(tmp_path: Path) -> None:
    Image.new("L", (16, 16), 20).save(tmp_path / "a.png", icc_profile=profile(space=b"GRAY"))
    plain = 255 * 1.055 * ((20 / 255) ** 2.2) ** (1 / 2.4) - 14.025  # sRGB's own curve is another one in the dark
    assert abs(int(load(tmp_path / "a.png")[0, 0, 0]) - plain) <= 3


def test_srgb_by_any_description_changes_no_pixel(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for own in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), None):
        Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=own)
        assert np.array_equal(load(tmp_path / "a.png"), noise)


@pytest.mark.parametrize(
    "broken", [b"no profile", EXCHANGED[:200], EXCHANGED[:140] + b"\xff" * 300, profile(space=b"GRAY"), b"\0" * 5000]
)
def test_a_damaged_or_foreign_profile_is_left_out_of_account(tmp_path: Path, broken: bytes) -> None:
    Image.new("RGB", (16, 16), (250, 10, 10)).save(tmp_path / "a.png", icc_profile=broken)
    assert np.array_equal(load(tmp_path / "a.png")[0, 0], (250, 10, 10))


def test_many_threads_convert_alike(tmp_path: Path) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=profile(BLUE, RED, GREEN))
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(load(tmp_path / "a.png"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(each, found[0]) for each in found)
    assert not np.array_equal(found[0], noise)

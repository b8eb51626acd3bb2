"""Pictures to judge: as different as photographs are, and the same ones spoilt in known ways."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def drawn(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Shapes over soft colours, another composition for every seed."""
    rng = np.random.default_rng(seed)
    width, height = size
    soft = rng.integers(0, 256, (int(rng.integers(2, 6)), int(rng.integers(2, 6)), 3), dtype=np.uint8)
    picture = Image.fromarray(soft).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(2, 9))):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        reach = int(rng.integers(width // 30, width // 4))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        shape: Callable[..., None] = pen.ellipse if rng.integers(2) else pen.rectangle
        shape([x - reach, y - reach // 2, x + reach, y + reach], fill=colour)
    return picture


def saved_again(picture: Image.Image, quality: int = 40) -> Image.Image:
    """Through a JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def mirrored(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def scaled(picture: Image.Image, factor: float) -> Image.Image:
    size = round(picture.width * factor), round(picture.height * factor)
    return picture.resize(size, Image.Resampling.LANCZOS)


def cropped(picture: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Shares cut off the sides."""
    width, height = picture.size
    return picture.crop((int(width * left), int(height * top), int(width * (1 - right)), int(height * (1 - bottom))))


def blurred(picture: Image.Image, radius: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(radius))


def in_bars(picture: Image.Image, share: float, *, sides: bool = False) -> Image.Image:
    """With black bars at top and bottom, or at the sides."""
    sheet = Image.new("RGB", picture.size, (2, 2, 2))
    width, height = picture.size
    across, down = (int(width * share), 0) if sides else (0, int(height * share))
    sheet.paste(picture.resize((width - 2 * across, height - 2 * down)), (across, down))
    return sheet

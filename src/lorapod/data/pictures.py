"""Opening pictures: what is in a file, and its pixels at a bucket's size.

Everything that Pillow reads becomes 8-bit sRGB as it would be looked at: turned as its EXIF orientation says, brought
from its embedded colour profile, put over white where it is transparent, brought from 16 to 8 bits by scale. Damaged
files are refused, never half read. Not covered: HEIC and raw camera formats, any frame but the first.

All functions are safe to call from many threads: no setting of Pillow is changed.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from lorapod.data.buckets import Placement
from lorapod.data.colour import to_srgb
from lorapod.data.names import shown
from lorapod.errors import DatasetError

PIXEL_LIMIT = 178_956_970
"""Pillow's own limit (twice `Image.MAX_IMAGE_PIXELS`), held here too in case somebody lifted that one."""

_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Pillow recognises these but does not read them by itself; for EPS it would start Ghostscript on the person's file."""

_SEVERAL_FRAMES = frozenset({"APNG", "AVIF", "DCX", "FLI", "GIF", "PNG", "TIFF", "WEBP"})
"""Formats whose further frames are further pictures; those of MPO are depth maps, those of PSD layers."""

_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on damaged files; mostly the first three, seldom a RuntimeError."""

_TURNED: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (tag 0x0112) to what undoes it."""

_LOOKS_LIKE = (
    (b"<!doctype", "It is a web page under a picture's name"),
    (b"<html", "It is a web page under a picture's name"),
    (b"version https://git-lfs", "It is a Git LFS pointer; the picture itself was not fetched (`git lfs pull`)"),
    (b"%!ps", "It is a PostScript document"),
    (b"%pdf", "It is a PDF document"),
)

# Pictures between one and two times Pillow's limit are welcome; its warning about them would land in the person's
# terminal once for each such file, and a filter set around each call would not be safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class PictureInfo:
    """What is in a picture file.

    Attributes:
        width, height: In pixels, oriented as it is looked at.
        mode: Pillow's name of the pixel layout, as in `RGB`, `P` or `I;16`.
        format: Pillow's name of the file format, as in `JPEG`.
        has_alpha: It can be transparent.
        frames: Frames or pages; only the first is used.
    """

    width: int
    height: int
    mode: str
    format: str
    has_alpha: bool
    frames: int = 1


@cache
def picture_extensions() -> frozenset[str]:
    """Extensions of the files that Pillow reads here, lower case, with their dot."""
    readable = set(_formats())
    # A MPO file is opened as the JPEG that it starts with, so Pillow registers no reader of its own for it.
    readable.add("MPO")
    return frozenset(extension.lower() for extension, name in Image.registered_extensions().items() if name in readable)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


def probe(path: Path) -> PictureInfo:
    """What is in a picture file, which is decoded once in full so that damage shows now and not during training.

    Raises:
        DatasetError: The file cannot be opened, is empty, is no picture, is damaged or cut off, or is too large.
    """
    with _opened(path) as image:
        width, height = image.size
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        image.load()
        if _orientation(image) >= 5:
            width, height = height, width
        _refuse_unknown_range(image, path)
        frames = getattr(image, "n_frames", 1) if image.format in _SEVERAL_FRAMES else 1
        return PictureInfo(width, height, image.mode, image.format or "", image.has_transparency_data, frames)


def load_picture(path: Path, placement: Placement) -> NDArray[np.uint8]:
    """The picture at its bucket's size, as uint8 RGB (h, w, 3).

    Raises:
        DatasetError: As `probe`, or the picture has another size than `placement` was made for.
    """
    width, height = placement.resize_to
    with _opened(path) as image:
        stored = image.size
        sideways = image.format in ("JPEG", "MPO") and _orientation(image) >= 5
        # A JPEG is decoded at a half, a quarter or an eighth where that still leaves the filter two pixels for one.
        image.draft(None, (2 * height, 2 * width) if sideways else (2 * width, 2 * height))
        image.load()
        orientation = _orientation(image)
        if (stored[::-1] if orientation >= 5 else stored) != placement.source:
            raise DatasetError(
                f"{shown(path)} changed while it was in use",
                f"It was {placement.source[0]}x{placement.source[1]} pixels when the dataset was looked at.",
                "Leave the dataset alone while a run uses it, then run again.",
            )
        profile = image.info.get("icc_profile")
        opaque = image.mode in ("RGB", "L") and not image.has_transparency_data
        flat = _resized(_turned(image if opaque else _to_rgb(image, path, profile), orientation), placement)
        # Where it can be, colours are brought to sRGB after the resize: the same to see, and far fewer pixels.
        return np.array(to_srgb(flat, profile) if opaque else flat, dtype=np.uint8)


def load_mask(path: Path, placement: Placement, *, from_alpha: bool = False) -> NDArray[np.uint8]:
    """A mask at its item's place in the bucket, as uint8 (h, w): 255 is learnt, 0 is not.

    Args:
        path: A picture of the item's shape, of any size: its brightness counts, and what is transparent counts as black.
        placement: The item's.
        from_alpha: The picture is the item itself, and its alpha channel counts.

    Raises:
        DatasetError: As `probe`.
    """
    with _opened(path) as image:
        image.load()
        orientation = _orientation(image)
        if from_alpha:
            flat = image.convert("RGBA").getchannel("A")
        elif image.mode.startswith("I") or image.mode == "F":
            flat = Image.fromarray(_to_8_bit(image, path))
        elif image.has_transparency_data:
            rgba = image.convert("RGBA")
            flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("L")
        else:
            flat = image.convert("L")
    return np.array(_resized(_turned(flat, orientation), placement), dtype=np.uint8)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNED[orientation]) if orientation in _TURNED else image


def _resized(image: Image.Image, placement: Placement) -> Image.Image:
    """A picture of any size of its placement's source, as its bucket shows it."""
    # Only the crop is resized, so that a very long and thin picture doesn't become a gigantic one on the way.
    width, height = placement.resize_to
    across, down = image.width / width, image.height / height
    left, top, right, bottom = placement.crop
    box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    size = (placement.bucket.width, placement.bucket.height)
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture, opened but not decoded; what Pillow raises in the block becomes a DatasetError."""
    what = f"{shown(path)} cannot be used"
    try:
        if path.stat().st_size == 0:
            raise DatasetError(what, "The file is empty (0 bytes).", "Copy it again, or remove it.")
        with Image.open(path, formats=_formats()) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise Image.DecompressionBombError
            if 0 in image.size:
                raise DatasetError(what, "It has no pixels.", "Export it again, or remove it.")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(
            what,
            f"It claims more than {PIXEL_LIMIT // 1_000_000} million pixels, too many to decode safely.",
            "Scale it down to the size that you train at or a little more.",
        ) from error
    except UnidentifiedImageError as error:
        raise DatasetError(
            what, f"{_guess(path)}.", "Replace it by a PNG, JPEG or WebP picture, or remove it."
        ) from error
    except _DECODING_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DatasetError(
                what, f"It cannot be opened: {error.strerror}.", "Check that it is there and that you may read it."
            ) from error
        raise DatasetError(
            what,
            f"The file is damaged or cut off ({shown(str(error)) or type(error).__name__}).",
            "Copy or export it again, or remove it.",
        ) from error


def _guess(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64).lower().lstrip()
    if start[4:8] == b"ftyp":
        return "It is a HEIC picture or a clip under another name"
    return next((text for mark, text in _LOOKS_LIKE if start.startswith(mark)), "Its content is no picture")


def _orientation(image: Image.Image) -> int:
    """1..8; 1 where nothing, or nothing that makes sense, is said. TIFF files are already turned once decoded."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image, path: Path, profile: bytes | None) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(image, path)).convert("RGB")
    if not image.has_transparency_data:
        return to_srgb(image if image.mode in ("L", "CMYK") else image.convert("RGB"), profile)
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    colours = to_srgb(rgba.convert("L") if image.mode in ("L", "LA") else rgba.convert("RGB"), profile)
    colours.putalpha(rgba.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), colours).convert("RGB")


def _to_8_bit(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """Grey values (h, w) of 16 or 32 bits or of floats in 0..1, by scale to 0..255."""
    _refuse_unknown_range(image, path)
    grey = np.asarray(image).astype(np.float32)
    see_through = image.info.get("transparency")
    white = 1.0 if image.mode == "F" else 65535.0
    if isinstance(see_through, int):
        grey[grey == see_through] = white
    return np.round(grey * (255.0 / white)).astype(np.uint8)


def _refuse_unknown_range(image: Image.Image, path: Path) -> None:
    """Pillow's modes I and F have no fixed range: taken are 16 bits in I, and 0..1 in F, by the data itself."""
    if image.mode not in ("I", "F"):
        return
    values = np.asarray(image)
    highest = 1.0 if image.mode == "F" else 65535
    if not bool(np.all((values >= 0) & (values <= highest))):  # NaN is refused too: it compares as false
        kind = "floats outside 0..1" if image.mode == "F" else "32-bit values outside 0..65535"
        raise DatasetError(
            f"{shown(path)} cannot be used",
            f"Its pixels are {kind}, so what is white in it is not known.",
            "Export it with 8 or 16 bits a channel.",
        )

"""Embedded colour profiles: pixels of any of them to sRGB, which is what base models were trained on.

A profile that says sRGB in other words is found out by what it does to colours, not by its name. One that is damaged or
is for another kind of pixels is left out of account. Not covered: colours said by a PNG's gAMA and cHRM alone, and
profiles of pictures with more than 8 bits.
"""

from __future__ import annotations

import io
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageCms, features

_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}

_UNSEEN = 2
"""Steps of 255 by which a profile may change colours and count as sRGB: those of the usual sRGB profiles differ by
rounding."""

_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE
"""Without its cache a transform is safe to use from many threads."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture as RGB, its colours brought from its profile to sRGB. Transparency has to be gone before.

    Args:
        image: Of Pillow's mode RGB, L or CMYK.
    """
    transform = _transform(profile, image.mode) if profile and _can_transform() else None
    if transform is None:
        return image.convert("RGB")
    converted = transform.apply(image.convert(transform.input_mode))
    # Else it would be saved with, or read again by, the profile that it doesn't have any more.
    converted.info.pop("icc_profile", None)
    return converted


@cache
def _can_transform() -> bool:
    return bool(features.check("littlecms2"))


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings pixels of a mode from a profile to sRGB; None where nothing has to be done, or can be."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        wanted = _MODE_OF_SPACE.get(source.profile.xcolor_space.strip())
        # A grey picture may bear the profile of a colour one, but not the other way round.
        if wanted is None or (wanted != mode and (wanted, mode) != ("RGB", "L")):
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            wanted,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            _FLAGS,
        )
        return None if wanted != "CMYK" and _changes_nothing(transform, wanted) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    if mode == "L":
        sample = Image.fromarray(steps[None])
    else:
        sample = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(9, 81, 3))
    before = np.asarray(sample.convert("RGB")).astype(int)
    return int(np.abs(np.asarray(transform.apply(sample)).astype(int) - before).max()) <= _UNSEEN

"""What pictures and clips look like, measured once on a small copy: what duplicates and flaws are told by.

Everything measured is a plain number, so that a workspace remembers it (`MediaCache`, kind `look`) and a folder that did
not change is never decoded for its looks again. Judging them is for `lorapod.data.duplicates` and
`lorapod.data.checks`. Not covered: motion blur in one direction, dissolves between scenes, burnt-in text, watermarks.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorapod.data.buckets import Bucket, Placement
from lorapod.data.media_cache import FileId, MediaCache
from lorapod.data.names import shown
from lorapod.data.pictures import load_picture, probe
from lorapod.data.threads import in_order
from lorapod.errors import DatasetError

if TYPE_CHECKING:
    from lorapod.data.clips import ClipInfo
    from lorapod.data.scan import Item

KIND, VERSION = "look", 1
"""Under which the cache keeps looks; the version is raised when what is measured changes."""

LONGEST_SIDE = 768
"""Of the copy that a picture is measured on, in pixels. A picture that is smaller is measured as it is."""

CLIP_SIDE = 384

THUMB = 16
"""Sides of the thumbnails that are compared, in pixels."""

_HASH_SIDE = 32
_CENTRE = 0.06
"""Cut off each side for the second hash, so that a picture and a crop of it have a hash nearly in common."""

_LOCAL = 6
"""Pixels to each side within which an edge has to rise to be measured; softer ones count as this wide."""

_CLEAR_EDGE = 40.0
"""Rise of brightness, of 255, from which on an edge is one and not noise."""

_FEWEST_EDGES = 100

_BAR_BLACK = 20.0
"""Bars of compressed films are seldom quite black."""

_KEPT_AT_ONCE = 200

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Look:
    """What a picture or clip looks like; of a clip, the numbers are those of its middle frame unless said otherwise.

    Attributes:
        hashes: Perceptual hashes of 64 bits: of all of it, and of its centre.
        mirrored: The same of its mirror image.
        thumbs: Thumbnails in base64, RGB, 16x16: one of a picture, three of a clip.
        edge_width: Width of its sharpest edges as a share of the longest side; 0 where it has too few edges to tell.
        brightness, contrast: Mean and standard deviation of its luma, 0..255.
        low, high: The luma that 1 % are below, and 1 % above.
        black, white: Shares of crushed and of blown pixels; of a clip, of all its frames.
        bars: Black bars left, top, right and bottom, as shares of width and height; of a clip, in all of its frames.
        cuts: Seconds at which the scene changes.
        frozen, dark: Stretches in seconds that stand still, and that are black.
        motion: Mean difference of neighbouring frames, 0..255.
        variable_rate: Whether the frame rate varies.
    """

    hashes: tuple[int, int]
    mirrored: tuple[int, int]
    thumbs: tuple[str, ...]
    edge_width: float
    brightness: float
    contrast: float
    low: float
    high: float
    black: float
    white: float
    bars: tuple[float, float, float, float]
    seconds: float = 0.0
    cuts: tuple[float, ...] = ()
    frozen: tuple[tuple[float, float], ...] = ()
    dark: tuple[tuple[float, float], ...] = ()
    motion: float = 0.0
    variable_rate: bool = False

    @property
    def is_flat(self) -> bool:
        """Whether there is so little in it that its hashes are noise."""
        return self.contrast < 4

    def as_json(self) -> dict[str, Any]:
        """As the cache keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Look:
        """From what the cache kept. Raises TypeError, KeyError or ValueError where it is none."""
        tuples = {key: _tuples(each) for key, each in value.items()}
        return cls(**tuples)


def look_at_picture(path: Path, size: tuple[int, int] | None = None) -> Look:
    """What a picture looks like.

    Args:
        size: Its width and height where they are known.

    Raises:
        DatasetError: As `load_picture`.
    """
    if size is None:
        info = probe(path)
        size = info.width, info.height
    return _still(load_picture(path, whole(size, LONGEST_SIDE)))


def look_at_clip(path: Path, info: ClipInfo) -> Look:
    """What a clip looks like, from all of its frames.

    Raises:
        DatasetError: As `clip_frames`.
    """
    from lorapod.data.clips import clip_frames
    from lorapod.data.moving import Watcher

    watcher = Watcher(info.seconds, info.variable_rate)
    for seconds, frame in clip_frames(path, info, CLIP_SIDE):
        watcher.add(seconds, frame)
    try:
        return watcher.look()
    except ValueError as error:
        why = "None of its frames can be decoded."
        raise DatasetError(f"{shown(path)} cannot be used", why, "Export it again, or remove it.") from error


def looks(items: Sequence[Item], cache: MediaCache | None = None, progress: Progress | None = None) -> dict[Path, Look]:
    """Looks of items by path: remembered, or measured now on several threads.

    An item that cannot be decoded any more is left out: the scan says what is wrong with it.
    """
    files = {item.path: file for item in items if (file := _identity(item.path))}
    kept = cache.known(KIND, VERSION, files.values()) if cache else {}
    found: dict[Path, Look] = {}
    for path, value in kept.items():
        try:
            found[path] = Look.from_json(value)
        except (TypeError, KeyError, ValueError):
            continue  # Kept by another release: measured again.
    missing = [item for item in items if item.path in files and item.path not in found]
    clips = _clip_infos(missing, files, cache)
    done = len(items) - len(missing)
    fresh: dict[FileId, dict[str, Any]] = {}
    try:
        for item, look in zip(missing, in_order(lambda item: _look(item, clips), missing), strict=True):
            if look:
                found[item.path] = look
                fresh[files[item.path]] = look.as_json()
            if cache and len(fresh) >= _KEPT_AT_ONCE:
                cache.keep(KIND, VERSION, fresh)
                fresh = {}
            done += 1
            if progress:
                progress(done, len(items))
    finally:
        if cache and fresh:
            cache.keep(KIND, VERSION, fresh)
    return found


def whole(size: tuple[int, int], longest_side: int) -> Placement:
    """The placement that only makes a picture smaller, so that `longest_side` is not exceeded."""
    factor = min(1.0, longest_side / max(size))
    width, height = (max(1, round(side * factor)) for side in size)
    return Placement(Bucket(width, height), size, (width, height), (0, 0, width, height), 0.0, factor)


def thumb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (h, w, 3) as a thumbnail (16, 16, 3)."""
    return np.asarray(Image.fromarray(pixels).resize((THUMB, THUMB), Image.Resampling.BOX))


def encoded(pixels: NDArray[np.uint8]) -> str:
    """A thumbnail as text."""
    return base64.b64encode(thumb(pixels).tobytes()).decode("ascii")


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness (h, w), 0..255, with the weights of ITU-R BT.601."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.asarray(pixels, dtype=np.float32) @ weights


def perceptual_hashes(grey: NDArray[np.float32]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Hashes of a picture (h, w) and of its mirror image, each of all of it and of its centre."""
    height, width = grey.shape
    down, across = int(height * _CENTRE), int(width * _CENTRE)
    whole_hash, whole_mirrored = _hash(grey)
    centre_hash, centre_mirrored = _hash(grey[down : height - down, across : width - across])
    return (whole_hash, centre_hash), (whole_mirrored, centre_mirrored)


def black_bars(brightest: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Black bars left, top, right and bottom as shares, of a picture's luma or of the brightest of a clip's (h, w).

    Only bars that lie opposite each other and end in a straight line across the picture count, so that a subject before
    a black background has none.
    """
    top, bottom = _bar_pair(brightest)
    inner = brightest[top : brightest.shape[0] - bottom]
    left, right = _bar_pair(inner.T)
    height, width = brightest.shape
    return left / width, top / height, right / width, bottom / height


def _still(pixels: NDArray[np.uint8]) -> Look:
    grey = luma(pixels)
    hashes, mirrored = perceptual_hashes(grey)
    low, high = np.percentile(grey, (1, 99))
    return Look(
        hashes=hashes,
        mirrored=mirrored,
        thumbs=(encoded(pixels),),
        edge_width=edge_width(grey),
        brightness=round(float(grey.mean()), 2),
        contrast=round(float(grey.std()), 2),
        low=round(float(low), 1),
        high=round(float(high), 1),
        black=round(float((grey <= 4).mean()), 4),
        white=round(float((grey >= 251).mean()), 4),
        bars=black_bars(grey),
    )


def edge_width(grey: NDArray[np.float32]) -> float:
    """Width of the sharpest edges of a picture (h, w) as a share of its longest side; 0 where it has too few to tell.

    Edges that are too soft to be seen as such are looked for in reduced copies. The width of an edge is how far its
    rise would go on if it were as steep throughout as at its steepest. It hangs on the focus and not on what is shown,
    other than the usual variance of a Laplacian.
    """
    for scale in (1, 2, 4):
        known = [width for width in (_sharpest(grey), _sharpest(grey.T)) if width]
        # An edge of about a pixel of a reduced copy may be any sharper in the picture itself.
        if known and (scale == 1 or min(known) > 2):
            return round(min(known) / float(max(grey.shape)), 6)
        if known or min(grey.shape) < 64:
            return 0.0
        height, width = (side // 2 * 2 for side in grey.shape)
        grey = grey[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    return 0.0


def _sharpest(grey: NDArray[np.float32]) -> float:
    """Width in pixels that a twentieth of the clear edges along the rows are below; 0 where there are too few."""
    reach = 2 * _LOCAL + 1
    if grey.shape[1] <= 2 * reach:
        return 0.0
    steps = np.abs(np.diff(grey, axis=1))
    windows = grey.shape[1] - reach + 1
    lowest, highest = grey[:, :windows].copy(), grey[:, :windows].copy()
    steepest = steps[:, :windows].copy()
    for shift in range(1, reach):
        part = grey[:, shift : shift + windows]
        np.minimum(lowest, part, out=lowest)
        np.maximum(highest, part, out=highest)
        if shift < reach - 1:
            np.maximum(steepest, steps[:, shift : shift + windows], out=steepest)
    rise = highest - lowest
    # An edge is in its window's middle, so that it is measured once and not cut off.
    middle = steps[:, _LOCAL : _LOCAL + windows]
    clear = (rise >= _CLEAR_EDGE) & (middle == steepest)
    if int(clear.sum()) < _FEWEST_EDGES:
        return 0.0
    return float(np.percentile(rise[clear] / steepest[clear], 5))


def _hash(grey: NDArray[np.float32]) -> tuple[int, int]:
    """Signs of the lowest frequencies of a cosine transform, of the picture and of its mirror image."""
    small = np.asarray(
        Image.fromarray(np.ascontiguousarray(grey)).resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX)
    )
    waves = _cosines()
    frequencies = (waves @ small @ waves.T).astype(np.float64)
    mirrored = frequencies * np.where(np.arange(frequencies.shape[1]) % 2, -1.0, 1.0)
    return _signs(frequencies), _signs(mirrored)


def _cosines() -> NDArray[np.float32]:
    positions = np.arange(_HASH_SIDE) + 0.5
    return np.cos(np.pi / _HASH_SIDE * np.outer(np.arange(9), positions)).astype(np.float32)


def _signs(frequencies: NDArray[np.float64]) -> int:
    """64 of the 9x9 lowest frequencies, without the mean, against their median."""
    ordered = np.concatenate([frequencies[:8, :8].ravel()[1:], frequencies[8:, 0]])
    return int.from_bytes(np.packbits(ordered > np.median(ordered)).tobytes(), "big")


def _bar_pair(brightest: NDArray[np.float32]) -> tuple[int, int]:
    """Rows of bars at the top and at the bottom."""
    rows = brightest.shape[0]
    dark: NDArray[np.bool_] = brightest.max(axis=1) <= _BAR_BLACK
    if dark.all() or not (dark[0] and dark[-1]):
        return 0, 0
    first, last = int(np.argmin(dark)), int(np.argmin(dark[::-1]))
    # A row or two where the picture begins are soft from scaling.
    starts = brightest[min(first + 2, rows - 1)], brightest[max(rows - 3 - last, 0)]
    straight = all(float((row > _BAR_BLACK).mean()) > 0.6 for row in starts)
    even = abs(first - last) <= max(2, 0.35 * max(first, last))
    return (first, last) if straight and even and min(first, last) >= max(2, 0.015 * rows) else (0, 0)


def _look(item: Item, clips: dict[Path, ClipInfo]) -> Look | None:
    try:
        if not item.is_clip:
            return look_at_picture(item.path, (item.width, item.height))
        from lorapod.data.clips import probe_clip

        return look_at_clip(item.path, clips.get(item.path) or probe_clip(item.path))
    except DatasetError:
        return None


def _clip_infos(items: Iterable[Item], files: dict[Path, FileId], cache: MediaCache | None) -> dict[Path, ClipInfo]:
    """What the scan found out about clips and the cache remembers."""
    clips = [files[item.path] for item in items if item.is_clip]
    if not clips or not cache:
        return {}
    from lorapod.data.clips import ClipInfo
    from lorapod.data.facts import VERSIONS

    infos = {}
    for path, fact in cache.known("clip", VERSIONS["clip"], clips).items():
        fields = {key: fact[key] for key in ClipInfo.__dataclass_fields__ if key in fact}
        if len(fields) == len(ClipInfo.__dataclass_fields__):
            infos[path] = ClipInfo(**fields)
    return infos


def _identity(path: Path) -> FileId | None:
    try:
        return FileId.of(path)
    except OSError:
        return None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value

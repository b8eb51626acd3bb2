"""Opening clips: what is in a file, and frames of it at a bucket's size.

Frames are taken by time, never by number: of each moment asked for, the frame presented nearest to it, whatever the
clip's rate, constant or not. They are turned and stretched as a player shows them (display matrix, sample aspect ratio)
and brought to 8-bit RGB with the colour matrix and range that the file names; where it names none, BT.709 from 720 lines
up and BT.601 below, as players do. Only the frames of a window are decoded, from the key frame before it, and each is
scaled before the next is, so a clip is never in memory whole.

HLG clips (most phones' HDR) are taken as the SDR picture that HLG is made to be compatible with; PQ clips are refused,
since they would come out grey. Interlaced clips are not deinterlaced. Sound is not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from lorapod.data.buckets import Placement
from lorapod.data.names import shown
from lorapod.data.pictures import PIXEL_LIMIT
from lorapod.data.windows import Window
from lorapod.errors import DatasetError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

LONGEST_SECONDS = 24 * 3600
MOST_PACKETS = 5_000_000
"""Of a file that claims more, the claim is not believed."""

_THREADS = 4
_PQ = 16  # AVCOL_TRC_SMPTE2084
_RATE_TOLERANCE = 0.2
"""Share by which the time from frame to frame may differ before the rate counts as variable."""

_SMOOTH = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_QUICK = Interpolation.AREA

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ClipInfo:
    """What is in a clip.

    Attributes:
        width, height: In pixels, as it is looked at: turned and stretched as the file says.
        frames: Frames presented, counted.
        seconds: From the first frame's time to the end of the last one.
        fps: Mean frames a second.
        variable_rate: The time from frame to frame differs.
        codec, format: FFmpeg's names.
        rotation: 0, 90, 180 or 270: degrees clockwise by which the stored frames are turned to be looked at.
    """

    width: int
    height: int
    frames: int
    seconds: float
    fps: float
    variable_rate: bool
    codec: str
    format: str
    rotation: int
    has_audio: bool


def probe_clip(path: Path) -> ClipInfo:
    """What is in a clip: its packets are counted, and its first frame and one near its end are decoded.

    Raises:
        DatasetError: The file cannot be opened, holds no clip, is damaged or cut off, or is too large.
    """
    with _opened(path) as (container, stream):
        times, last = _presented_at(path, container, stream)
        gaps = np.diff(times)
        typical = float(np.median(gaps)) if len(gaps) else 1.0 / float(stream.average_rate or 25)
        seconds = times[-1] - times[0] + (last or typical)
        if seconds > LONGEST_SECONDS:
            raise _unusable(path, f"It claims to last {seconds / 3600:.0f} hours.", "Cut it into shorter clips.")
        container.seek(0)
        first = next(_frames_of(container, stream), None)
        if first is None:
            raise _unusable(path, "Not one frame of it can be decoded.", "Export it again, or remove it.")
        if getattr(first, "color_trc", None) == _PQ:
            why = "It is an HDR clip with the PQ curve, which would come out grey and pale."
            raise _unusable(path, why, "Convert it to SDR (BT.709) first; the export of a video editor does.")
        _seek(container, stream, times[-1])
        if next(_frames_of(container, stream), None) is None:
            raise _unusable(path, "Its end cannot be decoded.", "Copy or export it again, or remove it.")
        rotation = _rotation(first)
        width, height = _looked_at(first, stream, rotation)
        uneven = np.abs(gaps - typical) > max(_RATE_TOLERANCE * typical, 2.1 * float(stream.time_base or 0))
        return ClipInfo(
            width=width,
            height=height,
            frames=len(times),
            seconds=seconds,
            fps=len(times) / seconds,
            variable_rate=bool(uneven.sum() > len(gaps) * 0.01),
            codec=stream.codec_context.name,
            format=container.format.name,
            rotation=rotation,
            has_audio=bool(container.streams.audio),
        )


def load_clip(path: Path, placement: Placement, window: Window) -> Pixels:
    """The frames of a window at its bucket's size, RGB (f, h, w, 3).

    Raises:
        DatasetError: As `probe_clip`, or the clip has another size or length than it had when it was looked at.
    """
    left, top, right, bottom = placement.crop
    taken: list[Pixels] = []
    previous: VideoFrame | None = None
    with _opened(path) as (container, stream):
        for frame in _nearest(path, container, stream, window.times):
            rotation = _rotation(frame)
            if _looked_at(frame, stream, rotation) != placement.source:
                raise DatasetError(
                    f"{shown(path)} changed while it was in use",
                    f"It was {placement.source[0]}x{placement.source[1]} pixels when the dataset was looked at.",
                    "Leave the dataset alone while a run uses it, then run again.",
                )
            if frame is previous:
                taken.append(taken[-1])
                continue
            previous = frame
            taken.append(_to_rgb(frame, placement.resize_to, rotation, _SMOOTH)[top:bottom, left:right].copy())
    return np.stack(taken)


def clip_frames(
    path: Path, info: ClipInfo, longest_side: int, every_seconds: float | None = None
) -> Iterator[tuple[float, Pixels]]:
    """Small copies (h, w, 3) of a clip's frames, each with its time in seconds from the first.

    Args:
        longest_side: Of the copies, in pixels.
        every_seconds: Takes the first frame of each stretch of that length; None takes all.

    Raises:
        DatasetError: As `probe_clip`.
    """
    scale = min(1.0, longest_side / max(info.width, info.height))
    size = max(1, round(info.width * scale)), max(1, round(info.height * scale))
    with _opened(path) as (container, stream):
        origin, due = None, 0.0
        for frame in _frames_of(container, stream):
            at = _time_of(frame, stream)
            origin = at if origin is None else origin
            if every_seconds is not None and at - origin < due - 1e-6:
                continue
            yield at - origin, _to_rgb(frame, size, _rotation(frame), _QUICK)
            if every_seconds is not None:
                due += every_seconds * max(1, int((at - origin - due) / every_seconds) + 1)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The clip and its first real video stream; what FFmpeg raises in the block becomes a DatasetError."""
    try:
        if path.stat().st_size == 0:
            raise _unusable(path, "The file is empty (0 bytes).", "Copy it again, or remove it.")
        with path.open("rb") as file, av.open(file, mode="r", metadata_errors="ignore") as container:
            streams = [s for s in container.streams.video if "attached_pic" not in str(s.disposition).lower()]
            if not streams:
                why = "It holds no video: only other streams, or it is damaged or cut off."
                raise _unusable(path, why, "Copy or export it again, or remove it.")
            stream = streams[0]
            context = stream.codec_context
            if context is None:
                raise _unusable(path, "Its codec is not known.", "Convert it to H.264, for example with HandBrake.")
            if context.width * context.height > PIXEL_LIMIT:
                why = f"It claims frames of {context.width}x{context.height} pixels, too many to decode safely."
                raise _unusable(path, why, "Scale it down to the size that you train at or a little more.")
            context.thread_type = "AUTO"
            context.thread_count = min(_THREADS, os.cpu_count() or 1)
            yield container, stream
    except av.FFmpegError as error:
        reason = shown((error.strerror or str(error)).rstrip("."))
        why = f"The file is damaged, cut off, or no clip ({reason})."
        raise _unusable(path, why, "Copy or export it again, or remove it.") from error
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            why = f"It cannot be opened: {error.strerror}."
            raise _unusable(path, why, "Check that it is there and that you may read it.") from error
        why = f"The file is damaged or cut off ({shown(str(error)) or type(error).__name__})."
        raise _unusable(path, why, "Copy or export it again, or remove it.") from error


def _presented_at(path: Path, container: InputContainer, stream: VideoStream) -> tuple[list[float], float]:
    """Times in seconds at which frames are presented, in order, and how long the last one is shown (0: not said)."""
    unit = float(stream.time_base or 0)
    stamps: list[tuple[int, int]] = []
    for number, packet in enumerate(container.demux(stream)):
        if number > MOST_PACKETS:
            raise _unusable(path, f"It has more than {MOST_PACKETS:,} packets.", "Cut it into shorter clips.")
        if packet.size == 0 or packet.is_discard:
            continue
        stamp = packet.pts if packet.pts is not None else packet.dts
        stamps.append((stamp if stamp is not None else number, packet.duration or 0))
    if not stamps:
        raise _unusable(path, "It holds not one frame.", "Copy or export it again, or remove it.")
    if unit == 0 or stamps[0][0] == stamps[-1][0] != 0:  # a raw stream without times: by its nominal rate
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        return [i / rate for i in range(len(stamps))], 1 / rate
    stamps.sort()
    return [stamp * unit for stamp, _ in stamps], stamps[-1][1] * unit


def _frames_of(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decoded frames in the order of presentation, from where the container stands."""
    return container.decode(stream)


def _time_of(frame: VideoFrame, stream: VideoStream) -> float:
    if frame.pts is not None and frame.time_base:
        return float(frame.pts * frame.time_base)
    return 0.0


def _seek(container: InputContainer, stream: VideoStream, seconds: float) -> None:
    """To the key frame at or before that time of the stream's own clock."""
    if stream.time_base:
        container.seek(int(seconds / float(stream.time_base)), stream=stream, backward=True)


def _nearest(
    path: Path, container: InputContainer, stream: VideoStream, times: Sequence[float]
) -> Iterator[VideoFrame]:
    """Of each time (ascending, seconds from the first frame) the frame presented nearest to it."""
    first = next(_frames_of(container, stream), None)
    if first is None:
        raise _unusable(path, "Not one frame of it can be decoded.", "Export it again, or remove it.")
    origin = _time_of(first, stream)
    wanted = [origin + time for time in times]
    _seek(container, stream, wanted[0])
    frames = _frames_of(container, stream)
    before = next(frames, None)
    if before is None or (_time_of(before, stream) > wanted[0] and before.pts != first.pts):
        container.seek(0)  # an index that leads too far; then from the beginning
        frames = _frames_of(container, stream)
        before = next(frames, None)
    if before is None:
        raise _unusable(path, "Its frames cannot be decoded.", "Copy or export it again, or remove it.")
    after: VideoFrame | None = before
    gap = 0.0
    for time in wanted:
        while after is not None and _time_of(after, stream) < time:
            before, after = after, next(frames, None)
            if after is not None:
                gap = _time_of(after, stream) - _time_of(before, stream)
        if after is None:
            if time - _time_of(before, stream) > max(2 * gap, 0.25):
                why = f"It ends at {_time_of(before, stream) - origin:.2f} s; {time - origin:.2f} s was asked for."
                raise _unusable(path, why, "The file is cut off, or changed while a run used it.")
            chosen = before
        else:
            chosen = after if _time_of(after, stream) - time < time - _time_of(before, stream) else before
        if chosen.is_corrupt:
            why = f"The frame at {_time_of(chosen, stream) - origin:.2f} s is damaged."
            raise _unusable(path, why, "Copy or export it again, or remove it.")
        yield chosen


def _rotation(frame: VideoFrame) -> int:
    """Degrees clockwise, a multiple of 90. FFmpeg counts counter-clockwise."""
    return round(-frame.rotation / 90) * 90 % 360


def _looked_at(frame: VideoFrame, stream: VideoStream, rotation: int) -> tuple[int, int]:
    """Width and height of a frame as a player shows it."""
    stretch = float(stream.sample_aspect_ratio or 1) or 1.0
    width, height = frame.width, frame.height
    if 0.05 < stretch < 20:
        width = max(1, round(width * stretch))
    return (height, width) if rotation in (90, 270) else (width, height)


def _to_rgb(frame: VideoFrame, size: tuple[int, int], rotation: int, how: Any) -> Pixels:
    """A frame turned upright and scaled to `size` (width, height)."""
    width, height = size[::-1] if rotation in (90, 270) else size
    named = frame.colorspace in {space.value for space in Colorspace}
    matrix = frame.colorspace if named else (Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601)
    full = frame.color_range == ColorRange.JPEG.value or frame.format.name.startswith("yuvj")
    rgb = VideoReformatter().reformat(
        frame,
        width,
        height,
        "rgb24",
        src_colorspace=matrix,
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=how,
        threads=1,
    )
    pixels: Pixels = rgb.to_ndarray().astype(np.uint8, copy=False)
    return np.rot90(pixels, -rotation // 90) if rotation else pixels


def _unusable(path: Path, why: str, remedy: str) -> DatasetError:
    return DatasetError(f"{shown(path)} cannot be used", why, remedy)

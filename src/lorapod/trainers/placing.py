"""Media put at their places in a run, linked where external trainers read them as they are, else made anew.

What such trainers drop or turn in silence is made anew: pictures and clips stored sideways, formats that they do not list,
pictures with several frames. The person's files are only read.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lorapod.data import ControlPicture, Item
from lorapod.data.fix import SANE_CLIPS, SANE_PICTURES, is_turned
from lorapod.data.names import shown
from lorapod.data.remake import placed, remake_clip, remake_picture
from lorapod.errors import DatasetError
from lorapod.files import disk_error, written_whole


def place_media(item: Item | ControlPicture, target: Path) -> Path:
    """Puts a file at its place, which gets another extension where it is made anew; gives the place.

    Raises:
        DatasetError: It cannot be read any more.
        DiskError: It cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(item, Item) and item.is_clip:
            if target.suffix in SANE_CLIPS and not _is_clip_turned(item):
                _link(item.path, target)
            else:
                target = target.with_suffix(".mp4")
                if not _is_made(item, target):
                    remake_clip(item, target, placed(item), (0.0, item.seconds), item.fps)
        elif target.suffix in SANE_PICTURES and not is_turned(item.path) and not _has_frames(item.path):
            _link(item.path, target)
        else:
            target = target.with_suffix(".png")
            if not _is_made(item, target):
                remake_picture(item, target, placed(item))
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def _link(source: Path, target: Path) -> None:
    """A symbolic link, else a hard link, else a copy, as the file system allows."""
    if target.is_symlink():
        if str(target.readlink()) == str(source):
            return
        target.unlink()
    elif target.exists():
        if target.samefile(source):
            return
        target.unlink()
    try:
        target.symlink_to(source)
        return
    except (OSError, NotImplementedError):
        pass
    try:
        os.link(source.resolve(), target)
    except OSError:
        with written_whole(target) as temporary:
            shutil.copyfile(source, temporary)


def _is_made(item: Item | ControlPicture, target: Path) -> bool:
    """Whether the file was made of this item already."""
    return target.is_file() and not target.is_symlink() and target.stat().st_mtime >= item.path.stat().st_mtime


def _has_frames(path: Path) -> bool:
    from PIL import Image

    with Image.open(path) as image:
        return bool(getattr(image, "n_frames", 1) > 1)


def _is_clip_turned(item: Item) -> bool:
    """Whether a clip's frames are stored otherwise than they are looked at: turned, or of pixels that are no squares."""
    import av

    try:
        with av.open(str(item.path)) as container:
            context = container.streams.video[0].codec_context
            return (context.width, context.height) != (item.width, item.height)
    except av.error.FFmpegError as error:
        raise DatasetError(
            f"The clip {shown(item.path)} cannot be opened any more", str(error), "Put it back, or take it out."
        ) from error

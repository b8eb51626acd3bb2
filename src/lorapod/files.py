"""Files that appear whole or not at all, never in place of a person's own, and whether a file is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lorapod.errors import DiskError, LorapodError, RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

MAKER = "lorapod"
"""What the drawings and pages that a person asks for name as their maker, so that they can be made anew in place."""
_HEAD = 4096


def disk_error(error: OSError, path: Path) -> LorapodError:
    """The error that a person sees for an `OSError` while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"No space left on the disk while writing {path}",
            "The disk or your quota on it is full; whatever was already finished is still there.",
            "Free some space (old runs and their checkpoints are the largest), then run the same command with --resume.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DiskError(f"Cannot write {path}", error.strerror or "", "Check who owns the folder, or choose another.")
    return DiskError(f"Writing {path} failed", error.strerror or str(error), "Check the disk, then run again.")


@contextmanager
def written_whole(path: Path, by_way_of: Path | None = None, mode: int = 0o644) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it over `path`, synced to disk, when the block succeeds.

    Args:
        by_way_of: A folder of the same disk for the temporary file, which a kill leaves behind.
        mode: Permissions of the file; 0o600 keeps a secret from other users from its first byte on.

    Raises:
        DiskError: The disk is full or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=by_way_of or path.parent, prefix=f".{path.name[:80]}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise disk_error(error, path) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_writable(folder: Path) -> None:
    """Makes a folder, where it is missing, and looks whether files can be made in it, before time goes into what they hold.

    Raises:
        DiskError: It cannot be made, or may only be read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise disk_error(error, folder) from error


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text_whole(path: Path, text: str, by_way_of: Path | None = None, mode: int = 0o644) -> None:
    """Writes `text` as UTF-8; the file appears whole or not at all. Otherwise as `written_whole`."""
    with written_whole(path, by_way_of, mode) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_drawing(path: Path, drawing: Image) -> None:
    """Writes a PNG that names its maker, so that `refuse_to_overwrite` knows it again. Otherwise as `written_whole`."""
    from PIL.PngImagePlugin import PngInfo

    maker = PngInfo()
    maker.add_text("Software", MAKER)
    with written_whole(path) as temporary:
        drawing.save(temporary, "PNG", pnginfo=maker)


def refuse_to_overwrite(path: Path, option: str, suffix: str, *, but_own: bool = False) -> None:
    """Looks before any work is done whether a file can be written where a person wants it.

    Args:
        option: The option that names the file, for the remedy.
        suffix: How its name must end, as `.png`.
        but_own: One that lorapod made is replaced; this is for what is made again in a moment.

    Raises:
        RequestError: A folder or a file is there already, or the name ends otherwise.
    """
    if path.is_dir():
        raise RequestError(f"{path} is a folder", "", f"Give {option} the name of a file in it, ending in {suffix}.")
    if path.suffix.lower() != suffix:
        raise RequestError(f"{path} does not end in {suffix}", "", f"Give {option} a name that does.")
    if not path.exists() or (but_own and _made_here(path)):
        return
    why = "It was left as it is" + (", since lorapod did not make it." if but_own else ".")
    raise RequestError(f"{path} is there already", why, f"Name another file with {option}.")


def _made_here(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return b"Software\0" + MAKER.encode() in head or f'<meta name="generator" content="{MAKER}">'.encode() in head


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole_safetensors(path: Path) -> bool:
    """Whether the file's header can be read and the file is as long as the header says."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return False
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [spec["data_offsets"][1] for key, spec in header.items() if key != "__metadata__"]
    return size == 8 + length + max(ends, default=0)

"""Files that appear whole or not at all, and whether a file is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorapod.errors import DiskError, LorapodError


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

"""What is in the files of a dataset: found out on several threads, or remembered from the last time.

A fact that was kept is trusted only while its file is the one it was found in. What failed is not kept: whether a file
can be read hangs on more than the file, as on its permissions and on the release of the decoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from lorapod.data.captions import read_caption_file
from lorapod.data.media_cache import FileId, MediaCache
from lorapod.data.pictures import probe
from lorapod.data.threads import in_order
from lorapod.errors import CaptionError, DatasetError
from lorapod.files import sha256_of

Progress = Callable[[int, int], None]
"""Told how many of how many files are done."""

Fact = dict[str, Any]

VERSIONS = {"caption": 2, "picture": 1, "clip": 1}
"""By kind; raised when the meaning of its facts changes."""

_KEPT_AT_ONCE = 2000
"""Facts a write, so that a long scan that is stopped is not begun anew."""

_TICK_NS, _COARSE_NS = 20_000_000, 2_000_000_000
"""Within such a time a file can change twice and bear one time of change: with a usual file system's clock, and where
times are kept in whole seconds, as on some network disks."""


class Failure(NamedTuple):
    """Why nothing was found out about a file: a sentence without a full stop, and what to do."""

    what: str
    remedy: str


def facts_about(
    kinds: dict[str, Sequence[FileId]], cache: MediaCache | None, progress: Progress | None
) -> dict[str, dict[Path, Fact | Failure]]:
    """Facts by kind and path: `picture` as PictureInfo, `clip` as ClipInfo, both with `sha256`; `caption` as CaptionFile."""
    total = sum(map(len, kinds.values()))
    found: dict[str, dict[Path, Fact | Failure]] = {}
    for kind, files in kinds.items():
        found[kind] = dict(cache.known(kind, VERSIONS[kind], files)) if cache else {}
    unknown = [(kind, file) for kind, files in kinds.items() for file in files if file.path not in found[kind]]
    done = total - len(unknown)
    if progress and done:
        progress(done, total)
    _settle(file for _, file in unknown)
    fresh: list[tuple[str, FileId, Fact]] = []
    try:
        for (kind, file), fact in zip(unknown, in_order(_find_out, unknown), strict=True):
            found[kind][file.path] = fact
            if isinstance(fact, dict) and _can_be_kept(file):
                fresh.append((kind, file, fact))
            if len(fresh) >= _KEPT_AT_ONCE:
                _keep(fresh, cache)
            done += 1
            if progress:
                progress(done, total)
    finally:
        _keep(fresh, cache)
    return found


def _find_out(known_as: tuple[str, FileId]) -> Fact | Failure:
    kind, file = known_as
    try:
        if kind == "caption":
            return asdict(read_caption_file(file.path))
        return {**asdict(_probe(kind, file.path)), "sha256": sha256_of(file.path)}
    except CaptionError as error:
        what = error.what.replace(str(file.path), file.path.name)  # It is beside the item that the failure is said of.
        return Failure(f"{what}. {error.why.rstrip('.')}", error.remedy)
    except DatasetError as error:
        return Failure(error.why.rstrip("."), error.remedy)
    except OSError as error:
        return Failure(f"It cannot be read: {error.strerror}", "Check that it is there and that you may read it.")


def _probe(kind: str, path: Path) -> Any:
    if kind == "picture":
        return probe(path)
    from lorapod.data.clips import probe_clip

    return probe_clip(path)


def _keep(fresh: list[tuple[str, FileId, Fact]], cache: MediaCache | None) -> None:
    for kind in {kind for kind, _, _ in fresh} if cache else ():
        assert cache
        cache.keep(kind, VERSIONS[kind], {file: fact for of, file, fact in fresh if of == kind})
    fresh.clear()


def _settle(files: Iterable[FileId]) -> None:
    """Waits until no file can change any more without bearing another time of change."""
    now = time.time_ns()
    newest = max((file.mtime_ns for file in files if file.mtime_ns <= now), default=0)
    if now - newest < _TICK_NS:
        time.sleep((_TICK_NS - (now - newest)) / 1e9)


def _can_be_kept(file: FileId) -> bool:
    """Whether the file is what it was when it was listed, and whoever changes it now would change its identity."""
    if file.mtime_ns % 1_000_000_000 == 0 and 0 <= time.time_ns() - file.mtime_ns < _COARSE_NS:
        return False
    try:
        return FileId.of(file.path) == file
    except OSError:
        return False

import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorapod.data import FileId, MediaCache, facts, scan
from lorapod.workspace import Workspace


@pytest.fixture
def cache(tmp_path: Path) -> MediaCache:
    return MediaCache(tmp_path / "cache" / "media.sqlite")


@pytest.fixture
def file(tmp_path: Path) -> FileId:
    (tmp_path / "a b.png").write_bytes(b"x")
    return FileId.of(tmp_path / "a b.png")


def test_what_was_kept_is_known_until_the_file_or_the_version_changes(cache: MediaCache, file: FileId) -> None:
    assert cache.known("look", 1, [file]) == {}
    cache.keep("look", 1, {file: {"width": 3, "name": "é\udce9"}})
    assert cache.known("look", 1, [file]) == {file.path: {"width": 3, "name": "é\udce9"}}
    assert cache.known("look", 2, [file]) == cache.known("other", 1, [file]) == {}
    for change in ({"size": 2}, {"mtime_ns": file.mtime_ns + 1}, {"inode": 2**64 - 1}):
        assert cache.known("look", 1, [file._replace(**change)]) == {}
    cache.keep("look", 1, {file: {"width": 4}})
    assert cache.known("look", 1, [file]) == {file.path: {"width": 4}}


def test_names_that_are_no_utf8_and_numbers_beyond_64_bits_are_kept(cache: MediaCache) -> None:
    odd = FileId(Path(os.fsdecode(b"/caf\xe9\n.png")), 2**70, -(2**70), 2**70)
    cache.keep("look", 1, {odd: {"a": 1}})
    assert cache.known("look", 1, [odd]) == {odd.path: {"a": 1}}


def test_thousands_are_found_at_once(cache: MediaCache) -> None:
    files = [FileId(Path(f"/set/{i}.png"), i, i, i) for i in range(3000)]
    cache.keep("look", 1, {file: {"i": file.size} for file in files[:2500]})
    assert cache.known("look", 1, files) == {file.path: {"i": file.size} for file in files[:2500]}


@pytest.mark.parametrize("content", [b"", b"no database at all" * 500, None])
def test_a_damaged_database_is_no_error_and_makes_way_for_a_new_one(
    cache: MediaCache, file: FileId, content: bytes | None
) -> None:
    cache.keep("look", 1, {file: {"a": 1}})
    if content is None:  # the head is whole, pages are not
        raw = cache.path.read_bytes()
        content = raw[:2000] + os.urandom(len(raw) - 2000)
    for path in cache.path.parent.iterdir():
        path.unlink()
    cache.path.write_bytes(content)
    cache.known("look", 1, [file])
    for _ in range(2):  # the first write may be what shows the damage
        cache.keep("look", 1, {file: {"a": 2}})
    assert cache.known("look", 1, [file]) == {file.path: {"a": 2}}


def test_a_locked_database_is_no_error(cache: MediaCache, file: FileId, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorapod.data.media_cache._SECONDS_TO_WAIT", 0.05)
    cache.keep("look", 1, {file: {"a": 1}})
    with sqlite3.connect(cache.path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        cache.keep("look", 1, {file: {"a": 2}})
        other.execute("ROLLBACK")
    other.close()
    assert cache.known("look", 1, [file]) == {file.path: {"a": 1}}


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, file: FileId) -> None:
    (tmp_path / "in the way").touch()
    cache = MediaCache(tmp_path / "in the way" / "media.sqlite")
    cache.keep("look", 1, {file: {"a": 1}})
    assert cache.known("look", 1, [file]) == {}


def test_many_threads_may_keep_and_ask(cache: MediaCache) -> None:
    def work(number: int) -> None:
        for i in range(20):
            each = FileId(Path(f"/{number}/{i}"), 1, 1, 1)
            cache.keep("look", 1, {each: {"i": i}})
            assert cache.known("look", 1, [each])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = [FileId(Path(f"/{number}/{i}"), 1, 1, 1) for number in range(4) for i in range(20)]
    assert len(cache.known("look", 1, files)) == 80


def test_the_workspaces_own_is_below_its_cache(tmp_path: Path) -> None:
    assert MediaCache.of(Workspace(tmp_path)).path.is_relative_to(tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    root.mkdir()
    for i in range(5):
        Image.new("RGB", (10 + i, 8), (i, 2, 3)).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text(f"caption {i}")
    return root


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the media and caption files that are opened from now on."""
    names: list[str] = []
    for name in ("probe", "sha256_of", "read_caption_file"):
        real: Any = getattr(facts, name)

        def noted(path: Path, real: Any = real) -> Any:
            names.append(path.name)
            return real(path)

        monkeypatch.setattr(facts, name, noted)
    return names


def test_a_second_scan_of_an_unchanged_folder_opens_nothing_and_finds_the_same(
    folder: Path, cache: MediaCache, opened: list[str]
) -> None:
    first = scan(folder, cache=cache)
    assert len(opened) == 15
    opened.clear()
    told: list[tuple[int, int]] = []
    again = scan(folder, cache=cache, progress=lambda done, total: told.append((done, total)))
    assert again == first
    assert opened == []
    assert told == [(10, 10)]


def test_what_changed_is_looked_at_again_and_nothing_else(folder: Path, cache: MediaCache, opened: list[str]) -> None:
    scan(folder, cache=cache)
    opened.clear()
    (folder / "3.txt").write_text("CAPTION 3")  # of the same length
    Image.new("RGB", (99, 8)).save(folder / "1.png")
    found = scan(folder, cache=cache)
    assert set(opened) == {"3.txt", "1.png"}
    assert found.items[3].caption == "CAPTION 3"
    assert found.items[1].width == 99


def test_a_file_replaced_by_one_of_its_size_and_time_is_noticed(folder: Path, cache: MediaCache) -> None:
    scan(folder, cache=cache)
    was = (folder / "0.txt").stat()
    (folder / "new").write_text("CAPTION 0")
    os.utime(folder / "new", ns=(was.st_atime_ns, was.st_mtime_ns))
    (folder / "new").replace(folder / "0.txt")
    assert scan(folder, cache=cache).items[0].caption == "CAPTION 0"


def test_times_in_whole_seconds_are_not_trusted_while_they_are_fresh(folder: Path, cache: MediaCache) -> None:
    """As on disks that keep times so: a second change within the second cannot be told from the first."""
    path = folder / "0.txt"
    now = path.stat().st_mtime_ns // 1_000_000_000 * 1_000_000_000
    os.utime(path, ns=(now, now))
    scan(folder, cache=cache)
    path.write_text("CAPTION 0")
    os.utime(path, ns=(now, now))
    assert scan(folder, cache=cache).items[0].caption == "CAPTION 0"


def test_failures_are_found_anew_each_time(folder: Path, cache: MediaCache, opened: list[str]) -> None:
    (folder / "bad.png").write_bytes(b"\x89PNG")
    (folder / "0.txt").write_bytes(b"caf\xe9")
    assert scan(folder, cache=cache).problems == scan(folder, cache=cache).problems
    assert opened.count("bad.png") == 2
    assert opened.count("0.txt") == 2


def test_a_scan_that_is_stopped_keeps_what_it_found(folder: Path, cache: MediaCache, opened: list[str]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(folder, cache=cache, progress=stop)
    opened.clear()
    scan(folder, cache=cache)
    assert len(set(opened)) <= 2

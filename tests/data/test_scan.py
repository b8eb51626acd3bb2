import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lorapod.data import Problem, Scan, Severity, scan, shown
from lorapod.data.names import natural_key
from lorapod.errors import DatasetError


def draw(path: Path, caption: str | None = "a thing", colour: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = sum(str(path).encode("utf-8", "surrogateescape")) * 7919 % 2**24
    Image.new("RGB", (12, 8), colour or f"#{shade:06x}").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def names(found: Scan) -> list[str]:
    return [str(item.path.relative_to(found.folder)) for item in found.items]


def about(found: Scan, path: Path) -> Problem:
    return next(problem for problem in found.problems if problem.path == path)


def test_items_come_with_size_caption_and_content_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", "1.PNG"):
        draw(tmp_path / name, caption=f"caption of {name}\n")
    found = scan(tmp_path)
    assert names(found) == ["1.PNG", "2.png", "10.png"]
    first = found.items[0]
    assert (first.width, first.height, first.frames) == (12, 8, 1)
    assert (first.caption, first.caption_path) == ("caption of 1.PNG", tmp_path / "1.txt")
    assert first.path.is_absolute()
    assert first.size_bytes == first.path.stat().st_size
    assert len({item.sha256 for item in found.items}) == 3
    assert found.problems == []


def test_every_file_ends_as_item_caption_problem_or_other(tmp_path: Path) -> None:
    draw(tmp_path / "good.png")
    draw(tmp_path / "uncaptioned.webp", caption=None)
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "wanted.mov").write_bytes(b"x")
    (tmp_path / "wanted.txt").write_text("a clip")
    (tmp_path / "phone.HEIC").write_bytes(b"x")
    (tmp_path / "logo.svg").write_bytes(b"x")
    (tmp_path / "orphan.txt").write_text("nobody")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "no extension").write_text("x")
    (tmp_path / "._good.png").write_bytes(b"\0\5\x16\7 and more")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s.jpg"))
    found = scan(tmp_path)
    assert names(found) == ["good.png", "uncaptioned.webp"]
    severities = {problem.path.name: problem.severity for problem in found.problems}
    assert severities == {
        "cut.png": Severity.ERROR,
        "empty.jpg": Severity.ERROR,
        "gone.png": Severity.ERROR,
        "self.png": Severity.ERROR,
        "pipe.png": Severity.ERROR,
        "s.jpg": Severity.ERROR,
        "wanted.mov": Severity.ERROR,
        "clip.mp4": Severity.ERROR,
        "orphan.txt": Severity.WARNING,
        "phone.HEIC": Severity.WARNING,
        "logo.svg": Severity.INFO,
    }
    assert all(problem.what and problem.remedy for problem in found.problems)
    assert {path.name for path in found.others} == {"notes.md", ".DS_Store", "no extension", "._good.png"}
    captions = {item.caption_path for item in found.items} | {tmp_path / "wanted.txt"}
    everything = {item.path for item in found.items} | captions | {p.path for p in found.problems} | set(found.others)
    assert set(tmp_path.iterdir()) <= everything


@pytest.mark.parametrize(
    "name",
    [
        "a b.png",
        "🦊 fox.png",
        "-rf.png",
        "two\nlines.png",
        "[red]x.png",
        "é.png",
        "x.y.png",
        'it\'s "so".png',
        " .png",
        "n" * 251 + ".png",
    ],
)
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    draw(tmp_path / name, caption="odd")
    found = scan(tmp_path)
    assert [(item.path.name, item.caption) for item in found.items] == [(name, "odd")]
    assert "\n" not in shown(found.items[0].path)


def test_a_name_that_is_no_utf8_is_an_item_and_can_be_shown(tmp_path: Path) -> None:
    draw(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")))
    found = scan(tmp_path)
    assert len(found.items) == 1
    shown(found.items[0].path).encode("utf-8")


def test_sub_folders_are_used_only_if_asked_for_and_named_otherwise(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "more" / "b.png")
    (tmp_path / "texts").mkdir()
    draw(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png")
    flat = scan(tmp_path)
    assert names(flat) == ["a.png"]
    assert about(flat, tmp_path / "more").severity is Severity.WARNING
    assert about(flat, tmp_path / "texts").severity is Severity.INFO
    deep = scan(tmp_path, recursive=True)
    assert names(deep) == ["a.png", "more/b.png"]
    assert about(deep, tmp_path / ".ipynb_checkpoints").severity is Severity.INFO


def test_loops_of_links_end_and_linked_folders_are_used_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    draw(root / "a.png")
    draw(outside / "b.png")
    (root / "back").symlink_to(root)
    (root / "in").symlink_to(outside)
    (root / "in again").symlink_to(outside)
    found = scan(root, recursive=True)
    assert names(found) == ["a.png", "in/b.png"]
    assert {p.path.name for p in found.problems} == {"back", "in again"}


def test_captions_are_found_whatever_the_case_and_of_two_txt_wins(tmp_path: Path) -> None:
    draw(tmp_path / "IMG_1.PNG", caption=None)
    (tmp_path / "img_1.TXT").write_text("loose")
    draw(tmp_path / "b.png", caption="txt")
    (tmp_path / "b.caption").write_text("other")
    draw(tmp_path / "C.png", caption="upper")
    draw(tmp_path / "c.png", caption="lower")
    found = scan(tmp_path)
    assert {item.path.name: item.caption for item in found.items} == {
        "IMG_1.PNG": "loose",
        "b.png": "txt",
        "C.png": "upper",
        "c.png": "lower",
    }
    assert [problem.path.name for problem in found.problems] == ["b.caption"]


def test_doubtful_captions_and_pictures_are_warned_of(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", colour="red")
    draw(tmp_path / "a.webp", caption=None, colour="blue")
    draw(tmp_path / "same.png", colour="red")
    draw(tmp_path / "blank.png", caption=" \n")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "moving.txt").write_text("moving")
    found = scan(tmp_path)
    assert len(found.items) == 5
    assert "several files: a.png, a.webp" in about(found, tmp_path / "a.txt").what
    assert "same file as a.png" in about(found, tmp_path / "same.png").what
    assert "empty" in about(found, tmp_path / "blank.png").what
    assert "first of its 2 frames" in about(found, tmp_path / "moving.gif").what
    assert {problem.severity for problem in found.problems} == {Severity.WARNING}


def test_an_unreadable_caption_makes_its_item_unusable(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", caption=None)
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    found = scan(tmp_path)
    assert found.items == []
    assert "a.txt is not UTF-8. Byte 3" in about(found, tmp_path / "a.png").what


@pytest.fixture
def as_somebody_else() -> Iterator[Path]:
    """A folder in which permissions count: as root the test goes on as the user `nobody`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(was)
            for path in folder.iterdir():
                path.chmod(0o755)


def test_what_may_not_be_read_is_a_problem_and_the_rest_is_used(as_somebody_else: Path) -> None:
    folder = as_somebody_else
    draw(folder / "a.png")
    draw(folder / "locked.png").chmod(0)
    draw(folder / "mute.png")
    (folder / "mute.txt").chmod(0)
    draw(folder / "closed" / "b.png")
    (folder / "closed").chmod(0)
    found = scan(folder, recursive=True)
    assert names(found) == ["a.png"]
    assert {problem.path.name for problem in found.problems} == {"locked.png", "mute.png", "closed"}
    assert all("ermission denied" in problem.what for problem in found.problems)
    with pytest.raises(DatasetError, match="cannot be read"):
        scan(folder / "closed")


def test_a_folder_that_is_no_dataset_is_refused_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset folder"):
        scan(tmp_path / "missing")
    with pytest.raises(DatasetError, match="is a file"):
        scan(draw(tmp_path / "a" / "a.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="Put pictures"):
        scan(tmp_path / "empty")
    with pytest.raises(DatasetError, match="only in its sub-folders"):
        scan(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.heic").touch()
    with pytest.raises(DatasetError, match="Pictures of this format cannot be read"):
        scan(tmp_path / "raw")


def test_progress_counts_every_picture_and_caption(tmp_path: Path) -> None:
    for i in range(3):
        draw(tmp_path / f"{i}.png")
    told: list[tuple[int, int]] = []
    scan(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 6) for i in range(1, 7)]


def test_natural_order_is_total_and_by_number() -> None:
    paths = [Path(name) for name in ("a10", "A2", "a2", "a02", "b/1", "b", "1", "a")]
    assert [str(path) for path in sorted(paths, key=natural_key)] == ["1", "a", "A2", "a02", "a2", "a10", "b", "b/1"]

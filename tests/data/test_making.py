"""Datasets made anew: what lies beside items comes along, and work that was stopped goes on."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.looks import drawn, in_bars
from data.moving import scene, write
from lorapod.data import Geometry, fix, scan
from lorapod.data.checks import Checked, check
from lorapod.data.export import Layout, export
from lorapod.data.fix import fix_datasets, resize
from lorapod.data.making import JOURNAL
from lorapod.errors import DatasetError, DiskError
from lorapod.files import sha256_of
from lorapod.recipe.schema import DatasetSection

SIZE = (160, 120)


def put(path: Path, picture: Image.Image, caption: str | None = None, turned: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    picture.save(path, exif=exif.tobytes() if turned else b"")
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def checked(folder: Path, **keys: object) -> Checked:
    fields = {"path": folder, "resolutions": [64], "frames": [5], "validation_share": 0, **keys}
    return check([DatasetSection.model_validate(fields)], Geometry(16, frame_step=4, fps=16.0))


def upper_half(size: tuple[int, int] = SIZE) -> Image.Image:
    """White above, black below."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0], size[1] // 2))
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures with masks and control pictures: as they are, in bars, turned, and with two control pictures."""
    place = tmp_path / "set"
    for i, name in enumerate(("plain.png", "bars.png", "turned.jpg")):
        picture = drawn(i, SIZE)
        put(place / name, in_bars(picture, 0.125) if name == "bars.png" else picture, name, turned="turned" in name)
        put(tmp_path / "masks" / f"{Path(name).stem}.png", upper_half(SIZE[::-1] if "turned" in name else SIZE))
        numbers = ("_0", "_1") if name == "plain.png" else ("",)
        for number in numbers:
            size = SIZE[::-1] if "turned" in name else SIZE
            put(tmp_path / "before" / f"{Path(name).stem}{number}.png", drawn(50 + i + len(number), size))
    return place


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def test_masks_and_control_pictures_come_along_cropped_as_their_items(folder: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    source = checked(folder, masks=tmp_path / "masks", control=tmp_path / "before")
    fix_datasets(source, tmp_path / "out")
    assert contents(tmp_path).items() >= before.items()
    found = scan(tmp_path / "out", control=tmp_path / "out" / "control")
    assert {item.path.name: len(item.control_paths) for item in found.items} == {
        "bars.png": 1,
        "plain.png": 2,
        "turned.png": 1,
    }
    assert not any(problem.severity.value == "error" for problem in found.problems)
    for item in found.items:
        assert item.mask_path is not None
        for beside in (item.mask_path, *item.control_paths):
            with Image.open(beside) as picture:
                assert picture.size == (item.width, item.height)
    bars = next(item for item in found.items if item.path.name == "bars.png")
    assert bars.height < 100 and bars.mask_path
    rows = np.asarray(Image.open(bars.mask_path).convert("L")).mean(axis=1) > 127
    assert abs(int(rows.sum()) - bars.height // 2) <= 1  # bars of one height were cut off both ends


def test_an_alpha_mask_is_kept_when_its_picture_is_made_anew(tmp_path: Path) -> None:
    picture = drawn(3, SIZE).convert("RGBA")
    picture.putalpha(upper_half())
    put(tmp_path / "set" / "a.png", picture, "a")
    resize(checked(tmp_path / "set", alpha_masks=True), tmp_path / "out", 80)
    (item,) = scan(tmp_path / "out").items
    assert item.mask_path and item.mask_path.name == "a-masklabel.png"
    mask = np.asarray(Image.open(item.mask_path))
    assert mask.shape == (60, 80)
    assert mask[:28].min() > 250 and mask[32:].max() < 5


def test_work_that_was_stopped_goes_on_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checked(folder)
    made: list[str] = []
    whole = fix.copy_whole

    def stops(path: Path, target: Path) -> None:
        raise DiskError("No space left", "", "")

    monkeypatch.setattr("lorapod.data.fix.copy_whole", stops)
    with pytest.raises(DiskError):
        fix_datasets(source, tmp_path / "out")
    assert (tmp_path / "out" / JOURNAL).is_file()
    (tmp_path / "out" / ".turned.png.abcdefgh.part").write_bytes(b"half")  # as a killed process leaves it
    monkeypatch.setattr("lorapod.data.fix.copy_whole", whole)
    remake = fix.remake_picture
    monkeypatch.setattr(
        "lorapod.data.fix.remake_picture", lambda item, *rest: (made.append(item.path.name), remake(item, *rest))
    )
    again = fix_datasets(checked(folder), tmp_path / "out")
    assert made == ["turned.jpg"]  # what came before the failure is not made twice
    assert {each.source.name: each.what for each in again if each.what} == {
        "bars.png": ("bars trimmed to 160x90",),
        "turned.jpg": ("turned upright",),
    }
    fix_datasets(checked(folder), tmp_path / "at once")
    assert contents(tmp_path / "out") == contents(tmp_path / "at once")
    with pytest.raises(DatasetError, match="is not empty"):
        fix_datasets(source, tmp_path / "out")


def test_another_work_does_not_go_on_in_an_unfinished_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object) -> None:
        raise DiskError("No space left", "", "")

    with monkeypatch.context() as patch, pytest.raises(DiskError):
        patch.setattr("lorapod.data.fix.copy_whole", stops)
        fix_datasets(checked(folder), tmp_path / "out")
    with pytest.raises(DatasetError, match="other work that was stopped"):
        resize(checked(folder), tmp_path / "out", 80)


def test_an_item_that_changed_meanwhile_is_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fix.copy_whole

    def stops_at_last(path: Path, target: Path) -> None:
        raise DiskError("No space left", "", "")

    monkeypatch.setattr("lorapod.data.fix.copy_whole", stops_at_last)
    with pytest.raises(DiskError):
        fix_datasets(checked(folder), tmp_path / "out")
    monkeypatch.setattr("lorapod.data.fix.copy_whole", whole)
    (folder / "bars.txt").write_text("another caption")
    fix_datasets(checked(folder), tmp_path / "out")
    assert (tmp_path / "out" / "bars.txt").read_text() == "another caption\n"


def test_exports_carry_masks_and_controls_as_far_as_the_trainer_takes_them(folder: Path, tmp_path: Path) -> None:
    source = checked(folder, masks=tmp_path / "masks", control=tmp_path / "before")
    said = {}
    for layout in Layout:
        made, file = export(source, layout, tmp_path / layout.value)
        said[layout] = {each.source.name: each.what for each in made}
        text = file.read_text()
        masks = sorted(path.stem for path in (tmp_path / layout.value).glob("* masks/*"))
        controls = sorted(path.stem for path in (tmp_path / layout.value).glob("* control*/*"))
        if layout is Layout.DIFFUSION_PIPE:
            (part,) = tomllib.loads(text)["directory"]
            assert sorted(path.stem for path in Path(part["mask_path"]).iterdir()) == ["bars", "plain", "turned"]
            assert sorted(path.stem for path in Path(part["control_path"]).iterdir()) == ["bars", "plain", "turned"]
        if layout is Layout.MUSUBI:
            assert masks == []
            assert controls == ["bars", "plain_0", "plain_1", "turned"]
            assert Path(tomllib.loads(text)["datasets"][0]["control_directory"]).is_dir()
        if layout is Layout.KOHYA:
            (subset,) = tomllib.loads(text)["datasets"][0]["subsets"]
            assert sorted(path.stem for path in Path(subset["conditioning_data_dir"]).iterdir()) == masks != []
            assert controls == [] and "--masked_loss" in text
        if layout is Layout.AI_TOOLKIT:
            assert controls == ["bars", "plain", "plain", "turned"]
            assert "mask_path" in text and "control_path" in text
    assert "its mask is left out: musubi trains without" in said[Layout.MUSUBI]["bars.png"]
    assert any("1 of its 2 control pictures left out" in each for each in said[Layout.DIFFUSION_PIPE]["plain.png"])


def test_clips_are_left_out_of_an_export_to_kohya_and_named(folder: Path, tmp_path: Path) -> None:
    write(folder / "clip.mp4", scene(7, 24))
    (folder / "clip.txt").write_text("moves")
    made, _ = export(checked(folder), Layout.KOHYA, tmp_path / "out")
    assert {each.source.name: each.what for each in made}["clip.mp4"] == (
        "left out: sd-scripts trains on pictures only",
    )
    assert not list((tmp_path / "out").rglob("*.mp4"))
    for path in folder.glob("*.*"):
        if not path.name.startswith("clip"):
            path.unlink()
    with pytest.raises(DatasetError, match="nothing that kohya could train on"):
        export(checked(folder), Layout.KOHYA, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_captions_are_written_with_the_extension_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    _, file = export(checked(folder), Layout.KOHYA, tmp_path / "out", caption_extension=".caption")
    assert tomllib.loads(file.read_text())["general"]["caption_extension"] == ".caption"
    assert len(list((tmp_path / "out").rglob("*.caption"))) == 3 and not list((tmp_path / "out").rglob("*.txt"))
    with pytest.raises(DatasetError, match="reads no"):
        export(checked(folder), Layout.DIFFUSION_PIPE, tmp_path / "pipe", caption_extension=".caption")


def test_nothing_is_made_inside_of_the_dataset(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    before = contents(folder)
    for out in (folder / "fixed", tmp_path / "link" / "fixed"):
        with pytest.raises(DatasetError, match="lies in the dataset itself"):
            fix_datasets(checked(folder), out)
        with pytest.raises(DatasetError, match="lies in the dataset itself"):
            export(checked(folder), Layout.MUSUBI, out)
    assert contents(folder) == before and not (folder / "fixed").exists()

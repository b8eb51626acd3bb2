import tomllib
from pathlib import Path

import pytest
from PIL import Image

from data.looks import drawn, in_bars
from lorapod.data import Geometry, scan
from lorapod.data.checks import Checked, check
from lorapod.data.export import Layout, export
from lorapod.data.fix import fix_datasets, resize
from lorapod.data.making import refuse_taken
from lorapod.errors import DatasetError
from lorapod.files import sha256_of
from lorapod.recipe.schema import DatasetSection

SIZE = (320, 240)


def put(folder: Path, name: str, picture: Image.Image, caption: str | None = "a zorb") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if "turned" in name:
        exif[0x0112] = 6
    picture.save(folder / name, exif=exif.tobytes() if len(exif) else b"")
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    put(place, "fine.png", drawn(1, SIZE))
    put(place, "bars.png", in_bars(drawn(2, SIZE), 0.125))
    put(place, "turned.jpg", drawn(3, SIZE))
    put(place, "old.bmp", drawn(4, SIZE))
    put(place, "sub/fine.webp", drawn(5, SIZE), "another\nof two lines")
    put(place, "uncaptioned.png", drawn(6, SIZE), None)
    put(place, "uncaptioned.jpg", drawn(7, SIZE), None)
    (place / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return place


def checked(folder: Path, **keys: object) -> Checked:
    section = DatasetSection.model_validate(
        {"path": folder, "resolutions": [128], "recursive": True, "allow_missing_captions": True, "validation_share": 0}
        | keys
    )
    return check([section], Geometry(16))


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def test_only_what_is_wrong_is_made_anew_and_the_original_stays(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    out = tmp_path / "fixed"
    made = fix_datasets(checked(folder), out)
    assert contents(folder) == before
    said = {each.source.name: each.what for each in made if each.what}
    assert said == {
        "bars.png": ("bars trimmed to 320x178",),
        "turned.jpg": ("turned upright",),
        "old.bmp": ("written as PNG",),
        "uncaptioned.png": ("renamed to uncaptioned 2.png",),
    }
    assert sha256_of(out / "fine.png") == before["fine.png"]
    assert sha256_of(out / "sub/fine.webp") == before["sub/fine.webp"]
    with Image.open(out / "turned.png") as picture:
        assert picture.size == (240, 320)
        assert 0x0112 not in picture.getexif()
    assert (out / "sub/fine.txt").read_text() == "another\nof two lines\n"
    assert not (out / "broken.png").exists()


def test_a_fixed_dataset_has_nothing_left_to_fix(folder: Path, tmp_path: Path) -> None:
    fix_datasets(checked(folder), tmp_path / "once")
    again = checked(tmp_path / "once")
    assert not any("bars" in problem.what for problem in again.problems)
    assert all(not each.what for each in fix_datasets(again, tmp_path / "twice"))


def test_items_that_differ_in_extension_alone_keep_their_own_captions(folder: Path, tmp_path: Path) -> None:
    fix_datasets(checked(folder), tmp_path / "fixed")
    names = {path.name for path in (tmp_path / "fixed").glob("uncaptioned*")}
    assert names == {"uncaptioned.jpg", "uncaptioned 2.png"}


def test_a_name_that_is_too_long_for_what_comes_behind_it_is_shortened(tmp_path: Path) -> None:
    put(tmp_path / "long", "x" * 251 + ".png", drawn(1, SIZE))
    made, _ = export(checked(tmp_path / "long"), Layout.KOHYA, tmp_path / "out", caption_extension=".caption")
    (target,) = made[0].targets
    assert target.is_file() and target.with_suffix(".caption").is_file() and len(target.name) < 240
    assert made[0].what == (f"renamed to {target.name}",)


def test_a_folder_that_holds_anything_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / ".hidden").touch()
    with pytest.raises(DatasetError, match="is not empty"):
        fix_datasets(checked(folder), tmp_path / "taken")
    with pytest.raises(DatasetError, match="is not empty"):
        refuse_taken(folder)
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="is a file"):
        refuse_taken(tmp_path / "file")


def test_resize_to_the_bucket_gives_what_training_would_see(folder: Path, tmp_path: Path) -> None:
    resize(checked(folder), tmp_path / "small")
    sizes = {(item.width, item.height) for item in scan(tmp_path / "small", recursive=True).items}
    assert all(width % 16 == 0 and height % 16 == 0 for width, height in sizes)
    assert sizes == {(144, 112), (112, 144)}


def test_resize_to_a_longest_side_never_enlarges(folder: Path, tmp_path: Path) -> None:
    put(folder, "tiny.png", drawn(8, (60, 40)))
    made = resize(checked(folder), tmp_path / "small", 160)
    sizes = {item.path.name: (item.width, item.height) for item in scan(tmp_path / "small").items}
    assert sizes["fine.png"] == (160, 120)
    assert sizes["turned.jpg"] == (120, 160)
    assert sizes["tiny.png"] == (60, 40)
    assert {each.what for each in made if each.source.name == "fine.png"} == {("resized from 320x240 to 160x120",)}


@pytest.mark.parametrize("layout", list(Layout))
def test_an_export_holds_every_usable_item_with_its_whole_caption(folder: Path, tmp_path: Path, layout: Layout) -> None:
    source = checked(folder, trigger_word="momo", repeats=3)
    made, file = export(source, layout, tmp_path / "out")
    assert len(made) == 7
    targets = [target for each in made for target in each.targets]
    assert len({target.with_suffix("") for target in targets}) == 7
    assert all(target.suffix in (".png", ".jpg", ".webp") for target in targets)
    assert all(target.with_suffix(".txt").read_text().startswith("momo") for target in targets)
    text = file.read_text()
    assert str(targets[0].parent) in text
    assert text.count("repeats") == 1 and "3" in text
    if layout is Layout.KOHYA:
        assert targets[0].parent.name == "3_pictures"
    if file.suffix == ".toml":
        tomllib.loads(text)


def test_an_export_to_diffusion_pipe_says_its_resolutions_at_the_top_too(folder: Path, tmp_path: Path) -> None:
    _, file = export(checked(folder, resolutions=[256, 128]), Layout.DIFFUSION_PIPE, tmp_path / "out")
    said = tomllib.loads(file.read_text())
    assert said["resolutions"] == said["directory"][0]["resolutions"] == [128, 256]
    assert said["frame_buckets"] == [1]


def test_an_export_to_musubi_has_a_cache_folder_of_its_own_for_each_resolution(folder: Path, tmp_path: Path) -> None:
    _, file = export(checked(folder, resolutions=[256, 128]), Layout.MUSUBI, tmp_path / 'o "u" t')
    said = tomllib.loads(file.read_text())
    assert said["general"]["caption_extension"] == ".txt" and said["general"]["enable_bucket"] is True
    caches = [each["cache_directory"] for each in said["datasets"]]
    assert len(set(caches)) == 2 == len(caches)

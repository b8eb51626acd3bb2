"""Layouts of other trainers, and masks and control pictures beside items."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorapod.data import Bucket, Geometry, Problem, Scan, Severity, load_mask, place, plan_dataset, scan
from lorapod.errors import DatasetError
from lorapod.recipe.schema import DatasetSection


def draw(path: Path, caption: str | None = None, size: tuple[int, int] = (12, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path)) * 1000 + sum(path.name.encode())).integers(0, 255, (*size[::-1], 4))
    Image.fromarray(noise.astype(np.uint8), "RGBA").convert(mode).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def about(found: Scan, path: Path) -> list[Problem]:
    return [problem for problem in found.problems if problem.path == path]


def captions(found: Scan) -> dict[str, str | None]:
    return {item.path.name: item.caption for item in found.items}


def test_kohyas_folders_repeat_and_caption_their_items_and_it_is_said(tmp_path: Path) -> None:
    draw(tmp_path / "10_sks cat" / "a.png", "a cat on a mat")
    draw(tmp_path / "10_sks cat" / "b.png")
    draw(tmp_path / "2_dog" / "c.png")
    found = scan(tmp_path)
    assert captions(found) == {"c.png": "dog", "a.png": "a cat on a mat", "b.png": "sks cat"}
    assert {item.path.name: item.repeats for item in found.items} == {"a.png": 10, "b.png": 10, "c.png": 2}
    said = [problem.what for problem in about(found, tmp_path / "10_sks cat")]
    assert any("10 times" in what for what in said)
    assert any("`sks cat`" in what for what in said)
    assert {problem.severity for problem in found.problems} == {Severity.INFO}

    plan = plan_dataset(DatasetSection(path=tmp_path, repeats=3, resolutions=[64], validation_share=0), Geometry(8))
    assert {each.item.path.name: each.repeats for each in plan.train} == {"a.png": 30, "b.png": 30, "c.png": 6}
    assert plan.unused == []


@pytest.mark.parametrize("spoiler", ["top.png", "other/x.png"])
def test_numbers_in_folder_names_mean_nothing_elsewhere(tmp_path: Path, spoiler: str) -> None:
    draw(tmp_path / "10_cat" / "a.png", "a cat")
    draw(tmp_path / spoiler, "x")
    found = scan(tmp_path, recursive=True)
    assert {item.repeats for item in found.items} == {1}
    assert found.problems == []


def test_a_year_is_no_number_of_repeats(tmp_path: Path) -> None:
    draw(tmp_path / "2024_summer" / "a.png", "sun")
    with pytest.raises(DatasetError, match="only in its sub-folders"):
        scan(tmp_path)
    assert scan(tmp_path, recursive=True).items[0].repeats == 1


def test_a_folder_below_one_of_kohyas_is_nobodys_surprise(tmp_path: Path) -> None:
    draw(tmp_path / "10_cat" / "a.png")
    draw(tmp_path / "10_cat" / "more" / "b.png")
    draw(tmp_path / "empty" / "deep" / "c.png", "c")
    found = scan(tmp_path, recursive=True)
    assert {item.path.name: (item.repeats, item.caption) for item in found.items} == {
        "a.png": (10, "cat"),
        "b.png": (10, "cat"),
        "c.png": (1, "c"),
    }


def jsonl(path: Path, *rows: object, text: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + text, encoding="utf-8")
    return path


def test_metadata_captions_its_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "sub/d.png"):
        draw(tmp_path / name)
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": "a\n thing"},
        {"file_name": "./b.png", "caption": "b é"},
        {"file_name": "sub/d.png", "text": "d"},
    )
    found = scan(tmp_path, recursive=True)
    assert captions(found) == {"a.png": "a thing", "b.png": "b é", "c.png": None, "d.png": "d"}
    assert found.items[0].caption_path == tmp_path / "metadata.jsonl"
    assert found.problems == []
    assert found.others == []


def test_csv_metadata_with_mark_quotes_and_line_ends_is_read(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(b'\xef\xbb\xbffile_name,text\r\na.png,"one, ""two""\r\nthree"\r\n')
    assert captions(scan(tmp_path)) == {"a.png": 'one, "two" three'}


def test_a_caption_file_wins_over_metadata_and_that_is_said(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "by hand")
    draw(tmp_path / "b.png", "the same")
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": "by machine"},
        {"file_name": "b.png", "text": "the same"},
    )
    found = scan(tmp_path)
    assert captions(found) == {"a.png": "by hand", "b.png": "the same"}
    (differs,), (agrees,) = about(found, tmp_path / "a.png"), about(found, tmp_path / "b.png")
    assert (differs.severity, agrees.severity) == (Severity.WARNING, Severity.INFO)
    assert "a.txt counts" in differs.what


def test_what_is_wrong_with_metadata_is_said_by_line_and_name(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    rows = [{"file_name": "a.png", "text": "first"}, {"file_name": "a.png", "text": "second"}, {"file_name": "a.png"},
            ["a.png"], {"file_name": 3, "text": "x"}, {"file_name": "gone.png", "text": "x"},
            {"file_name": "../a.png", "text": "x"}]  # fmt: skip
    path = jsonl(tmp_path / "metadata.jsonl", *rows, text="{broken\n" + "[" * 5000 + "\n\n")
    found = scan(tmp_path)
    assert captions(found) == {"a.png": "first"}
    said = " ".join(problem.what for problem in about(found, path))
    for words in ("line 3, 4, 5, 8, 9", "twice, of which the first counts: a.png", "outside of its folder", "gone.png"):
        assert words in said
    assert {problem.severity for problem in found.problems} == {Severity.WARNING}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "caf\xe9"}\n', "not UTF-8 text (byte 0xe9)"),
        ("metadata.csv", b"name,text\na.png,x\n", "no column `file_name`"),
        ("metadata.csv", b'file_name,text\na.png,"' + b"x" * 200_000, "field larger"),
        ("metadata.csv", b"", "no column"),
    ],
)
def test_metadata_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    draw(tmp_path / "a.png", "fine")
    (tmp_path / name).write_bytes(content)
    (problem,) = about(scan(tmp_path), tmp_path / name)
    assert problem.severity is Severity.ERROR
    assert said in problem.what


def test_of_two_metadata_files_one_is_read_and_parquet_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    assert "Parquet" in about(scan(tmp_path), tmp_path / "metadata.parquet")[0].what
    jsonl(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "json"})
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,csv\n")
    found = scan(tmp_path)
    assert captions(found) == {"a.png": "json"}
    assert "not used" in about(found, tmp_path / "metadata.csv")[0].what


def test_metadata_of_sub_folders_that_are_not_looked_into_says_what_to_do(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "a")
    draw(tmp_path / "images" / "b.png")
    jsonl(tmp_path / "metadata.jsonl", {"file_name": "images/b.png", "text": "b"})
    (problem,) = about(scan(tmp_path), tmp_path / "metadata.jsonl")
    assert "recursive = true" in problem.remedy


def test_a_sub_folder_of_control_pictures_is_known_by_its_name(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "a")
    draw(tmp_path / "control" / "a.png")
    (problem,) = about(scan(tmp_path), tmp_path / "control")
    assert "set `control` to it" in problem.remedy
    assert not about(scan(tmp_path, control=tmp_path / "control"), tmp_path / "control")


def test_a_trigger_file_is_no_trigger_word(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "a thing")
    (tmp_path / "trigger.txt").write_text("sks")
    found = scan(tmp_path)
    assert captions(found) == {"a.png": "a thing"}
    (problem,) = about(found, tmp_path / "trigger.txt")
    assert "trigger_word" in problem.remedy
    plan = plan_dataset(DatasetSection(path=tmp_path, resolutions=[64]), Geometry(8))
    assert plan.train[0].captions == ("a thing",)


def test_several_lines_are_one_caption_and_that_is_said_once(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\rthree\n")
    found = scan(tmp_path)
    assert captions(found) == {"a.png": "one two three"}
    (problem,) = found.problems
    assert (problem.severity, "The 3 lines" in problem.what) == (Severity.INFO, True)


def test_masks_are_paired_by_name_and_what_has_none_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "set" / "a.png", "a")
    draw(tmp_path / "set" / "b.png", "b")
    draw(tmp_path / "set" / "sub" / "a.png", "sub a")
    draw(tmp_path / "masks" / "a.jpg", size=(6, 4), mode="L")
    draw(tmp_path / "masks" / "sub" / "a.webp")
    draw(tmp_path / "masks" / "nobody.png")
    (tmp_path / "masks" / "notes.md").touch()
    found = scan(tmp_path / "set", recursive=True, masks=tmp_path / "masks")
    masks = {str(item.path.relative_to(found.folder)): item.mask_path for item in found.items}
    assert masks == {
        "a.png": tmp_path / "masks/a.jpg",
        "b.png": None,
        "sub/a.png": tmp_path / "masks/sub/a.webp",
    }
    assert "no item of this mask's name" in about(found, tmp_path / "masks/nobody.png")[0].what
    assert "no mask" in about(found, tmp_path / "set/b.png")[0].what
    assert found.others == [tmp_path / "masks/notes.md"]


def test_masks_that_do_not_fit_or_cannot_be_read_make_their_items_unusable(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / name, "x")
    draw(tmp_path / "masks" / "a.png", size=(8, 12))
    (tmp_path / "masks" / "b.png").write_bytes(b"")
    draw(tmp_path / "masks" / "c.png")
    found = scan(tmp_path, masks=tmp_path / "masks")
    assert list(captions(found)) == ["c.png"]
    assert "another shape: 8x12 to its own 12x8" in about(found, tmp_path / "a.png")[0].what
    assert "b.png cannot be used: The file is empty" in about(found, tmp_path / "b.png")[0].what


def test_masks_inside_the_dataset_are_no_items(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "a")
    draw(tmp_path / "masks" / "a.png")
    assert [item.path.name for item in scan(tmp_path, recursive=True, masks=tmp_path / "masks").items] == ["a.png"]
    unasked = scan(tmp_path)
    assert "masks = " in about(unasked, tmp_path / "masks")[0].remedy
    taken_for_items = scan(tmp_path, recursive=True)
    assert len(taken_for_items.items) == 2
    assert "trained on like others" in about(taken_for_items, tmp_path / "masks")[0].what


def test_a_folder_without_any_fitting_mask_is_an_error(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "a")
    draw(tmp_path / "masks" / "z.png")
    found = scan(tmp_path, masks=tmp_path / "masks")
    assert about(found, tmp_path / "masks")[0].severity is Severity.ERROR
    assert scan(tmp_path, masks=tmp_path / "gone").problems[0].severity is Severity.ERROR


def test_an_item_is_not_its_own_mask(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "a")
    draw(tmp_path / "b.png", "b")
    draw(tmp_path / "b-masklabel.png")
    found = scan(tmp_path, masks=tmp_path)
    assert [item.mask_path for item in found.items] == [None, tmp_path / "b-masklabel.png"]


def test_onetrainers_masks_beside_pictures_are_masks_and_no_items(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg", "a")
    draw(tmp_path / "a-masklabel.png")
    draw(tmp_path / "lonely-masklabel.png", "a picture of its own")
    found = scan(tmp_path)
    assert {item.path.name: item.mask_path for item in found.items} == {
        "a.jpg": tmp_path / "a-masklabel.png",
        "lonely-masklabel.png": None,
    }
    assert "mask of a.jpg" in about(found, tmp_path / "a-masklabel.png")[0].what


def test_the_alpha_channel_is_a_mask_only_if_asked_for(tmp_path: Path) -> None:
    draw(tmp_path / "see through.png", "a", mode="RGBA")
    draw(tmp_path / "solid.png", "b")
    assert {item.mask_path for item in scan(tmp_path).items} == {None}
    found = scan(tmp_path, alpha_masks=True)
    assert [item.mask_path for item in found.items] == [tmp_path / "see through.png", None]


def test_control_pictures_are_paired_in_order_and_must_be_there(tmp_path: Path) -> None:
    for name in ("a.png", "b_1.png", "c.png"):
        draw(tmp_path / "set" / name, "x")
    for name in ("a_10.png", "a_2.jpg", "b_1.png"):
        draw(tmp_path / "before" / name)
    draw(tmp_path / "before" / "a_3.png", size=(8, 8))
    found = scan(tmp_path / "set", control=tmp_path / "before")
    controls = {item.path.name: [path.name for path in item.control_paths] for item in found.items}
    assert controls == {"a.png": ["a_2.jpg", "a_3.png", "a_10.png"], "b_1.png": ["b_1.png"]}
    (missing,) = about(found, tmp_path / "set/c.png")
    assert (missing.severity, missing.what) == (Severity.ERROR, "It has no control picture")
    assert "another shape" in about(found, tmp_path / "set/a.png")[0].what


def halves(path: Path, size: tuple[int, int]) -> Path:
    """Left half white and opaque, right half black and transparent."""
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    picture.paste((255, 255, 255, 255), (0, 0, size[0] // 2, size[1]))
    picture.save(path)
    return path


@pytest.mark.parametrize("size", [(40, 20), (400, 200), (80, 40)])
def test_masks_of_any_size_cover_their_items_crop(tmp_path: Path, size: tuple[int, int]) -> None:
    placement = place(80, 40, [Bucket(32, 32)])
    mask = load_mask(halves(tmp_path / "m.png", size), placement)
    assert (mask.shape, mask.dtype) == ((32, 32), np.uint8)
    assert mask[:, :14].min() > 250
    assert mask[:, 18:].max() < 5
    alpha = load_mask(halves(tmp_path / "m.png", (80, 40)), placement, from_alpha=True)
    assert np.abs(alpha[:, :14].astype(int) - 255).max() < 5


def test_a_mask_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = Image.open(halves(tmp_path / "m.png", (40, 20))).convert("L").transpose(Image.Transpose.ROTATE_90)
    mask.save(tmp_path / "m.jpg", exif=exif, quality=95)
    loaded = load_mask(tmp_path / "m.jpg", place(40, 20, [Bucket(40, 20)]))
    assert loaded[:, :18].min() > 240
    assert loaded[:, 22:].max() < 15

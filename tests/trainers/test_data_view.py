"""What an external trainer sees of datasets, and how many steps diffusion-pipe makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorapod.data import Geometry, plan_datasets
from lorapod.errors import DatasetError
from lorapod.models import catalogue
from lorapod.recipe import Recipe, TrainerName
from lorapod.recipe.schema import DatasetSection
from lorapod.trainers.controls import preview_controls, refuse_too_many
from lorapod.trainers.data_view import DataViews, build_views
from lorapod.trainers.diffusion_pipe.buckets import epoch_of

GEOMETRY = Geometry(16, frame_step=4, fps=16)
DATASET: dict[str, Any] = {
    "resolutions": [64], "enable_ar_bucket": True, "min_ar": 0.4, "max_ar": 2.5, "num_ar_buckets": 9, "frame_buckets": [1]
}  # fmt: skip


def views_of(folder: Path, *sections: dict[str, Any]) -> DataViews:
    made = [DatasetSection.model_validate({"resolutions": [64], "validation_share": 0.0, **each}) for each in sections]
    return build_views(plan_datasets(made, GEOMETRY, 1), made, folder)


def test_sub_folders_and_kohya_repeats_are_resolved_and_names_stay_apart(
    tmp_path: Path, pictures: Callable[..., Path]
) -> None:
    root = tmp_path / "data"
    (root / "3_cat").mkdir(parents=True)
    (root / "1_dog").mkdir()
    for number, folder in enumerate(("3_cat", "1_dog")):
        Image.new("RGB", (64, 64), (90 * number, 20, 30)).save(root / folder / "a.png")
    views = views_of(tmp_path / "views", {"path": root, "recursive": True, "repeats": 2})
    assert sorted((view.repeats, view.items) for view in views.views) == [(2, 1), (6, 1)]
    assert sorted(items[0].path.with_suffix(".txt").read_text() for items in views.items) == ["cat\n", "dog\n"]


def test_items_whose_names_differ_in_their_extension_alone_keep_their_own_captions(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    Image.new("RGB", (64, 64), "red").save(root / "a.png")
    Image.new("RGB", (64, 64), "blue").save(root / "a.jpg")
    (root / "a.txt").write_text("two of one name")
    views = views_of(tmp_path / "views", {"path": root, "skip_unusable": True})
    stems = [each.path.stem for items in views.items for each in items]
    assert len(stems) == len(set(stems)) >= 1
    assert all(each.path.with_suffix(".txt").is_file() for items in views.items for each in items)


def test_what_the_trainer_would_misread_is_made_anew_and_the_original_stays(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    turned = Image.new("RGB", (80, 48), "green")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "turned.jpg", exif=exif)
    Image.new("RGB", (64, 64), "blue").save(root / "odd.bmp")
    for name in ("turned", "odd"):
        (root / f"{name}.txt").write_text(name)
    before = (root / "turned.jpg").read_bytes()
    view = {each.item.path.name: each.path for each in views_of(tmp_path / "views", {"path": root}).items[0]}
    with Image.open(view["turned.jpg"]) as made:
        assert made.size == (48, 80) and not view["turned.jpg"].is_symlink()
    assert view["odd.bmp"].suffix == ".png" and (root / "turned.jpg").read_bytes() == before


def test_a_file_system_without_links_gets_copies(
    tmp_path: Path, pictures: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "no links here")

    folder = pictures("pictures", 2)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr("os.link", refuse)
    items = views_of(tmp_path / "views", {"path": folder}).items[0]
    assert [each.path.read_bytes() for each in items] == [each.item.path.read_bytes() for each in items]


def test_masks_are_of_the_items_size_and_grey_where_little_is_learnt(
    tmp_path: Path, pictures: Callable[..., Path]
) -> None:
    folder = pictures("pictures", 1)
    (tmp_path / "masks").mkdir()
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    Image.fromarray(mask).save(tmp_path / "masks/pictures-0.png")
    section = {"path": folder, "masks": tmp_path / "masks", "unmasked_weight": 0.2}
    view = views_of(tmp_path / "views", section).views[0]
    assert view.masks
    with Image.open(view.masks / "pictures-0.png") as made:
        pixels = np.array(made)
    assert pixels.shape == (64, 64) and pixels[0, 0] == 51 and pixels[0, 63] == 255


def test_shuffled_captions_are_all_given_and_caches_survive_a_second_look(
    tmp_path: Path, pictures: Callable[..., Path]
) -> None:
    folder = pictures("pictures", 2)
    (folder / "pictures-0.txt").write_text("a, b, c, d, e, f, g, h")
    section = {"path": folder, "shuffle_tags": True, "caption_variants": 3}
    view = views_of(tmp_path / "views", section).views[0].path
    captions = json.loads((view / "captions.json").read_text())
    assert len(captions["pictures-0.png"]) == 3 and len(captions["pictures-1.png"]) == 1
    (view / "cache").mkdir()
    (view / "cache/latents.bin").write_bytes(b"x")
    (view / "left.png").write_bytes(b"of an earlier plan")
    views_of(tmp_path / "views", section)
    assert (view / "cache/latents.bin").exists() and not (view / "left.png").exists()


def test_the_fingerprint_changes_with_what_is_trained_on_alone(tmp_path: Path, pictures: Callable[..., Path]) -> None:
    folder = pictures("pictures", 3)
    first = views_of(tmp_path / "a", {"path": folder}).fingerprint
    assert views_of(tmp_path / "b", {"path": folder}).fingerprint == first
    (folder / "notes.pdf").write_text("no matter")
    assert views_of(tmp_path / "c", {"path": folder}).fingerprint == first
    (folder / "pictures-0.txt").write_text("another")
    assert views_of(tmp_path / "d", {"path": folder}).fingerprint != first


def test_steps_are_counted_as_diffusion_pipe_counts_them(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for number, size in enumerate([(64, 64)] * 5 + [(128, 64)] * 3):
        Image.new("RGB", size, (number * 20, 0, 0)).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text("x")
    items = views_of(tmp_path / "views", {"path": root}).items
    one = {"path": "x", "num_repeats": 1}
    assert epoch_of({**DATASET, "directory": [one]}, items, 1, None, 16).steps == 8
    by_two = epoch_of({**DATASET, "directory": [one]}, items, 2, None, 16)
    assert by_two.steps == 3 and sum(by_two.left_out.values()) == 2 and not by_two.empty
    by_four = epoch_of({**DATASET, "directory": [one]}, items, 4, None, 16)
    assert by_four.steps == 1 and len(by_four.empty) == 1
    twice = {**one, "num_repeats": 2, "resolutions": [64, 128]}
    assert epoch_of({**DATASET, "directory": [twice]}, items, 4, None, 16).steps == 2 * (10 // 4 + 6 // 4)


def editing(folder: Path, **controls: int) -> dict[str, Any]:
    """A dataset of items with so many control pictures each, whose grey says whose they are."""
    (folder / "after").mkdir(parents=True)
    (folder / "before").mkdir()
    for number, (name, count) in enumerate(controls.items()):
        Image.new("RGB", (80, 64), (250 - number, 0, 0)).save(folder / "after" / f"{name}.png")
        (folder / "after" / f"{name}.txt").write_text(f"make it {name}")
        for place in range(count):
            stem = name if count == 1 else f"{name}_{place}"
            Image.new("L", (80, 64), 10 * number + place).save(folder / "before" / f"{stem}.png")
    return {"path": folder / "after", "control": folder / "before"}


def grey(path: Path) -> int:
    with Image.open(path) as image:
        return int(np.asarray(image.convert("L"))[0, 0])


def test_control_pictures_lie_beside_the_view_by_the_names_of_its_items(tmp_path: Path) -> None:
    views = views_of(tmp_path / "views", editing(tmp_path / "data", cat=1, dog=1))
    view, items = views.views[0], views.items[0]
    assert view.controls is not None and view.controls.parent == view.path.parent and view.listed is None
    assert sorted(path.name for path in view.controls.iterdir()) == ["cat.png", "dog.png"]
    assert [(each.path.stem, grey(each.controls[0])) for each in items] == [("cat", 0), ("dog", 10)]
    assert all(path.suffix in (".png", ".txt") for path in view.path.iterdir()), "the view itself holds its items alone"


@pytest.mark.parametrize("items", [{"cat": 2, "dog": 1}, {"cat": 1, "cat_b": 1}, {"cat": 2, "cat_c": 3}])
def test_a_list_says_whose_control_pictures_are_where_names_do_not(tmp_path: Path, items: dict[str, int]) -> None:
    views = views_of(tmp_path / "views", editing(tmp_path / "data", **items))
    listed = views.views[0].listed
    assert listed is not None
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    for number, (line, (name, count)) in enumerate(zip(lines, items.items(), strict=True)):
        assert (Path(line["image_path"]).stem, line["caption"]) == (name, f"make it {name}")
        given = [grey(Path(line[f"control_path_{place}"])) for place in range(count)]
        assert given == [10 * number + place for place in range(count)] and f"control_path_{count}" not in line


def test_control_pictures_are_made_anew_where_trainers_would_misread_them_and_old_ones_go(tmp_path: Path) -> None:
    section = editing(tmp_path / "data", cat=1)
    turned = Image.new("RGB", (64, 80), "green")
    exif = turned.getexif()
    exif[0x0112] = 6
    (tmp_path / "data/before/cat.png").unlink()
    turned.save(tmp_path / "data/before/cat.jpg", exif=exif)
    first = views_of(tmp_path / "views", section)
    made = first.items[0][0].controls[0]
    with Image.open(made) as picture:
        assert picture.size == (80, 64) and made.name == "cat.png" and not made.is_symlink()
    (tmp_path / "data/before/cat.jpg").unlink()
    Image.new("RGB", (80, 64), "blue").save(tmp_path / "data/before/cat.webp", lossless=True)
    second = views_of(tmp_path / "views", section)
    assert [path.name for path in second.items[0][0].controls] == ["cat.webp"]
    assert [path.name for path in made.parent.iterdir()] == ["cat.webp"], "a trainer would take what was there before"
    assert second.fingerprint != first.fingerprint, "a resumed training would not notice"


def test_previews_start_from_what_is_trained_on_cut_to_their_size(tmp_path: Path) -> None:
    views = views_of(tmp_path / "views", editing(tmp_path / "data", cat=1, dog=2))
    recipe = Recipe.model_validate({
        "name": "x", "base_model": {"name": "qwen-image-edit-2509"}, "datasets": [editing(tmp_path / "other", emu=1)],
        "previews": {"prompts": ["make it dog", "another", "one more"], "width": 64, "height": 96},
    })  # fmt: skip
    found = preview_controls(recipe, views.items[0], tmp_path / "previews")
    assert [[grey(path) for path in found[number]] for number in range(3)] == [[10, 11], [10, 11], [0]]
    with Image.open(found[0][0]) as picture:
        assert picture.size == (64, 96)
    given = recipe.model_copy(update={"previews": recipe.previews.model_copy(update={
        "control": [tmp_path / "data/before/dog_1.png"]})})  # fmt: skip
    assert [[grey(path) for path in paths] for paths in preview_controls(given, [], tmp_path / "p").values()] == [
        [11]
    ] * 3


@pytest.mark.parametrize("trainer", ["diffusion-pipe", "musubi"])
def test_more_control_pictures_than_are_taken_are_refused_by_name(tmp_path: Path, trainer: str) -> None:
    views = views_of(tmp_path / "views", editing(tmp_path / "data", cat=1, dog=2))
    entry = catalogue()["flux-kontext-dev"]
    with pytest.raises(DatasetError, match=r"one control picture an item of FLUX\.1 Kontext") as caught:
        refuse_too_many(entry, TrainerName(trainer), [each.item for each in views.items[0]])
    assert "dog_0.png, dog_1.png" in caught.value.why and "cat" not in caught.value.why
    refuse_too_many(catalogue()["flux2-klein-base-4b"], TrainerName.MUSUBI, [each.item for each in views.items[0]])

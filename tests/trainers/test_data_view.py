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
from lorapod.recipe.schema import DatasetSection
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

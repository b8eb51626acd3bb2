"""What lies beside an item, taken along when the item is made anew: its caption, mask and control pictures.

A mask becomes `NAME-masklabel.png` beside its item, which is read without a word in the recipe; control pictures go to a
folder of their own, with their items' names. Both are cropped and scaled as the item was.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lorapod.data.buckets import Placement
from lorapod.data.making import copy_whole
from lorapod.data.pictures import load_mask, load_picture, probe
from lorapod.data.sidecars import MASK_LABEL, placed_beside
from lorapod.files import write_text_whole, written_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorapod.data.scan import Item


def carry(item: Item, targets: Sequence[Path], controls: Path, root: Path, placement: Placement | None) -> list[str]:
    """Puts an item's caption, mask and control pictures beside what was made of it; says what of them is news.

    Args:
        targets: What was made of the item, in `root`.
        controls: Folder of the new dataset's control pictures.
        placement: How the item was cropped and scaled; None where it was copied as it is.

    Raises:
        DatasetError: A mask or control picture cannot be read.
        DiskError: A file cannot be written.
    """
    said = []
    for target in targets:
        if item.caption is not None:
            write_text_whole(target.with_suffix(".txt"), "\n".join(item.caption_lines) + "\n")
        # A picture that is copied as it is keeps its alpha channel.
        if item.mask_path and (placement or item.mask_path != item.path):
            label = target.with_name(f"{target.stem}{MASK_LABEL}.png")
            write_mask(item, label, placement)
            said.append(f"its mask is {label.name}")
        wanted = control_targets(item, controls / target.relative_to(root))
        for control, beside in zip(item.control_paths, wanted, strict=True):
            write_control(control, beside, placement)
    return said if placement else []


def control_targets(item: Item, wanted: Path) -> list[Path]:
    """Names of an item's control pictures in a folder of their own: the item's, numbered where there are several."""
    stems = [wanted.stem] if len(item.control_paths) == 1 else [f"{wanted.stem}_{i}" for i in range(999)]
    return [wanted.with_name(f"{stem}{path.suffix}") for stem, path in zip(stems, item.control_paths, strict=False)]


def write_mask(item: Item, target: Path, placement: Placement | None) -> None:
    """Writes an item's mask as a grey PNG, upright, cropped and scaled as the item; white is learnt."""
    assert item.mask_path
    from lorapod.data.remake import placed

    pixels = load_mask(item.mask_path, placement or placed(item), from_alpha=item.mask_path == item.path)
    with written_whole(target) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")


def write_control(control: Path, target: Path, placement: Placement | None) -> None:
    """Writes a control picture, cropped and scaled as its item; a copy where the item was copied."""
    if placement is None:
        copy_whole(control, target)
        return
    info = probe(control)
    pixels = load_picture(control, placed_beside(info.width, info.height, placement))
    target = target.with_suffix(".png")
    with written_whole(target) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG", compress_level=4)

"""Draws the packaged demo dataset: `python tools/demo_model/pictures.py OUT` writes OUT/momo and OUT/things.

`momo` shows the character that the base model does not know; `things` are pictures of what it knows, trained along so
that it does not forget them. No two are the same.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from world import BACKGROUNDS, PLACES, Group, Scene, draw, random_scene

MOMO_PICTURES, THINGS_PICTURES = 20, 100
SIZES = [(128, 128), (128, 128), (128, 128), (112, 144), (144, 112)]


def momo_scene(number: int, rng: random.Random) -> Scene:
    """Mostly momo alone, in varied sizes, places and backgrounds."""
    backgrounds = list(BACKGROUNDS)
    background = backgrounds[number % len(backgrounds)]
    size = ["", "big", "", "small", "big"][number % 5]
    place = rng.choice(["", *PLACES])
    return Scene((Group("momo", "", size, 1, place),), background)


def main(out: Path) -> None:
    rng = random.Random(20)
    for name, count in (("momo", MOMO_PICTURES), ("things", THINGS_PICTURES)):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        seen: set[bytes] = set()
        while len(seen) < count:
            scene = momo_scene(len(seen), rng) if name == "momo" else random_scene(rng)
            picture = draw(scene, *rng.choice(SIZES), rng)
            if picture.tobytes() in seen:
                continue
            seen.add(picture.tobytes())
            stem = folder / f"{name}-{len(seen):02d}"
            picture.save(stem.with_suffix(".png"), optimize=True)
            stem.with_suffix(".txt").write_text(scene.caption() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

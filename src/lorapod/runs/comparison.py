"""The picture that says what a LoRA learnt: each preview before and after training, side by side."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lorapod.data.grid import draw_grid
from lorapod.files import written_whole
from lorapod.runs.folder import RunFolder
from lorapod.runs.journal import read_events


def write_comparison(run: RunFolder) -> Path | None:
    """Writes `previews/before-after.png`: the first and the last preview of each prompt and seed.

    Returns:
        The picture, or None where a run has no previews of two different steps.
    """
    by_pair: dict[tuple[str, int], dict[int, Path]] = {}
    for event in read_events(run):
        if event["type"] == "preview":
            file = run.path / event["path"]
            if file.exists():
                by_pair.setdefault((event["prompt"], event["seed"]), {})[event["step"]] = file
    pairs = {pair: steps for pair, steps in by_pair.items() if len(steps) > 1}
    if not pairs:
        return None
    first, last = (min(next(iter(pairs.values()))), max(next(iter(pairs.values()))))
    seeds = {seed for _, seed in pairs}
    rows, cells = [], []
    for (prompt, seed), steps in pairs.items():
        rows.append(prompt if len(seeds) == 1 else f"{prompt} (seed {seed})")
        cells.append([_picture(steps[min(steps)]), _picture(steps[max(steps)])])
    out = run.path / "previews" / "before-after.png"
    titles = ["base model" if first == 0 else f"step {first}", f"with the LoRA, step {last}"]
    with written_whole(out) as temporary:
        draw_grid(cells, rows, titles).save(temporary, format="PNG")
    return out


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")

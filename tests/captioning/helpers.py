"""Datasets of plain colours, and the runner driven as the command line drives it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from PIL import Image

from lorapod.captioning.base import Captioner
from lorapod.captioning.cleaning import Judge
from lorapod.captioning.items import Plan, plan_captions
from lorapod.captioning.openai import OpenAICaptioner
from lorapod.captioning.runner import Runner
from lorapod.captioning.tally import Outcome


def colour_of(i: int) -> tuple[int, int, int]:
    """A colour of its own for each number below 27,000, that a JPEG keeps."""
    return (i % 30 * 8 + 8, i // 30 % 30 * 8 + 8, i // 900 % 30 * 8 + 8)


def make_pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (16, 16), colour_of(i)).save(folder / f"item-{i:04d}.png")
    return folder


def captioned(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def said_of(i: int) -> str:
    red, green, blue = colour_of(i)
    return f"a plain square of the colour {red} {green} {blue}\n"


def service(url: str, **options: Any) -> OpenAICaptioner:
    return OpenAICaptioner(url, "fake-vl", **options)


def run(folder: Path | Plan, captioner: Captioner, **options: Any) -> Outcome:
    """A run to its end; the captioner is closed."""
    words = options.pop("words", Judge())
    judges = words if isinstance(words, list) else [words]
    plan = folder if isinstance(folder, Plan) else plan_captions(folder, redo=options.pop("redo", "missing"))

    async def whole() -> Outcome:
        try:
            runner = Runner(plan, captioner, judges, **{"base_seconds": 0.02, **options})
            return await runner.run()
        finally:
            await captioner.close()

    return asyncio.run(whole())

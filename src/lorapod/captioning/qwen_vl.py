"""Qwen3-VL on this machine's GPU, through transformers: pictures, and clips as frames with their times.

Its processor needs torchvision for videos, which lorapod does without: pictures go through the image processor, placeholders
are put into the text here, and a clip is shown as pictures one after the other. The size is chosen by the GPU's memory. Not
verified: the published weights were never opened; the path was run with a random model of the same make.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lorapod.captioning.base import Answer, Ask, Kind
from lorapod.captioning.local import Decoded, LocalCaptioner, find_model
from lorapod.captioning.media import clip_jpegs, picture_jpeg
from lorapod.captioning.openai import without_thoughts
from lorapod.captioning.registry import Options, largest_gpu_gb
from lorapod.errors import RequestError

SIZES = ((70.0, "32B"), (20.0, "8B"), (11.0, "4B"), (7.0, "2B"))
"""GPU memory in GB from which on a size fits in bf16 with room for a batch (2 bytes a weight, and what a picture takes)."""

PICTURE_SIDE, FRAME_SIDE = 1024, 512
"""Pixels of the longer side that are looked at."""

_TOP_P, _TOP_K = 0.8, 20
_PLACE = "<|image_pad|>"
_MADE_AT_ONCE = 4


def create(options: Options) -> LocalCaptioner:
    """From the options; the model is fetched into the workspace where `model` is no folder.

    Raises:
        RequestError: There is no GPU that holds it.
        FetchError: It cannot be fetched.
    """
    gigabytes = largest_gpu_gb()
    on_cpu = options.environment.get("LORAPOD_CAPTION_ON_CPU") == "1"
    if gigabytes < SIZES[-1][0] and not on_cpu:
        raise RequestError(
            "Qwen3-VL needs a GPU with 7 GB",
            f"The largest here has {gigabytes:.0f} GB." if gigabytes else "There is none here.",
            "Take another captioner, or set LORAPOD_CAPTION_ON_CPU=1 (minutes for each picture).",
        )
    name = options.model or repository_for(gigabytes)
    folder = find_model(name, options.models, options.environment, heard=options.heard)
    device = "cpu" if gigabytes < SIZES[-1][0] else "cuda"
    return LocalCaptioner("qwen-vl", QwenVL(folder, device, options.frames), options.batch or _MADE_AT_ONCE)


def repository_for(gigabytes: float) -> str:
    """The largest size that a GPU of so many GB (2^30 bytes) holds."""
    size = next((size for least, size in SIZES if gigabytes >= least), SIZES[-1][1])
    return f"Qwen/Qwen3-VL-{size}-Instruct"


class QwenVL:
    """The model, loaded when it is first asked.

    Args:
        folder: In transformers' layout.
        device: `cuda` or `cpu`.
        frames: Of a clip.
    """

    kinds: frozenset[Kind] = frozenset({"picture", "clip"})

    def __init__(self, folder: Path, device: str, frames: int) -> None:
        self.folder, self.device, self.frames, self.name = folder, device, frames, folder.name
        self._model: Any = None
        try:
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            raise RequestError(f"{folder} holds no model", str(error), "Name the folder of Qwen3-VL.") from error
        if kind != "qwen3_vl":
            raise RequestError(f"{folder} holds another kind of model", f"It is {kind!r}.", "Name one of Qwen3-VL.")

    def decode(self, ask: Ask) -> list[tuple[float | None, Image.Image]]:
        """Pictures with their times in seconds; None of a picture."""
        if ask.kind == "picture":
            return [(None, Image.open(io.BytesIO(picture_jpeg(ask, PICTURE_SIDE))))]
        return [(time, Image.open(io.BytesIO(jpeg))) for time, jpeg in clip_jpegs(ask, self.frames, FRAME_SIDE)]

    def write(self, batch: Sequence[Decoded]) -> list[Answer]:
        import torch

        self._load()
        seen = self._pictures([image for each in batch for _, image in each.media], return_tensors="pt")
        counts = [int(grid.prod()) // self._merged for grid in seen["image_grid_thw"]]
        texts, at = [], 0
        for each in batch:
            own = counts[at : at + len(each.media)]
            at += len(each.media)
            texts.append(self._text(each, own))
        given = self._tokenizer(texts, return_tensors="pt", padding=True).to(self._model.device)
        # The pictures' places get positions in three dimensions; the others are text.
        given["mm_token_type_ids"] = (given["input_ids"] == self._place).long()
        hottest = max(each.ask.temperature for each in batch)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if hottest > 0:
            sampling = {"do_sample": True, "temperature": hottest, "top_p": _TOP_P, "top_k": _TOP_K}
        with torch.inference_mode():
            made = self._model.generate(
                **given,
                pixel_values=seen["pixel_values"].to(self._model.device, self._model.dtype),
                image_grid_thw=seen["image_grid_thw"].to(self._model.device),
                max_new_tokens=max(each.ask.max_tokens for each in batch),
                **sampling,
            )
        start, end = given["input_ids"].shape[1], self._tokenizer.eos_token_id
        return [self._answer(row, end) for row in made[:, start:].tolist()]

    def free(self) -> None:
        if self._model is None:
            return
        import gc

        import torch

        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _answer(self, row: list[int], end: int) -> Answer:
        is_whole = end in row
        kept = row[: row.index(end)] if is_whole else row
        text, thought_out = without_thoughts(self._tokenizer.decode(kept, skip_special_tokens=True))
        return Answer(text, is_whole and thought_out, output_tokens=len(kept), dollars=0.0)

    def _text(self, each: Decoded, counts: Sequence[int]) -> str:
        """The request as the model was trained on, with as many placeholders for each picture as it has tokens."""
        shown = []
        for (time, _), count in zip(each.media, counts, strict=True):
            told = "" if time is None else f"<{time:.1f} seconds>"
            shown.append(f"{told}<|vision_start|>{_PLACE * count}<|vision_end|>")
        system = f"<|im_start|>system\n{each.ask.system}<|im_end|>\n" if each.ask.system else ""
        return f"{system}<|im_start|>user\n{''.join(shown)}{each.ask.prompt}<|im_end|>\n<|im_start|>assistant\n"

    def _load(self) -> None:
        if self._model is not None:
            return
        import torch
        from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration

        self._tokenizer = AutoTokenizer.from_pretrained(self.folder, padding_side="left")
        self._pictures = AutoImageProcessor.from_pretrained(self.folder)
        kind = torch.float32 if self.device == "cpu" else torch.bfloat16
        model = Qwen3VLForConditionalGeneration.from_pretrained(self.folder, dtype=kind)
        self._model = model.to(self.device).eval()
        self._merged = model.config.vision_config.spatial_merge_size**2
        self._place = self._tokenizer.convert_tokens_to_ids(_PLACE)

"""Previews: pictures or clips sampled from the recipe's prompts and seeds, always with the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from lorapod.engine.clips import frames_of, strip_of, write_clip
from lorapod.engine.controls import Control, Controls
from lorapod.engine.families import Conditions, Family, PreviewRequest
from lorapod.engine.families.control import with_controls
from lorapod.engine.job import Job
from lorapod.engine.likeness import likeness
from lorapod.engine.output import emit
from lorapod.engine.text_encoders import LiveText, live_text
from lorapod.errors import TrainingError
from lorapod.files import written_whole

LIKENESS_ITEMS = 64
"""A preview is compared with at most so many training pictures."""


def decode_all(family: Family, vae: nn.Module, latents: list[Tensor]) -> list[NDArray[np.uint8]]:
    """Frames (f, h, w, 3) of latents (c, f, h, w) each, decoded one by one."""
    return [frames_of(family.decode_latents(vae, item[None])[0]) for item in latents]


class Previews:
    """Samples the recipe's previews; the VAE is in memory only while they are decoded.

    Args:
        pairs: Prompts with seeds in place of the recipe's.
        controls: Control pictures of each prompt, in place of the recipe's.
    """

    def __init__(
        self,
        job: Job,
        pairs: list[tuple[str, int]] | None = None,
        controls: dict[str, Controls] | None = None,
    ) -> None:
        self.job = job
        self.controls = job.preview_controls if controls is None else controls
        self.width, self.height, self.frames = job.preview_size
        self.pairs = pairs or [(prompt, seed) for prompt in job.preview_prompts() for seed in job.recipe.previews.seeds]

    def latents(self, denoiser: nn.Module, prompts: list[tuple[str, int]]) -> list[Tensor]:
        """Latents (c, f, h, w) of each prompt and seed."""
        job = self.job
        with self.drawing(denoiser):
            live = live_text(denoiser)
            return [job.family.sample(denoiser, job.base, self.request(*pair, live)) for pair in prompts]

    @contextmanager
    def drawing(self, denoiser: nn.Module) -> Iterator[None]:
        """Inside the block the denoiser draws: without dropout."""
        was_training = denoiser.training
        denoiser.eval()
        yield
        denoiser.train(was_training)

    @torch.no_grad()
    def request(self, prompt: str, seed: int, live: LiveText | None = None) -> PreviewRequest:
        """One preview to sample.

        Args:
            live: What encodes captions, where the encoders are not the base model's own.
        """
        settings = self.job.recipe.previews
        wanted = [prompt, settings.negative_prompt]
        controls = self.controls.get(prompt, ())
        text, negative = live(wanted) if live else (self._text(each, controls) for each in wanted)
        return PreviewRequest(
            text=text,
            negative=negative,
            width=self.width,
            height=self.height,
            frames=self.frames,
            steps=settings.steps,
            guidance=settings.guidance,
            seed=seed,
            item=with_controls(self._item(prompt), [self._control(control) for control in controls]),
        )

    def _text(self, prompt: str, controls: Controls) -> Conditions:
        key = self.job.text_key(prompt, controls)
        return self._on_device(self.job.text_cache.get(key), f"the prompt {prompt!r}")

    def _control(self, control: Control) -> Tensor:
        entry = self.job.latents_cache.get(self.job.control_key(control))
        return self._on_device(entry, f"the control picture {control.path}")["mean"]

    def _item(self, prompt: str) -> Conditions:
        """What is cached of the first frame that the prompt's clips begin with; empty where they begin with none."""
        pictures = self.job.first_frames
        if not pictures:
            return {}
        prompts = list(dict.fromkeys(each for each, _ in self.pairs))
        picture = pictures[prompts.index(prompt) % len(pictures)]
        key = self.job.first_frame_key(picture)
        return self._on_device(self.job.latents_cache.get(key), f"the first frame {picture.path}")

    def _on_device(self, entry: Conditions | None, what: str) -> Conditions:
        if entry is None:
            raise TrainingError(f"The cache entry of {what} is gone", "", "Run the same command with --resume.")
        return {name: value.to(self.job.device) for name, value in entry.items()}

    def write(self, latents: list[Tensor], step: int) -> None:
        """Decodes previews that were sampled, one for each of `pairs`, and writes them with their prompts in them."""
        vae = self.job.family.load_vae(self.job.base, self.job.device, self.job.dtype)
        for number, (prompt, seed) in enumerate(self.pairs):
            (frames,) = decode_all(self.job.family, vae, [latents[number]])
            path = self.job.folder / "previews" / f"step-{step:06d}-{number:02d}.png"
            files = write_preview(
                path, frames, self.job.family.fps, {"prompt": prompt, "seed": str(seed), "step": str(step)}
            )
            emit(
                "preview",
                step=step,
                **{name: str(file.relative_to(self.job.folder)) for name, file in files.items()},
                prompt=prompt,
                seed=seed,
                likeness=self._likeness(prompt, latents[number]),
            )

    def _likeness(self, prompt: str, preview: Tensor) -> float | None:
        """Likeness to the datasets whose trigger word is in the prompt; None where there are none."""
        sections = self.job.recipe.datasets
        named = {i for i, s in enumerate(sections) if s.trigger_word and s.trigger_word.lower() in prompt.lower()}
        items = [item for item in self.job.data.train if item.dataset in named][:LIKENESS_ITEMS]
        entries = [self.job.latents_cache.get(self.job.latents_key(item)) for item in items]
        pictures = [entry["mean"] for entry in entries if entry is not None]
        return round(likeness(preview, pictures), 4) if pictures else None


def write_preview(path: Path, frames: NDArray[np.uint8], fps: float | None, texts: dict[str, str]) -> dict[str, Path]:
    """Writes a preview: a picture as PNG; a clip as MP4 beside a PNG that is a strip of its frames.

    Returns:
        `path` of the PNG, and `clip` of the MP4 where there is one: fields of a `preview` event.
    """
    files = {"path": path}
    if len(frames) > 1 and fps:
        files["clip"] = path.with_suffix(".mp4")
        write_clip(files["clip"], frames, fps, texts)
    save_png(strip_of(frames), path, texts)
    return files


def save_png(picture: Image.Image, path: Path, texts: dict[str, str]) -> None:
    """Writes a PNG whole, with `texts` as its text chunks."""
    info = PngInfo()
    for name, value in texts.items():
        info.add_itxt(name, value)
    with written_whole(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)

"""Previews: pictures sampled from the recipe's prompts and seeds, always with the same noise."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from lorapod.engine.families import Family, PreviewRequest
from lorapod.engine.job import Job
from lorapod.engine.likeness import likeness
from lorapod.engine.output import emit
from lorapod.errors import TrainingError
from lorapod.files import written_whole

LIKENESS_ITEMS = 64
"""A preview is compared with at most so many training pictures."""


def picture_of(pixels: Tensor) -> Image.Image:
    """The first frame of pixels (3, f, h, w) in -1..1 as a picture."""
    values = ((pixels[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def decode_all(family: Family, vae: nn.Module, latents: list[Tensor]) -> list[Image.Image]:
    """Latents (c, f, h, w) each, decoded one by one."""
    return [picture_of(family.decode_latents(vae, item[None])[0]) for item in latents]


class Previews:
    """Samples the recipe's previews; the VAE is in memory only while they are decoded."""

    def __init__(self, job: Job, pairs: list[tuple[str, int]] | None = None) -> None:
        self.job = job
        settings, divisor = job.recipe.previews, job.family.pixel_divisor
        self.width = max(divisor, settings.width // divisor * divisor)
        self.height = max(divisor, settings.height // divisor * divisor)
        self.pairs = pairs or [(prompt, seed) for prompt in job.preview_prompts() for seed in settings.seeds]

    def latents(self, denoiser: nn.Module, prompts: list[tuple[str, int]]) -> list[Tensor]:
        """Latents (c, f, h, w) of each prompt and seed."""
        job, settings = self.job, self.job.recipe.previews
        was_training = denoiser.training
        denoiser.eval()
        sampled = []
        with torch.autocast(job.device.type, job.dtype, enabled=job.dtype is not torch.float32):
            for prompt, seed in prompts:
                request = PreviewRequest(
                    text=self._text(prompt),
                    negative=self._text(settings.negative_prompt),
                    width=self.width,
                    height=self.height,
                    frames=1,
                    steps=settings.steps,
                    guidance=settings.guidance,
                    seed=seed,
                )
                sampled.append(job.family.sample(denoiser, job.base, request))
        denoiser.train(was_training)
        return sampled

    def _text(self, prompt: str) -> dict[str, Tensor]:
        entry = self.job.text_cache.get(self.job.text_key(prompt))
        if entry is None:
            raise TrainingError(
                f"The cache entry of the prompt {prompt!r} is gone", "", "Run the same command with --resume."
            )
        return {name: value.to(self.job.device) for name, value in entry.items()}

    def write(self, denoiser: nn.Module, step: int) -> None:
        """Samples every preview and writes it into the run folder, with the prompt in the PNG."""
        if not self.pairs:
            return
        latents = self.latents(denoiser, self.pairs)
        vae = self.job.family.load_vae(self.job.base, self.job.device, self.job.dtype)
        pictures = decode_all(self.job.family, vae, latents)
        for number, ((prompt, seed), picture) in enumerate(zip(self.pairs, pictures, strict=True)):
            path = self.job.folder / "previews" / f"step-{step:06d}-{number:02d}.png"
            save_png(picture, path, {"prompt": prompt, "seed": str(seed), "step": str(step)})
            emit(
                "preview",
                step=step,
                path=str(path.relative_to(self.job.folder)),
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


def save_png(picture: Image.Image, path: Path, texts: dict[str, str]) -> None:
    """Writes a PNG whole, with `texts` as its text chunks."""
    info = PngInfo()
    for name, value in texts.items():
        info.add_itxt(name, value)
    with written_whole(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)

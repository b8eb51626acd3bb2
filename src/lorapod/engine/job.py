"""What every phase of the engine needs: the run's recipe, its base model, its data, and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorapod import recipe as recipes
from lorapod.data import DataPlan, Geometry, MediaCache, TrainItem, plan_datasets, shown
from lorapod.engine.adapter_files import Merged
from lorapod.engine.adapters import target_names
from lorapod.engine.cache import Cache
from lorapod.engine.controls import (
    Control,
    Controls,
    controls_of_item,
    preview_controls,
    refuse_controls,
    refuse_too_many,
)
from lorapod.engine.export import ONLY_LYCORIS
from lorapod.engine.families import (
    Expert,
    Family,
    ShiftsByResolution,
    TakesControl,
    TakesFirstFrame,
    TextSeesControl,
    TrainsTextEncoders,
    WeighsBySnr,
    family_of,
)
from lorapod.engine.first_frames import FirstFrame, first_frames
from lorapod.errors import DatasetError, RequestError
from lorapod.files import sha256_of
from lorapod.models import BaseModel, find_base_model, find_training_adapter
from lorapod.recipe import Recipe
from lorapod.recipe.choices import ExpertChoice, LoraFormat, LossWeighting, Precision, Targets
from lorapod.recipe.timesteps import NoiseLevels
from lorapod.workspace import Workspace

_TEXT_PARTS = ("tokenizer", "tokenizer_2", "processor", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Job:
    """One execution of a recipe, as the engine sees it.

    Args:
        folder: The run folder; its `recipe.toml` is the recipe with every default written out.
        workspace: Where base models and the cache are.
    """

    folder: Path
    workspace: Workspace

    @cached_property
    def recipe(self) -> Recipe:
        return recipes.load(self.folder / "recipe.toml", check_paths=False)

    @cached_property
    def base(self) -> BaseModel:
        return find_base_model(self.recipe.base_model.name, self.workspace)

    @cached_property
    def merged_adapters(self) -> tuple[Merged, ...]:
        """The adapters that are merged before training and left out of the result, in their order."""
        section = self.recipe.base_model
        training = find_training_adapter(section, self.workspace)
        first = [Merged(training, section.training_adapter_strength, in_previews=False)] if training else []
        return *first, *(Merged(each.path, each.strength, in_previews=True) for each in self.recipe.adapter.merged)

    @cached_property
    def family(self) -> Family:
        return family_of(self.base)

    @cached_property
    def experts(self) -> tuple[Expert, ...]:
        """The denoisers that are trained, one after the other.

        Raises:
            RequestError: The recipe names an expert that the base model does not have.
        """
        chosen = self.recipe.base_model.expert
        wanted = self.base.expert or (chosen.value if chosen is not ExpertChoice.BOTH else "")
        found = tuple(each for each in self.family.experts if not wanted or each.suffix == f"-{wanted}")
        if not found:
            raise RequestError(
                f"The base model {self.base.name} has no {wanted}-noise expert",
                "It has one denoiser for all noise levels, or the other expert alone is on this machine.",
                "Leave `base_model.expert` out.",
            )
        return found

    @cached_property
    def data(self) -> DataPlan:
        self._refuse_what_is_not_trained_with()
        family = self.family
        geometry = Geometry(divisor=family.pixel_divisor, frame_step=family.frame_step, fps=family.fps)
        plan = plan_datasets(
            self.recipe.datasets, geometry, self.recipe.training.seed, cache=MediaCache.of(self.workspace)
        )
        if isinstance(family, TakesFirstFrame) and family.first_frame == "needed":
            _refuse_single_frames([*plan.train, *plan.validation], family.frame_step)
        if isinstance(family, TakesControl):
            refuse_too_many(plan, family)
        return plan

    def _refuse_what_is_not_trained_with(self) -> None:
        training = self.recipe.training
        if training.resolution_shift and not isinstance(self.family, ShiftsByResolution):
            raise RequestError(
                "This base model's noise levels do not depend on the size of the picture",
                "`training.resolution_shift` is for FLUX.1 and Qwen-Image.",
                "Leave it out; `training.timestep_shift` shifts all sizes alike.",
            )
        if training.min_snr_gamma and not isinstance(self.family, WeighsBySnr):
            raise RequestError(
                "This base model is not trained with Min-SNR weights",
                "`training.min_snr_gamma` is for SDXL; flow-matching models weigh noise levels by how often they are drawn.",
                "Leave it out.",
            )
        debiased, diffusion = training.loss_weighting is LossWeighting.DEBIASED, isinstance(self.family, WeighsBySnr)
        if training.loss_weighting is not LossWeighting.NONE and debiased != diffusion:
            raise RequestError(
                f"This base model is not trained with the weighting {training.loss_weighting.value}",
                "`debiased` is for SDXL, the others are for flow-matching models.",
                "Leave `training.loss_weighting` out.",
            )
        for expert in self.experts:
            which = f"the {expert.suffix.removeprefix('-')}-noise expert" if expert.suffix else "this base model"
            NoiseLevels.of(training).within(expert.lowest, expert.highest).refuse_empty(which)
        if self.recipe.adapter.text_encoders and not isinstance(self.family, TrainsTextEncoders):
            raise RequestError(
                "The text encoders of this base model cannot be trained",
                "`adapter.text_encoders` is for SDXL; those of the others are large, and their LoRA files hold none.",
                "Leave it out.",
            )
        self._refuse_adapter()
        for format in self.recipe.saving.formats:
            if format not in self.family.formats:
                can = ", ".join(f"`{each.value}`" for each in self.family.formats)
                raise RequestError(
                    f"A LoRA of this base model cannot be written in the layout `{format.value}`",
                    f"Programs would not find its layers by the names that the family {self.family.name} would have there.",
                    f"Choose `saving.formats` among {can}.",
                )
        use = self.family.first_frame if isinstance(self.family, TakesFirstFrame) else "unknown"
        if self.recipe.training.first_frame_share and use != "taken":
            raise RequestError(
                "This base model cannot be given first frames in a share of the steps",
                "It is given one always." if use == "needed" else "It makes pictures or clips of text alone.",
                "Leave `training.first_frame_share` out.",
            )
        refuse_controls(self)

    def _refuse_adapter(self) -> None:
        adapter = self.recipe.adapter
        if isinstance(adapter.targets, Targets):
            self.family.targets(adapter.targets)  # refuses a preset that it does not have
        else:
            target_names(self.family.empty_denoiser(self.base, self.experts[0]), self.family, adapter.targets)
        if adapter.kind in ONLY_LYCORIS and LoraFormat.DIFFUSERS in self.recipe.saving.formats:
            raise RequestError(
                f"An adapter of kind {adapter.kind.value} cannot be written in the layout `diffusers`",
                "diffusers' loaders read LoRA and DoRA alone.",
                "Take `diffusers` out of `saving.formats`.",
            )

    @cached_property
    def device(self) -> torch.device:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the base model's weights and of the arithmetic."""
        return torch.float32 if self.recipe.training.precision is Precision.FP32 else torch.bfloat16

    @cached_property
    def text_cache(self) -> Cache:
        parts = [part for part in _TEXT_PARTS if (self.base.folder / part).is_dir()]
        # The family too: two of them may ask the same encoder for different layers.
        made_by = [self.family.name, *(self.base.fingerprint(part) for part in parts), str(self.dtype)]
        return Cache(self.workspace.cache / "text", " ".join(made_by))

    @cached_property
    def latents_cache(self) -> Cache:
        made_by = f"{self.base.fingerprint('vae')} {self.dtype}"
        if isinstance(self.family, TakesFirstFrame):
            made_by = f"{made_by} {self.family.conditions_made_by(self.base)}".rstrip()
        return Cache(self.workspace.cache / "latents", made_by)

    def text_key(self, caption: str, controls: Controls = ()) -> str:
        """Depends on the control pictures too where the text encoder is shown them."""
        if not controls or not isinstance(self.family, TextSeesControl):
            return self.text_cache.key(caption=caption)
        return self.text_cache.key(caption=caption, controls=[_made_from(control) for control in controls])

    def latents_key(self, item: TrainItem) -> str:
        """Depends on the file's bytes and on how it is resized, cropped and cut, not on its name."""
        place = item.placement
        made_from = {"file": item.item.sha256, "resize": list(place.resize_to), "crop": list(place.crop)}
        if item.window:
            made_from["window"] = [item.window.start, item.window.frames, item.window.fps]
        return self.latents_cache.key(**made_from)

    def control_key(self, control: Control) -> str:
        """Depends on the file's bytes and on how it is resized and cropped."""
        return self.latents_cache.key(control=_made_from(control))

    def controls(self, item: TrainItem) -> Controls:
        """The control pictures that an item is trained with."""
        return controls_of_item(item) if isinstance(self.family, TakesControl) else ()

    @cached_property
    def _mask_hashes(self) -> dict[Path, str]:
        return {}

    def mask_key(self, item: TrainItem) -> str | None:
        """Of an item's mask at the size of its latents; None where the item has none."""
        path, place = item.item.mask_path, item.placement
        if path is None:
            return None
        if path not in self._mask_hashes:
            self._mask_hashes[path] = sha256_of(path)
        return self.latents_cache.key(
            mask=self._mask_hashes[path],
            of=item.item.sha256,
            from_alpha=path == item.item.path,
            resize=list(place.resize_to),
            crop=list(place.crop),
        )

    def first_frame_key(self, picture: FirstFrame) -> str:
        """Depends on the picture and on the size of the previews that begin with it."""
        place, clip = picture.placement, picture.clip
        return self.latents_cache.key(
            first_frame=picture.sha256,
            resize=list(place.resize_to),
            crop=list(place.crop),
            frames=self.preview_size[2],
            start=clip.window.start if clip and clip.window else None,
        )

    @cached_property
    def first_frames(self) -> list[FirstFrame]:
        """What previews begin with, for base models that make a clip out of a picture."""
        width, height, _ = self.preview_size
        return first_frames(self, width, height)

    @cached_property
    def preview_controls(self) -> dict[str, Controls]:
        """The control pictures of each of the recipe's previews, by prompt."""
        return preview_controls(self, self.preview_prompts())

    @cached_property
    def preview_size(self) -> tuple[int, int, int]:
        """Width and height of previews in pixels, as multiples of what the base model takes, and their frames.

        Raises:
            RequestError: The base model draws no clips, or none of that length.
        """
        settings, divisor, step = self.recipe.previews, self.family.pixel_divisor, self.family.frame_step
        width, height = (max(divisor, side // divisor * divisor) for side in (settings.width, settings.height))
        frames = settings.frames
        if frames > 1 and self.family.fps is None:
            raise RequestError(
                f"This base model draws pictures, not clips of {frames} frames",
                "`previews.frames` asks for clips.",
                "Set `previews.frames = 1`.",
            )
        if over := (frames - 1) % step:
            raise RequestError(
                f"This base model draws no clips of {frames} frames",
                f"It draws one frame and then {step} at a time.",
                f"Set `previews.frames` to {frames - over} or {frames - over + step}.",
            )
        if frames == 1 and isinstance(self.family, TakesFirstFrame) and self.family.first_frame == "needed":
            raise RequestError(
                "This base model makes clips out of a first frame, so it has no single frames to draw",
                "`previews.frames` is 1.",
                f"Set `previews.frames` to {step + 1} or more, in steps of {step}.",
            )
        return width, height, frames

    def items(self) -> list[TrainItem]:
        """Items to train on and items held out."""
        return [*self.data.train, *self.data.validation]

    def captions(self) -> dict[str, tuple[str, Controls]]:
        """Every text that the run needs, once each, in a stable order: by its key, with what the encoder is shown."""
        texts = [(caption, self.controls(item)) for item in self.items() for caption in (*item.captions, "")]
        prompts = [(prompt, self.preview_controls.get(prompt, ())) for prompt in self.preview_prompts()]
        prompts += [(self.recipe.previews.negative_prompt, controls) for _, controls in prompts]
        return {self.text_key(*text): text for text in [*texts, *prompts]}

    def preview_prompts(self) -> list[str]:
        """The recipe's prompts, else the first captions of the first dataset."""
        if self.recipe.previews.prompts:
            return self.recipe.previews.prompts
        first = (item.captions[0] for item in self.data.train if item.dataset == 0)
        return list(dict.fromkeys(first))[:2]


def _made_from(control: Control) -> list[object]:
    return [control.sha256, list(control.placement.resize_to), list(control.placement.crop)]


def _refuse_single_frames(items: list[TrainItem], frame_step: int) -> None:
    """Raises DatasetError where items have one frame only, since that one would be given, and nothing left to learn."""
    single = list(dict.fromkeys(item.item.path for item in items if item.placement.bucket.frames == 1))
    if not single:
        return
    named = "\n".join(shown(path) for path in single[:20])
    more = f"\nand {len(single) - 20} more" if len(single) > 20 else ""
    pictures = "picture" if len(single) == 1 else "pictures"
    raise DatasetError(
        f"This base model trains on clips only, and the datasets hold {len(single)} {pictures} or clips cut to one frame",
        "It makes a clip out of its first frame, so of a single frame nothing is left to learn:\n" + named + more,
        f"Take the pictures out, write {frame_step + 1} or more into `frames`, or train a text-to-clip base model on them.",
    )


def as_pixels(frames: NDArray[np.uint8]) -> Tensor:
    """Frames (f, h, w, 3) of an item as the denoiser's VAE takes them, (1, 3, f, h, w) in -1..1."""
    return (torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1)[None]

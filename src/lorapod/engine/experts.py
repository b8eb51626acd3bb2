"""Base models of two experts: one after the other in a run, one in memory at a time.

Each expert has the recipe's number of steps and an adapter of its own. Previews need both: the one that trains then gives
its frozen weights back while the other draws, and gets them again from disk; adapter and optimizer stay as they are.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lorapod.engine import adapter_files, adapters
from lorapod.engine.adapter_files import ENCODERS, Merged
from lorapod.engine.blocks import FULLY, Keeping
from lorapod.engine.families import Expert, Family, SamplesByExperts
from lorapod.engine.job import Job
from lorapod.engine.previews import Previews
from lorapod.engine.ranks import Ranks
from lorapod.engine.streaming import StreamedBlocks, stream
from lorapod.engine.weights import stored_weights
from lorapod.errors import AdapterError
from lorapod.recipe.choices import Quantization

_EXPERT_IN_NAME = re.compile(r"(-high|-low)(?=$|-step\d+|-comfyui|-diffusers|-kohya)")
"""What `engine.export` puts into a file's name."""


def free_memory() -> None:
    """Gives back what a model held that is no longer referred to, for the next one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def drop_frozen(denoiser: nn.Module, streamed: StreamedBlocks | None = None) -> None:
    """Frees the frozen weights, those that wait elsewhere too; the trained ones stay, and text encoders beside it."""
    if streamed:
        streamed.let_go()
    for parameter in _frozen(denoiser).values():
        parameter.data = parameter.data.new_empty(0)
    free_memory()


def _frozen(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """Its own frozen parameters by their names without an adapter."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in denoiser.named_parameters()
        if not parameter.requires_grad and not name.startswith(ENCODERS)
    }


def take_frozen(denoiser: nn.Module, fresh: nn.Module) -> None:
    """Gives the frozen weights of a denoiser that was just loaded to one that dropped its own."""
    given = dict(fresh.named_parameters())
    for name, parameter in _frozen(denoiser).items():
        parameter.data = given[name].data


def adapter_copy(denoiser: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors as they are now, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in adapters.adapter_tensors(denoiser).items()}


def renamed_for(expert: Expert, path: Path) -> Path | None:
    """The name beside `path` that an expert's LoRA file has; None where `path` is named after no expert."""
    if not _EXPERT_IN_NAME.search(path.stem):
        return None
    return path.with_name(_EXPERT_IN_NAME.sub(expert.suffix, path.stem) + path.suffix)


def file_for(expert: Expert, trained: tuple[Expert, ...], path: Path) -> Path:
    """The LoRA file that an expert continues from: `path`, or with several experts the one beside it of its suffix.

    Raises:
        AdapterError: The file's name does not say which expert it is of, or the other's is not there.
    """
    if len(trained) == 1:
        return path
    found = renamed_for(expert, path)
    suffixes = " and ".join(each.suffix for each in trained)
    if found is None:
        raise AdapterError(
            f"It is not clear which expert {path.name} is of",
            f"This run trains two, and continues from two files whose names end in {suffixes}.",
            "Name the files so and give one of them, or train one expert with `base_model.expert`.",
        )
    if not found.is_file():
        raise AdapterError(
            f"There is no LoRA {found.name} beside {path.name}",
            f"This run trains two experts, and continues from two files whose names end in {suffixes}.",
            "Put it there, or train one expert with `base_model.expert`.",
        )
    return found


def merged_into(expert: Expert, merged: Merged) -> Merged:
    """What is merged into an expert: a file that is named after the experts counts for each as the one of its own name."""
    own = renamed_for(expert, merged.path) if expert.suffix else None
    return replace(merged, path=own) if own else merged


def merge_adapters(
    job: Job,
    denoiser: nn.Module,
    expert: Expert,
    merged: Sequence[Merged],
    undo: Sequence[Merged] = (),
    keeping: Keeping = FULLY,
) -> None:
    """Merges adapters into an expert's frozen weights, in place of those of `undo`."""
    stored = None
    if undo or keeping.quantize is not Quantization.NONE:
        stored = stored_weights(job.base, expert.component, job.family.denoiser_naming(denoiser.config))
    paths = [merged_into(expert, each).path for each in undo]
    adapter_files.merge(denoiser, job.family, [merged_into(expert, each) for each in merged], stored, paths)


def sample_in_turns(
    job: Job, previews: Previews, turn: Callable[[Expert], AbstractContextManager[nn.Module]]
) -> list[Tensor]:
    """Latents of every preview, each expert of the base model drawing its part of all of them.

    Args:
        turn: Gives a context manager in which an expert's denoiser is in memory.
    """
    family = job.family
    assert isinstance(family, SamplesByExperts)
    with torch.no_grad():
        samplings = [family.begin(job.base, previews.request(*pair), job.device) for pair in previews.pairs]
        for expert in job.family.experts:
            with turn(expert) as denoiser, previews.drawing(denoiser):
                for sampling in samplings:
                    family.advance(denoiser, sampling, expert)
        return [family.finish(sampling) for sampling in samplings]


def loading(keeping: Keeping, ranks: Ranks) -> AbstractContextManager[None]:
    """Inside the block a base model is loaded, until its blocks wait where they should."""
    return ranks.by_turns() if keeping.shards > 1 else nullcontext()


@contextmanager
def lent(
    job: Job, expert: Expert, adapter: dict[str, Tensor] | None, keeping: Keeping, ranks: Ranks
) -> Iterator[nn.Module]:
    """An expert that is not being trained, with its finished adapter if it has one; empty after the block."""
    family: Family = job.family
    in_previews = [each for each in job.merged_adapters if each.in_previews]
    with loading(keeping, ranks):
        denoiser = family.load_denoiser(job.base, expert, job.device, job.dtype, keeping)
        merge_adapters(job, denoiser, expert, in_previews, keeping=keeping)
        streamed = stream(denoiser, keeping, job.device, ranks)
    if adapter is not None:
        recipe = job.recipe
        adapters.add_adapter(denoiser, family, recipe.adapter, recipe.alpha, recipe.training.seed, job.device)
        adapters.load_adapter_tensors(denoiser, adapter, Path(f"{recipe.name}{expert.suffix}"))
    try:
        yield denoiser
    finally:
        drop_frozen(denoiser, streamed)  # whoever still refers to the module, its weights are gone now

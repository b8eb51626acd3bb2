"""The schema in words: what a key takes, which keys there are, and which one a misspelt key was meant to be.

Error messages (`problems`) and the reference (`reference`) both speak from here, so that they say the same.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from lorapod.recipe.locate import KeyPath, dotted
from lorapod.recipe.schema import Recipe, Section

_MEANT: dict[str, str] = {
    "lr": "learning_rate", "unet_lr": "learning_rate", "wd": "weight_decay", "beta": "betas",
    "scheduler": "schedule", "lr_scheduler": "schedule", "warmup": "warmup_steps", "lr_warmup_steps": "warmup_steps",
    "max_grad_norm": "clip_norm", "gradient_clipping": "clip_norm", "grad_clip": "clip_norm",
    "batch": "batch_size", "bs": "batch_size", "train_batch_size": "batch_size",
    "micro_batch_size_per_gpu": "batch_size",
    "epoch": "epochs", "num_epochs": "epochs", "max_train_epochs": "epochs",
    "step": "steps", "max_steps": "steps", "max_train_steps": "steps", "train_steps": "steps",
    "gradient_accumulation": "accumulation", "gradient_accumulation_steps": "accumulation",
    "grad_accum": "accumulation",
    "mixed_precision": "precision", "dtype": "precision", "random_seed": "seed",
    "timestep_sample_method": "timestep_sampling", "shift": "timestep_shift", "discrete_flow_shift": "timestep_shift",
    "checkpointing": "gradient_checkpointing", "activation_checkpointing": "gradient_checkpointing",
    "dim": "rank", "network_dim": "rank", "lora_rank": "rank", "linear": "rank",
    "network_alpha": "alpha", "lora_alpha": "alpha", "linear_alpha": "alpha", "network_dropout": "dropout",
    "network_weights": "continue_from", "init_from_existing": "continue_from",
    "type": "kind", "optimizer_type": "kind",
    "resolution": "resolutions", "num_repeats": "repeats", "directory": "path", "folder": "path",
    "folder_path": "path", "image_dir": "path", "image_directory": "path",
    "trigger": "trigger_word", "keep_tokens": "keep_tags", "shuffle_caption": "shuffle_tags",
    "caption_dropout_rate": "caption_dropout", "validation_split": "validation_share",
    "prompt": "prompts", "sample_every": "previews.every", "cfg": "guidance", "guidance_scale": "guidance",
    "negative": "negative_prompt", "neg": "negative_prompt",
    "save_every": "lora_every", "save_every_n_steps": "lora_every", "max_step_saves_to_keep": "keep_checkpoints",
    "dataset": "datasets", "model": "base_model", "preview": "previews", "sample": "previews", "samples": "previews",
    "eval": "evaluation", "validation": "evaluation", "network": "adapter", "lora": "adapter", "train": "training",
    "save": "saving", "output": "saving", "backend": "trainer", "output_name": "name",
}  # fmt: skip
"""What people write who come from other trainers, and what it is called here."""


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, alone or in a list; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) is list:
        return section_of(get_args(annotation)[0])
    return None


def walk_fields(
    section: type[Section] = Recipe, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every plain field below `section` with its path; list positions are left out."""
    for key, info in section.model_fields.items():
        inner = section_of(info.annotation)
        if inner is None:
            yield (*path, key), info
        else:
            yield from walk_fields(inner, (*path, key))


def section_at(path: KeyPath) -> type[Section] | None:
    """The section that `path` leads to, or None if it leads to a value or nowhere."""
    section: type[Section] | None = Recipe
    for part in path:
        if isinstance(part, str):
            info = section.model_fields.get(part) if section else None
            section = section_of(info.annotation) if info else None
    return section


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number_text(value: Any) -> str:
    if isinstance(value, int) and value >= 2**31 and value.bit_count() == 1:
        return f"2^{value.bit_length() - 1}"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:_}" if value >= 100_000 else str(value)


def _range_text(metadata: Sequence[Any]) -> str:
    """The bounds in pydantic's (annotated-types') metadata, with a leading space: ` from 1 to 1024`, ` above 0`."""
    bounds = {
        name: _number_text(getattr(item, name))
        for item in metadata
        for name in ("ge", "gt", "le", "lt")
        if _is_number(getattr(item, name, None))
    }
    if "ge" in bounds:
        upper = f" to {bounds['le']}" if "le" in bounds else f" to below {bounds['lt']}" if "lt" in bounds else ""
        return f" from {bounds['ge']}{upper}" if upper else f", at least {bounds['ge']}"
    lower = f"above {bounds['gt']}" if "gt" in bounds else ""
    upper = f"at most {bounds['le']}" if "le" in bounds else f"below {bounds['lt']}" if "lt" in bounds else ""
    return " " + " and ".join(part for part in (lower, upper) if part) if lower or upper else ""


def without_none(annotation: Any) -> Any:
    """`X` for `X | None`; anything else as it is."""
    if get_origin(annotation) in (Union, types.UnionType):
        choices = [choice for choice in get_args(annotation) if choice is not types.NoneType]
        return choices[0] if len(choices) == 1 else annotation
    return annotation


def type_text(annotation: Any, metadata: Sequence[Any] = (), *, several: bool = False) -> str:
    """What a field takes, as `a whole number from 1 to 1024`; with `several` in the plural, for elements of a list."""
    annotation = without_none(annotation)
    if get_origin(annotation) is Annotated:
        annotation, *extra = get_args(annotation)
        inner = [item for info in extra for item in (info.metadata if isinstance(info, FieldInfo) else [info])]
        return type_text(annotation, [*metadata, *inner], several=several)
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(type_text(choice, metadata, several=several) for choice in get_args(annotation))
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is list:
        return f"a list of {type_text(get_args(annotation)[0], several=True)}"
    if get_origin(annotation) is dict:
        return "tables" if several else "a table"
    if get_origin(annotation) is tuple:
        elements = get_args(annotation)
        return f"a list of {len(elements)} {type_text(elements[0], several=True)}"
    if get_origin(annotation) is dict:
        return "tables"
    if isinstance(annotation, type):
        if issubclass(annotation, Section):
            return "tables" if several else "a table"
        if issubclass(annotation, Enum):
            return ("any of " if several else "one of ") + ", ".join(f"`{member.value}`" for member in annotation)
        if issubclass(annotation, bool):
            return "`true` or `false`"
        if issubclass(annotation, int):
            return ("whole numbers" if several else "a whole number") + _range_text(metadata)
        if issubclass(annotation, float):
            return ("numbers" if several else "a number") + _range_text(metadata)
        if issubclass(annotation, Path):
            return "paths" if several else "a path"
        if issubclass(annotation, str):
            return "texts" if several else "text"
    raise TypeError(f"no words for {annotation}")


def type_at(path: KeyPath) -> tuple[Any, Sequence[Any]] | None:
    """Annotation and metadata of what `path` leads to, into lists too; None for a path that the schema has not."""
    annotation: Any = Recipe
    metadata: Sequence[Any] = ()
    for part in path:
        annotation = without_none(annotation)
        if isinstance(part, int):
            if get_origin(annotation) not in (list, tuple):
                return None
            annotation, metadata = get_args(annotation)[0], ()
        else:
            info = (
                annotation.model_fields.get(part)
                if isinstance(annotation, type) and issubclass(annotation, Section)
                else None
            )
            if info is None:
                return None
            annotation, metadata = info.annotation, info.metadata
    return annotation, metadata


def meant_keys(path: KeyPath) -> list[str]:
    """Valid keys that an unknown key was likely meant to be, best first; several only where it could be any of them.

    A key of the same section is given alone (`learning_rate`), one of another section in full (`optimizer.rank`).
    """
    section = section_at(path[:-1]) or Recipe
    written = str(path[-1]).lower().replace("-", "_")
    wanted = _MEANT.get(written, written)
    if wanted in section.model_fields:
        return [wanted]
    everywhere = [dotted(found) for found, _ in walk_fields()] + list(Recipe.model_fields)
    elsewhere = [key for key in everywhere if key == wanted or key.endswith("." + wanted)]
    if elsewhere:
        return list(dict.fromkeys(elsewhere))
    near = difflib.get_close_matches(written, section.model_fields, n=1, cutoff=0.6)
    if near:
        return near
    last_parts = {key.rpartition(".")[2]: key for key in everywhere}
    return [last_parts[name] for name in difflib.get_close_matches(written, last_parts, n=1, cutoff=0.75)]

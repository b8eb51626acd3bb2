"""The text entries that lorapod writes into the header of a LoRA file."""

from __future__ import annotations

import json
from pathlib import Path, PurePath

import tomlkit

from lorapod import __version__
from lorapod.models.families import family_facts
from lorapod.recipe.choices import AdapterKind
from lorapod.recipe.schema import Recipe

_NETWORKS = dict.fromkeys((AdapterKind.LOKR, AdapterKind.LOHA, AdapterKind.OFT), "lycoris.kohya")
"""Kind of adapter to the network module that sd-scripts would name."""


def metadata_for(
    recipe: Recipe,
    *,
    recipe_text: str,
    base_model_hash: str,
    family: str,
    steps: int,
    items: int,
    expert: str = "",
    predicts_v: bool = False,
) -> dict[str, str]:
    """The text entries of a LoRA file's header: ModelSpec 1.0.1, what sd-scripts writes (`ss_*`), and the recipe.

    There is no time and no machine in it: two identical trainings give byte-identical files (with `make_reproducible`).
    For the same reason, and because a LoRA is passed on to others, paths of datasets are cut to their last part and the
    home folder is written as `~`; reading that recipe back needs `load(..., check_paths=False)`.

    Args:
        recipe_text: The recipe as resolved, in TOML.
        steps: Optimizer steps behind the weights in this file, which may be fewer than the recipe asks for.
        items: Items trained on.
        expert: `high` or `low` where the base model has two denoisers.
        predicts_v: Whether the base model is an SDXL that predicts v.
    """
    rate = recipe.optimizer.learning_rate
    encoder_rate = rate * recipe.optimizer.text_encoder_rate if recipe.adapter.text_encoders else ""
    words = list(dict.fromkeys(dataset.trigger_word for dataset in recipe.datasets if dataset.trigger_word))
    everywhere = all(dataset.trigger_word for dataset in recipe.datasets) and len(words) == 1
    # Readers sort by this count; how the items are spread over several trigger words is not known here.
    frequency = dict.fromkeys(words, items if everywhere else 1)
    side = max(side for dataset in recipe.datasets for side in dataset.resolutions)
    base_name = PurePath(recipe.base_model.name).name
    entries: dict[str, object] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{facts.architecture if (facts := family_facts().get(family)) else family}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": recipe.name,
        "modelspec.description": recipe.notes,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "flow" if family != "sdxl" else "v" if predicts_v else "epsilon",
        "modelspec.trigger_phrase": ", ".join(words),
        "modelspec.usage_hint": f"Trigger: {', '.join(words)}" if words else "",
        "ss_output_name": recipe.name,
        "ss_base_model_version": family,
        "ss_sd_model_name": base_name,
        "ss_sd_model_hash": base_model_hash,
        "ss_network_module": _NETWORKS.get(recipe.adapter.kind, "networks.lora"),
        "ss_network_dim": recipe.adapter.rank,
        "ss_network_alpha": recipe.alpha,
        "ss_network_dropout": recipe.adapter.dropout,
        "ss_learning_rate": rate,
        "ss_unet_lr": rate if encoder_rate else "",
        "ss_text_encoder_lr": encoder_rate,
        "ss_optimizer": recipe.optimizer.kind.value,
        "ss_lr_scheduler": recipe.optimizer.schedule.value,
        "ss_lr_warmup_steps": recipe.optimizer.warmup_steps,
        "ss_max_grad_norm": recipe.optimizer.clip_norm,
        "ss_max_train_steps": recipe.training.steps or steps,
        "ss_steps": steps,
        "ss_total_batch_size": recipe.training.batch_size * recipe.training.accumulation,
        "ss_gradient_accumulation_steps": recipe.training.accumulation,
        "ss_gradient_checkpointing": recipe.training.gradient_checkpointing != "off",
        "ss_mixed_precision": recipe.training.precision.value,
        "ss_seed": recipe.training.seed,
        "ss_resolution": f"({side}, {side})",
        "ss_num_train_images": items,
        "ss_tag_frequency": json.dumps({f"1_{recipe.name}": frequency}, ensure_ascii=False) if words else "",
        "ss_training_comment": recipe.notes,
        "lorapod.version": __version__,
        "lorapod.base_model": base_name,
        "lorapod.family": family,
        "lorapod.expert": expert,
        "lorapod.recipe": _without_folders(recipe_text),
    }
    return {key: str(value) for key, value in sorted(entries.items()) if value != ""}


def _without_folders(recipe_text: str) -> str:
    """The recipe with the paths of a person's data cut to their last part, and the home folder written as `~`.

    What the LoRA was trained on stays findable on the machine that it was trained on, for sampling with it.
    """
    document = tomlkit.parse(recipe_text)
    base = document.get("base_model", {})
    for key in ("name", "training_adapter"):
        if key in base and PurePath(base[key]).is_relative_to(Path.home()):
            base[key] = str("~" / PurePath(base[key]).relative_to(Path.home()))
    own = [(document.get("adapter", {}), "continue_from")]
    own += [(merged, "path") for merged in document.get("adapter", {}).get("merged", [])]
    own += [(dataset, key) for dataset in document.get("datasets", []) for key in ("path", "masks", "control")]
    previews = document.get("previews", {})
    for key in ("first_frames", "control"):
        if key in previews:
            previews[key] = [PurePath(path).name for path in previews[key]]
    for table, key in own:
        if key in table:
            table[key] = PurePath(table[key]).name
    return tomlkit.dumps(document)

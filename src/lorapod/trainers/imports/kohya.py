"""A recipe out of kohya's sd-scripts: its TOML of arguments and its dataset TOML, for SDXL and FLUX.1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from lorapod.errors import RequestError
from lorapod.trainers.imports.notes import Given, Imported, put

_OPTIMIZERS = {"adamw8bit": "adamw-8bit", "adamw": "adamw", "prodigy": "prodigy", "adafactor": "adafactor"}


def read(config: Mapping[str, Any], dataset: Mapping[str, Any], base: str | None, name: str) -> Imported:
    """The recipe of a configuration. Section names in the TOML of arguments mean nothing there, and here neither.

    Raises:
        RequestError: The base model cannot be told.
    """
    imported = Imported({"trainer": "builtin"})
    recipe = imported.recipe
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= value if isinstance(value, Mapping) else {key: value}
    given = Given(flat, "", imported)
    recipe["name"] = str(given.take("output_name", name))
    recipe["base_model"] = {"name": base or _base_of(flat)}
    given.leave(
        "lorapod fetches the base model and says where it is",
        "pretrained_model_name_or_path",
        "ae",
        "clip_l",
        "t5xxl",
        "vae",
    )
    module = str(given.take("network_module", "networks.lora"))
    put(recipe, "adapter.kind", "lora")
    if module.endswith(("lokr", "loha")) or "lycoris" in module:
        recipe["adapter"]["kind"] = "lokr" if "lokr" in str(given.peek("network_args", module)) else "loha"
    rank = int(given.take("network_dim", 4))
    put(recipe, "adapter.rank", rank)
    put(recipe, "adapter.alpha", float(given.take("network_alpha", 1)))
    put(recipe, "adapter.dropout", float(given.take("network_dropout", 0) or 0))
    put(recipe, "adapter.continue_from", given.take("network_weights"))
    put(recipe, "optimizer.kind", _OPTIMIZERS.get(str(given.peek("optimizer_type", "adamw")).casefold()))
    if str(given.peek("optimizer_type", "adamw")).casefold() in _OPTIMIZERS:
        given.take("optimizer_type")
    put(recipe, "optimizer.learning_rate", float(given.take("unet_lr") or given.take("learning_rate", 2e-6)))
    _arguments(recipe, given)
    schedule = str(given.peek("lr_scheduler", "constant"))
    if schedule in ("constant", "linear", "cosine", "constant_with_warmup"):
        given.take("lr_scheduler")
        put(recipe, "optimizer.schedule", schedule.partition("_")[0])
    put(recipe, "optimizer.warmup_steps", int(given.take("lr_warmup_steps", 0) or 0))
    put(recipe, "optimizer.clip_norm", float(given.take("max_grad_norm", 1.0)))
    epochs = given.take("max_train_epochs")
    steps = given.take("max_train_steps", 1600)
    put(recipe, "training.epochs" if epochs else "training.steps", int(epochs or steps))
    put(recipe, "training.accumulation", int(given.take("gradient_accumulation_steps", 1)))
    put(recipe, "training.gradient_checkpointing", bool(given.take("gradient_checkpointing", False)))
    put(recipe, "training.seed", given.take("seed"))
    put(recipe, "training.swap_blocks", given.take("blocks_to_swap"))
    held_in_fp8 = bool(given.peek("fp8_base"))
    given.take("fp8_base", why="its rows get scales of their own" if held_in_fp8 else "")
    put(recipe, "base_model.quantize", "fp8" if held_in_fp8 else None)
    put(recipe, "training.precision", "fp32" if given.take("mixed_precision", "no") == "no" else "bf16")
    put(recipe, "training.min_snr_gamma", _float(given.take("min_snr_gamma")))
    _noise(recipe, given)
    put(recipe, "saving.lora_every", int(given.take("save_every_n_steps", 0) or 0))
    put(recipe, "saving.precision", "fp32" if given.take("save_precision") == "float" else "bf16")
    given.leave("a run has a folder of its own in the workspace", "output_dir", "logging_dir", "log_with", "log_prefix")
    given.leave("LoRA files are saved by steps (`saving.lora_every`)", "save_every_n_epochs", "save_model_as")
    given.leave("lorapod trains the denoiser alone", "network_train_unet_only", "text_encoder_lr", "train_text_encoder")
    given.leave("lorapod always caches", "cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs",
                "cache_text_encoder_outputs_to_disk", "vae_batch_size")  # fmt: skip
    given.leave("the fastest attention of the machine is taken", "xformers", "sdpa", "mem_eff_attn")
    given.take("dataset_config")
    batch = given.take("train_batch_size")
    caption = {"shuffle_caption": given.take("shuffle_caption"), "keep_tokens": given.take("keep_tokens")}
    side = given.take("resolution")
    plain = given.take("train_data_dir")
    folders = _datasets(imported, dataset, side, batch, caption)
    if plain and not folders:
        folders = [
            {"path": plain, "resolutions": [_side(side or 512)], "validation_share": 0.0, "caption_dropout": 0.0}
        ]
        put(recipe, "training.batch_size", int(batch or 1))
    recipe["datasets"] = folders
    given.leave_rest()
    return imported


def _base_of(flat: Mapping[str, Any]) -> str:
    told = PurePosixPath(str(flat.get("pretrained_model_name_or_path", ""))).name.casefold()
    if "flux" in told or flat.get("network_module") == "networks.lora_flux" or flat.get("t5xxl"):
        return "flux-dev"
    if "xl" in told or flat.get("sdxl"):
        return "sdxl"
    raise RequestError(
        "It cannot be told which base model this is for", f"It names {told!r}.", "Name it with --base: sdxl, flux-dev."
    )


def _arguments(recipe: dict[str, Any], given: Given) -> None:
    for argument in given.take("optimizer_args") or []:
        key, _, value = str(argument).partition("=")
        if key == "weight_decay":
            put(recipe, "optimizer.weight_decay", float(value))
        elif key == "betas":
            put(recipe, "optimizer.betas", [float(part) for part in value.strip("()[] ").split(",")])


def _noise(recipe: dict[str, Any], given: Given) -> None:
    if recipe["base_model"]["name"] == "sdxl":
        put(recipe, "training.timestep_sampling", "uniform")
        return
    sampling = given.take("timestep_sampling", "sigma")
    put(recipe, "training.timestep_sampling", "uniform" if sampling in ("uniform", "sigma") else "logit-normal")
    put(recipe, "training.resolution_shift", sampling == "flux_shift")
    shift = float(given.take("discrete_flow_shift", 1.0))
    put(recipe, "training.timestep_shift", shift if sampling == "shift" else 1.0)
    given.leave("the prediction is learnt as it is", "model_prediction_type", "guidance_scale", "loss_type")


def _datasets(
    imported: Imported, dataset: Mapping[str, Any], side: Any, batch: Any, caption: Mapping[str, Any]
) -> list[dict[str, Any]]:
    general = dict(dataset.get("general", {}))
    folders = []
    for number, table in enumerate(dataset.get("datasets", [])):
        for inner, subset in enumerate(table.get("subsets", [])):
            whole = {**general, **{k: v for k, v in table.items() if k != "subsets"}, **subset}
            given = Given(whole, f"datasets.{number}.subsets.{inner}", imported)
            folder: dict[str, Any] = {
                "path": given.take("image_dir"),
                "repeats": int(given.take("num_repeats", 1)),
                "resolutions": [_side(given.take("resolution", side or 512))],
                "shuffle_tags": bool(given.take("shuffle_caption", caption["shuffle_caption"]) or False),
                "caption_per_line": bool(given.take("enable_wildcard", False)),
                "keep_tags": int(given.take("keep_tokens", caption["keep_tokens"]) or 0),
                "caption_prefix": given.take("caption_prefix", ""),
                "caption_dropout": float(given.take("caption_dropout_rate", 0.0) or 0.0),
                "validation_share": 0.0,
            }
            if tokens := given.take("class_tokens"):
                folder["caption_prefix"] = folder["caption_prefix"] or str(tokens)
                folder["allow_missing_captions"] = True
            if given.take("alpha_mask", False):
                folder["alpha_masks"] = True
            put(imported.recipe, "training.batch_size", int(given.take("batch_size", batch or 1)))
            given.leave("lorapod chooses buckets by the pictures", "enable_bucket", "min_bucket_reso", "max_bucket_reso",
                        "bucket_reso_steps", "bucket_no_upscale")  # fmt: skip
            given.leave("captions are read from .txt and .caption files", "caption_extension")
            given.leave_rest()
            folders.append(folder)
    return folders


def _side(value: Any) -> int:
    sides = [
        int(each)
        for each in (value.split(",") if isinstance(value, str) else [value] if not isinstance(value, list) else value)
    ]
    return round(math.sqrt(sides[0] * sides[-1]))


def _float(value: Any) -> float | None:
    return None if value is None else float(value)

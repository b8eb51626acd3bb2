"""A recipe out of kohya's sd-scripts, for SDXL and FLUX.1: its TOML of arguments with its dataset TOML, or its GUI's JSON.

Folders called `10_name` are read by `lorapod.data.layouts`, so that a `train_data_dir` is a dataset as it is. What is drawn
while it trains, and augmentation, are not carried over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lorapod.data.sidecars import match_captions
from lorapod.data.walk import Kind, walk
from lorapod.errors import RequestError
from lorapod.trainers.imports.notes import Given, Imported, put

_OPTIMIZERS = {"adamw8bit": "adamw-8bit", "adamw": "adamw", "prodigy": "prodigy", "adafactor": "adafactor"}
_SCHEDULES = {
    "constant": ("constant", ""), "constant_with_warmup": ("constant", ""), "linear": ("linear", ""),
    "cosine": ("cosine", ""), "cosine_with_restarts": ("cosine", "it falls once, without restarts"),
    "polynomial": ("linear", "of the polynomials lorapod has the straight line"),
}  # fmt: skip
_GUI_NAMES = {
    "max_resolution": "resolution", "optimizer": "optimizer_type", "epoch": "max_train_epochs",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
}  # fmt: skip
"""Keys that the GUI calls otherwise than sd-scripts."""

_GUI_MODULES = {
    "Standard": "networks.lora", "Flux1": "networks.lora_flux", "LyCORIS/LoKr": "lycoris.lokr",
    "LyCORIS/LoHa": "lycoris.loha",
}  # fmt: skip


def of_gui(table: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of the GUI, kohya_ss, in the words of sd-scripts. It holds every key: empty, 0 and off mean unset."""
    given = {key: value for key, value in table.items() if value not in ("", 0, False, None)}
    if {"max_train_steps", "max_train_epochs"} & given.keys():
        given.pop("epoch", None)
    if "unet_lr" in given and "text_encoder_lr" not in given:
        given["network_train_unet_only"] = True
    if kind := _GUI_MODULES.get(str(given.get("LoRA_type"))):
        del given["LoRA_type"]
        given["network_module"] = kind
    if isinstance(arguments := given.get("optimizer_args"), str):
        given["optimizer_args"] = arguments.split()
    return {_GUI_NAMES.get(key, key): value for key, value in given.items()}


def has_folders(config: Mapping[str, Any]) -> bool:
    """Whether a configuration names its folders itself, in place of a dataset TOML."""
    return "train_data_dir" in _flat(config)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Section names in the TOML of arguments mean nothing there, and here neither."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= value if isinstance(value, Mapping) else {key: value}
    return flat


def read(config: Mapping[str, Any], dataset: Mapping[str, Any], base: str | None, name: str) -> Imported:
    """The recipe of a configuration.

    Raises:
        RequestError: The base model cannot be told.
    """
    imported = Imported({"trainer": "builtin"})
    recipe = imported.recipe
    flat = _flat(config)
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
    common = float(given.take("learning_rate", 2e-6))
    put(recipe, "optimizer.learning_rate", float(given.take("unet_lr", common)))
    _text_encoders(recipe, given, common)
    _arguments(recipe, given)
    schedule, instead = _SCHEDULES.get(
        str(given.peek("lr_scheduler", "constant")), ("constant", "lorapod has none like it")
    )
    given.take("lr_scheduler", why=f"{schedule}: {instead}" if instead else "")
    given.leave("the schedule falls once", "lr_scheduler_num_cycles", "lr_scheduler_power")
    put(recipe, "optimizer.schedule", schedule)
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
    mixed = given.peek("mixed_precision", "no")
    given.take("mixed_precision", why="bf16: lorapod does not train in fp16" if mixed == "fp16" else "")
    put(recipe, "training.precision", "fp32" if mixed == "no" else "bf16")
    put(recipe, "training.min_snr_gamma", _float(given.take("min_snr_gamma")))
    _noise(recipe, given)
    put(recipe, "saving.lora_every", int(given.take("save_every_n_steps", 0) or 0))
    saved = given.peek("save_precision")
    given.take("save_precision", why="bf16: lorapod writes that or fp32" if saved == "fp16" else "")
    put(recipe, "saving.precision", "fp32" if saved == "float" else "bf16")
    given.leave("a run has a folder of its own in the workspace", "output_dir", "logging_dir", "log_with", "log_prefix")
    given.leave("LoRA files are saved by steps (`saving.lora_every`)", "save_every_n_epochs", "save_model_as")
    given.leave("lorapod always caches", "cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs",
                "cache_text_encoder_outputs_to_disk", "vae_batch_size")  # fmt: skip
    given.leave("the fastest attention of the machine is taken", "xformers", "sdpa", "mem_eff_attn")
    given.take("dataset_config")
    batch = given.take("train_batch_size")
    caption = {"shuffle_caption": given.take("shuffle_caption"), "keep_tokens": given.take("keep_tokens")}
    side = given.take("resolution")
    plain = given.take("train_data_dir")
    if plain and not dataset:
        recipe["datasets"] = _plain_folders(given, str(plain), side, caption)
        put(recipe, "training.batch_size", int(batch or 1))
    else:
        recipe["datasets"] = _datasets(imported, dataset, side, batch, caption)
    _leave_known(given)
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


def _text_encoders(recipe: dict[str, Any], given: Given, common: float) -> None:
    """sd-scripts adapts them unless told otherwise, at `text_encoder_lr` or else `learning_rate`; lorapod those of SDXL."""
    rates = given.peek("text_encoder_lr", common)
    rates = [float(rate) for rate in (rates if isinstance(rates, list) else [rates])] or [common]
    if recipe["base_model"]["name"] != "sdxl":
        given.leave(
            "lorapod trains the denoiser of this base model alone", "text_encoder_lr", "network_train_unet_only"
        )
        return
    if recipe["optimizer"].get("kind") == "prodigy":  # which has one rate for all
        put(recipe, "adapter.text_encoders", False)
        given.take("network_train_unet_only")
        given.leave("lorapod trains no text encoders with prodigy", "text_encoder_lr")
        return
    adapted = (
        not given.take("network_train_unet_only") and not given.peek("cache_text_encoder_outputs") and rates[0] > 0
    )
    put(recipe, "adapter.text_encoders", adapted)
    given.take("text_encoder_lr", why="both get the first rate" if len(set(rates)) > 1 else "")
    if adapted:
        put(recipe, "optimizer.text_encoder_rate", min(10.0, rates[0] / recipe["optimizer"]["learning_rate"]))


def _plain_folders(given: Given, folder: str, side: Any, caption: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The dataset of a `train_data_dir`, whose folders say repeats and class words, and that of a `reg_data_dir`."""
    known = given.take("reg_data_dir")
    weight = given.take("prior_loss_weight") if known else None
    common = {
        "resolutions": [_side(side or 512)],
        "shuffle_tags": bool(caption["shuffle_caption"]),
        "keep_tags": int(caption["keep_tokens"] or 0),
        "caption_prefix": given.take("caption_prefix", ""),
        "caption_dropout": float(given.take("caption_dropout_rate", 0.0) or 0.0),
        "validation_share": 0.0,
    }
    folders: list[dict[str, Any]] = [{"path": folder, **common}]
    if known:
        folders.append({"path": known, **common, "regularisation": "learn"})
        if weight is not None:
            folders[1]["loss_weight"] = float(weight)
    return folders


def _leave_known(given: Given) -> None:
    """What needs no word in a recipe."""
    given.leave("captions are read from .txt and .caption files", "caption_extension")
    given.leave("lorapod chooses buckets by the pictures", "enable_bucket", "min_bucket_reso", "max_bucket_reso",
                "bucket_reso_steps", "bucket_no_upscale")  # fmt: skip


def _class_words(folder: dict[str, Any], given: Given) -> None:
    """kohya captions by them what has no caption, and that alone."""
    words = given.peek("class_tokens")
    if not words:
        return
    bare, items = _uncaptioned(Path(folder["path"]))
    if items and bare == items:
        given.take("class_tokens")
        folder["caption_prefix"] = folder["caption_prefix"] or str(words)
        folder["allow_missing_captions"] = True
        return
    why = f"{bare} of the {items} items have no caption" if bare else "all items have captions"
    given.leave(
        f"it is the caption of items without one, and {why}"
        if items
        else "it is the caption of items without one: set "
        "`caption_prefix` and `allow_missing_captions` where none has one",
        "class_tokens",
    )


def _uncaptioned(folder: Path) -> tuple[int, int]:
    """How many items of a folder have no caption file, and how many there are; 0 and 0 where it cannot be looked into."""
    try:
        (found,), _ = walk(folder.expanduser(), recursive=False)
    except OSError:
        return 0, 0
    items = found.paths(Kind.PICTURE, Kind.CLIP)
    captions, _ = match_captions(found)
    return sum(item not in captions for item in items), len(items)


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
            _class_words(folder, given)
            if given.take("is_reg", False):
                folder["regularisation"] = "learn"
            if given.take("alpha_mask", False):
                folder["alpha_masks"] = True
            put(imported.recipe, "training.batch_size", int(given.take("batch_size", batch or 1)))
            _leave_known(given)
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

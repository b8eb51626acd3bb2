"""A recipe out of ai-toolkit's YAML (`config.process[0]` of a `sd_trainer` job)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lorapod.errors import RequestError
from lorapod.models import catalogue
from lorapod.trainers.imports.notes import Given, Imported, put

_OPTIMIZERS = {"adamw8bit": "adamw-8bit", "adamw": "adamw", "prodigy": "prodigy", "adafactor": "adafactor"}
_BASES = {
    "flux.1-dev": "flux-dev", "stable-diffusion-xl": "sdxl", "sdxl": "sdxl", "qwen-image": "qwen-image",
    "wan2.1-t2v-1.3b": "wan2.1-t2v-1.3b", "wan2.1-t2v-14b": "wan2.1-t2v-14b", "wan2.1-i2v-14b-480p": "wan2.1-i2v-14b-480p",
    "wan2.2-t2v-a14b": "wan2.2-t2v-a14b", "wan2.2-i2v-a14b": "wan2.2-i2v-a14b", "wan2.2-ti2v-5b": "wan2.2-ti2v-5b",
    "z-image-turbo": "z-image-turbo", "z-image": "z-image",
}  # fmt: skip
_LORA_JOBS = ("sd_trainer", "diffusion_trainer", "ui_trainer")
_FLAGS = re.compile(r"\s+--[a-z]+(?:\s.*)?$")
"""What that trainer takes out of a prompt: its size, seed and the like."""

_MEMORY = "it saves memory in that trainer's own way"


def is_one(text: str) -> bool:
    """Whether a text is such a job."""
    return "process:" in text and "config:" in text


def read(text: str, file: Path, base: str | None) -> Imported:
    """The recipe of a job.

    Raises:
        RequestError: It is not valid YAML, is none, or its base model is not known.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"{file.name} is not valid YAML", " ".join(str(error).split()), "Mend the line.") from error
    process = _first(document)
    if process is None:
        raise RequestError(f"{file.name} is no job of ai-toolkit", "It has no `config.process`.", "")
    if (job := str(process.get("type", "sd_trainer"))) not in _LORA_JOBS:
        raise RequestError(
            f"{file.name} trains something else than a LoRA on pictures or clips",
            f"Its process is a {job}.",
            f"Jobs of {', '.join(_LORA_JOBS)} can be imported.",
        )
    imported = Imported({"trainer": "builtin"})
    recipe = imported.recipe
    recipe["name"] = str(document["config"].get("name") or file.stem)
    model, train, network = (Given(process.get(key) or {}, key, imported) for key in ("model", "train", "network"))
    recipe["base_model"] = {"name": base or _base_of(str(model.peek("name_or_path", "")), str(model.peek("arch", "")))}
    if model.peek("assistant_lora_path"):
        put(recipe, "base_model.training_adapter", "catalogue")
        model.take("assistant_lora_path", why="the one that comes with the base model is merged")
    model.take("name_or_path")
    model.leave(_MEMORY, "quantize", "quantize_te", "qtype", "qtype_te", "low_vram", "layer_offloading")
    model.leave("follows from the base model", "arch", "is_flux", "is_xl", "model_kwargs")
    model.leave_rest()
    kind = network.peek("type", "lora")
    network.take("type", why="" if kind in ("lora", "lokr") else "lora: lorapod has none like it")
    put(recipe, "adapter.kind", kind if kind in ("lora", "lokr") else "lora")
    put(recipe, "adapter.rank", network.take("linear") or network.take("rank", 16))
    put(recipe, "adapter.alpha", _float(network.take("linear_alpha") or network.take("alpha")))
    put(recipe, "adapter.dropout", _float(network.take("dropout")))
    network.leave("lorapod adapts linear layers alone", "conv", "conv_alpha")
    network.leave_rest()
    _train(recipe, train)
    _rest(imported, process)
    folders = [
        _dataset(Given(each, f"datasets.{number}", imported), process.get("trigger_word"))
        for number, each in enumerate(process.get("datasets") or [])
    ]
    recipe["datasets"] = folders
    return imported


def _first(document: Any) -> dict[str, Any] | None:
    if not isinstance(document, dict) or not isinstance(document.get("config"), dict):
        return None
    found = document["config"].get("process")
    return found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else None


def _base_of(name: str, arch: str) -> str:
    told = f"{name} {arch}".casefold().replace("_", "-")
    for part, base in sorted(_BASES.items(), key=lambda each: -len(each[0])):
        if part in told:
            return base
    if arch.startswith("wan22"):
        return "wan2.2-ti2v-5b" if "5b" in arch else "wan2.2-i2v-a14b" if "i2v" in arch else "wan2.2-t2v-a14b"
    known = ", ".join(catalogue())
    raise RequestError("It cannot be told which base model this is for", f"It names {name!r}.", f"Use --base: {known}.")


def _train(recipe: dict[str, Any], train: Given) -> None:
    put(recipe, "training.steps", train.take("steps"))
    put(recipe, "training.batch_size", train.take("batch_size", 1))
    put(
        recipe,
        "training.accumulation",
        train.take("gradient_accumulation_steps") or train.take("gradient_accumulation"),
    )
    put(recipe, "training.gradient_checkpointing", train.take("gradient_checkpointing", True))
    put(recipe, "training.precision", _precision(train, "bf16"))
    put(recipe, "optimizer.kind", _OPTIMIZERS.get(str(train.peek("optimizer", "adamw")).casefold()))
    if str(train.peek("optimizer", "adamw")).casefold() in _OPTIMIZERS:
        train.take("optimizer")
    else:
        train.leave("lorapod has no such optimizer; its default is taken", "optimizer")
    put(recipe, "optimizer.learning_rate", _float(train.take("lr")))
    put(recipe, "optimizer.schedule", _one_of(train, "lr_scheduler", ("constant", "linear", "cosine")))
    params = train.table.pop("optimizer_params", None)
    if isinstance(params, dict):
        inner = Given(params, "train.optimizer_params", train.imported)
        put(recipe, "optimizer.weight_decay", _float(inner.take("weight_decay")))
        put(recipe, "optimizer.betas", inner.take("betas"))
        inner.leave_rest()
    put(recipe, "optimizer.clip_norm", _float(train.take("max_grad_norm", 1.0)))
    put(recipe, "optimizer.warmup_steps", 0)
    sampling = train.peek("timestep_type", "sigmoid")
    if sampling in ("sigmoid", "linear"):
        put(recipe, "training.timestep_sampling", "uniform" if sampling == "linear" else "logit-normal")
        train.take("timestep_type")
    train.leave(
        "the base model's own way of drawing noise levels is taken",
        "timestep_type",
        "noise_scheduler",
        "content_or_style",
    )
    if train.peek("train_unet") is not False:
        train.take("train_unet")
    train.leave("lorapod always trains the denoiser", "train_unet")
    if recipe["base_model"]["name"] == "sdxl":
        put(recipe, "adapter.text_encoders", train.take("train_text_encoder"))
    elif not train.peek("train_text_encoder"):
        train.take("train_text_encoder")
    train.leave("lorapod trains the denoiser of this base model alone", "train_text_encoder")
    ema = train.table.pop("ema_config", None)
    if isinstance(ema, dict):
        inner = Given(ema, "train.ema_config", train.imported)
        if inner.take("use_ema", False):
            put(recipe, "adapter.ema_decay", float(inner.take("ema_decay", 0.999)))
        inner.leave("it is not used there either", "ema_decay")
        inner.leave_rest()
    train.leave(_MEMORY, "unload_text_encoder", "cache_text_embeddings")
    train.leave_rest()


def _rest(imported: Imported, process: dict[str, Any]) -> None:
    recipe = imported.recipe
    save, sample = (Given(process.get(key) or {}, key, imported) for key in ("save", "sample"))
    put(recipe, "saving.lora_every", save.take("save_every"))
    put(recipe, "saving.checkpoint_every", recipe.get("saving", {}).get("lora_every"))
    put(recipe, "saving.precision", _precision(save, "float16"))
    save.leave("LoRA files are all kept", "max_step_saves_to_keep")
    save.leave_rest()
    put(recipe, "previews.every", sample.take("sample_every"))
    put(recipe, "previews.width", sample.take("width"))
    put(recipe, "previews.height", sample.take("height"))
    put(recipe, "previews.frames", sample.take("num_frames"))
    put(recipe, "previews.steps", sample.take("sample_steps"))
    put(recipe, "previews.guidance", _float(sample.take("guidance_scale")))
    put(recipe, "previews.negative_prompt", sample.take("neg"))
    put(recipe, "previews.seeds", [seed] if (seed := sample.take("seed")) is not None else None)
    _prompts(recipe, sample, str(process.get("trigger_word") or ""))
    sample.leave_rest()
    named = {"model", "train", "network", "datasets", "save", "sample"}
    top = Given({key: value for key, value in process.items() if key not in named}, "", imported)
    top.take("trigger_word")
    top.take("type")
    top.leave("a run has a folder of its own in the workspace", "training_folder", "sqlite_db_path")
    top.leave("lorapod chooses the device", "device")
    top.leave_rest()


def _prompts(recipe: dict[str, Any], sample: Given, trigger: str) -> None:
    key = "prompts" if sample.peek("prompts") else "samples"
    written = [str(each.get("prompt", "") if isinstance(each, dict) else each) for each in sample.peek(key) or []]
    bare = [_FLAGS.sub("", each) for each in written]
    sample.take(key, why="without what stands after `--`: all previews are of one size" if bare != written else "")
    put(recipe, "previews.prompts", [each.replace("[trigger]", trigger) for each in bare])


def _precision(given: Given, default: str) -> str:
    """`fp32` or `bf16` for its `dtype`."""
    said = str(given.peek("dtype", default))
    given.take("dtype", why="bf16: lorapod has that and fp32" if said in ("float16", "fp16") else "")
    return "fp32" if said in ("float32", "fp32") else "bf16"


def _dataset(given: Given, trigger: Any) -> dict[str, Any]:
    folder: dict[str, Any] = {"path": given.take("folder_path"), "validation_share": 0.0}
    sides = given.take("resolution", 512)
    folder["resolutions"] = sorted({int(side) for side in (sides if isinstance(sides, list) else [sides])})
    folder["repeats"] = int(given.take("num_repeats", 1))
    folder["caption_dropout"] = float(given.take("caption_dropout_rate", 0.0))
    folder["shuffle_tags"] = bool(given.take("shuffle_tokens", False))
    if given.take("is_reg", False):
        folder["regularisation"] = "learn"
    elif trigger:
        folder["trigger_word"] = str(trigger)
    frames = int(given.take("num_frames", 1) or 1)
    if frames > 1:
        folder["frames"] = [frames]
    if masks := given.take("mask_path"):
        folder["masks"] = masks
    if control := given.take("control_path"):
        folder["control"] = control
    given.leave("captions are read from .txt and .caption files", "caption_ext")
    given.leave("lorapod always caches", "cache_latents_to_disk", "cache_latents")
    given.leave_rest()
    return folder


def _one_of(given: Given, name: str, choices: tuple[str, ...]) -> Any:
    value = given.peek(name)
    if value in choices:
        return given.take(name)
    given.leave(f"lorapod has {', '.join(choices)}", name)
    return "constant"


def _float(value: Any) -> float | None:
    return None if value is None else float(value)

"""A recipe out of diffusion-pipe's main TOML and its dataset TOML. Defaults are those of its sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tomlkit

from lorapod.errors import LorapodError, RequestError
from lorapod.models import Entry, catalogue
from lorapod.recipe import Recipe, presets
from lorapod.trainers.diffusion_pipe.dialect import DiffusionPipe
from lorapod.trainers.diffusion_pipe.interface import check_own
from lorapod.trainers.diffusion_pipe.models import OPTIMIZERS
from lorapod.trainers.diffusion_pipe.render import DATASET
from lorapod.trainers.imports.notes import IN_ITS_WORDS, Fate, Given, Imported, put, same
from lorapod.trainers.rendering import RenderContext

_KINDS = {
    "adamw": "adamw", "adamw_optimi": "adamw", "stableadamw": "adamw", "adamw8bit": "adamw-8bit",
    "adamw8bitkahan": "adamw-8bit", "prodigy": "prodigy",
}  # fmt: skip
_TABLES = ("model", "adapter", "optimizer", "monitoring")
_FETCHED = "lorapod fetches the base model and says where it is"
_PLACES = (
    "ckpt_path", "diffusers_path", "checkpoint_path", "transformer_path", "llm_path", "vae_path", "text_encoder_path",
    "diffusion_model", "vae", "text_encoders", "single_file_path",
)  # fmt: skip
_OURS = {
    "main": {"output_dir", "dataset", "eval_datasets"},
    "model": {"type", "merge_adapters", *_PLACES},
    "adapter": {"type", "rank"},
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "main": {
        "gradient_accumulation_steps": 1, "micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0, "warmup_steps": 0,
        "lr_scheduler": "constant", "uncond_fraction": 0.0, "activation_checkpointing": False, "pipeline_stages": 1,
        "video_clip_mode": "single_beginning", "caching_batch_size": 1, "steps_per_print": 1, "logging_steps": 1,
    },
    "model": {"timestep_sample_method": "logit_normal"},
    "adapter": {"dropout": 0.0},
    "dataset": {"enable_ar_bucket": False, "frame_buckets": [1]},
}  # fmt: skip
"""What it takes where a key is left out."""


def read(main: Mapping[str, Any], dataset: Mapping[str, Any], base: str | None, name: str) -> Imported:
    """The recipe of a main TOML and a dataset TOML.

    Args:
        base: The base model, where the files do not tell.
        name: Of the recipe, where the files do not tell.

    Raises:
        RequestError: It cannot be told what base model it is, or it is no LoRA.
    """
    if "adapter" not in main:
        raise RequestError("It trains the whole model", "It has no [adapter] table.", "lorapod trains LoRAs.")
    imported = Imported({"trainer": "diffusion-pipe"})
    recipe = imported.recipe
    top, model, adapter, optimizer = (
        Given({k: v for k, v in main.items() if not isinstance(v, Mapping)}, "", imported),
        Given(main.get("model", {}), "model", imported),
        Given(main["adapter"], "adapter", imported),
        Given(main.get("optimizer", {}), "optimizer", imported),
    )
    recipe["name"] = re.sub(r"[^\w .-]+", "-", PurePosixPath(str(top.peek("output_dir", ""))).name).strip() or name
    found = base or _base_of(main["model"], any("control_path" in each for each in dataset.get("directory", [])))
    recipe["base_model"] = {"name": found}
    top.leave("a run has a folder of its own in the workspace", "output_dir")
    top.take("dataset")
    top.leave(
        "lorapod holds items of the datasets out itself (`validation_share`)", "eval_datasets", "eval_every_n_epochs",
        "eval_every_n_steps", "eval_every_n_examples", "eval_before_first_step", "eval_micro_batch_size_per_gpu",
        "eval_gradient_accumulation_steps", "image_eval_micro_batch_size_per_gpu", "eval_image_micro_batch_size_per_gpu",
        "disable_block_swap_for_eval",
    )  # fmt: skip
    steps, epochs = top.peek("max_steps"), top.peek("epochs")
    put(recipe, "training.steps" if steps else "training.epochs", steps or epochs)
    batch = top.peek("micro_batch_size_per_gpu", 1)
    put(recipe, "training.batch_size", batch if isinstance(batch, int) else batch[0][1])
    put(recipe, "training.accumulation", top.peek("gradient_accumulation_steps", 1))
    put(recipe, "training.gradient_checkpointing", bool(top.peek("activation_checkpointing", False)))
    put(recipe, "training.precision", "fp32" if model.peek("dtype") == "float32" else "bf16")
    put(recipe, "training.swap_blocks", int(top.peek("blocks_to_swap", 0)))
    held = model.peek("transformer_dtype", model.peek("dtype"))
    put(
        recipe, "base_model.quantize", {"float8": "fp8", model.peek("dtype"): "none"}.get(held)
    )  # else in its own words
    put(recipe, "optimizer.clip_norm", top.peek("gradient_clipping", 1.0))
    put(recipe, "optimizer.schedule", top.peek("lr_scheduler", "constant"))
    put(recipe, "optimizer.warmup_steps", top.peek("warmup_steps", 0))
    recipe["saving"] = {
        "checkpoint_every": 0,
        "lora_every": top.peek("save_every_n_steps", 0),
        "precision": "fp32" if top.peek("save_dtype") == "float32" else "bf16",
    }
    _model(recipe, model, found)
    _adapter(recipe, adapter)
    kind = str(optimizer.peek("type", "adamw_optimi"))
    put(recipe, "optimizer.kind", _KINDS.get(kind.lower(), "adamw"))
    put(recipe, "optimizer.learning_rate", optimizer.peek("lr") or optimizer.peek("learning_rate"))
    put(recipe, "optimizer.betas", optimizer.peek("betas"))
    put(recipe, "optimizer.weight_decay", optimizer.peek("weight_decay"))
    _datasets(imported, dataset, top, found)
    for key, value in main.items():
        if isinstance(value, Mapping) and key not in _TABLES:
            imported.note(key, dict(value), Fate.LEFT, "diffusion-pipe has no such table")
    if "monitoring" in main:
        Given(main["monitoring"], "monitoring", imported).leave_rest("lorapod follows the run itself")
    _settle(imported, main, dataset)
    return imported


def _base_of(model: Mapping[str, Any], edits: bool) -> str:
    """The base model of a [model] table; `edits`: the data has control pictures."""
    kind = str(model.get("type", ""))
    told = " ".join(str(model.get(key, "")) for key in _PLACES).casefold()
    if kind == "flux" and (edits or "kontext" in told):
        return "flux-kontext-dev"
    if kind == "qwen_image" and (edits or "edit" in told):
        raise RequestError(
            "lorapod has no base model for this: the first Qwen-Image-Edit",
            "diffusion-pipe shows its text encoder the control picture as that one is shown it, not as later ones are.",
            "Write a recipe for qwen-image-edit-2509, which builtin and musubi train.",
        )
    if kind in ("flux", "sdxl", "qwen_image"):
        return {"flux": "flux-dev", "sdxl": "sdxl", "qwen_image": "qwen-image"}[kind]
    if kind == "z_image":
        return "z-image-turbo" if "turbo" in told or model.get("merge_adapters") else "z-image"
    if kind == "wan":
        clips = "i2v" if re.search(r"i2v", told) else "t2v"
        if re.search(r"ti2v|5b", told):
            return "wan2.2-ti2v-5b"
        if re.search(r"2[._]2|a14b", told):
            lowest, highest = float(model.get("min_t", 0.0)), float(model.get("max_t", 1.0))
            expert = "high" if "high" in told or lowest > 0.5 else "low" if "low" in told or highest < 1 else ""
            if expert:
                return f"wan2.2-{clips}-a14b-{expert}"
        if "14b" in told:
            return "wan2.1-i2v-14b-480p" if clips == "i2v" else "wan2.1-t2v-14b"
        if re.search(r"1[._]?3b", told):
            return "wan2.1-t2v-1.3b"
    known = ", ".join(name for name, entry in catalogue().items() if "diffusion-pipe" in entry.trainers)
    raise RequestError(
        "It cannot be told which base model this is for",
        f"Its type is {kind or 'not given'}, and its paths do not say more.",
        f"Name it with --base: {known}.",
    )


def _model(recipe: dict[str, Any], model: Given, base: str) -> None:
    if base == "sdxl":
        put(recipe, "training.timestep_sampling", "uniform")
        put(recipe, "training.min_snr_gamma", model.peek("min_snr_gamma"))
    else:
        uniform = model.peek("timestep_sample_method", "logit_normal") == "uniform"
        put(recipe, "training.timestep_sampling", "uniform" if uniform else "logit-normal")
        put(recipe, "training.timestep_shift", float(model.peek("shift") or 1.0))
        put(recipe, "training.resolution_shift", bool(model.peek("flux_shift")) and not model.peek("shift"))
    merged = model.peek("merge_adapters") or []
    put(recipe, "base_model.training_adapter", "catalogue" if merged else "none")
    if merged:
        name = PurePosixPath(str(merged[0])).name
        model.take("merge_adapters", why=f"the one that comes with the base model is merged, in place of {name}")
    model.leave(_FETCHED, *_PLACES)
    model.take("type")


def _adapter(recipe: dict[str, Any], adapter: Given) -> None:
    put(recipe, "adapter.kind", adapter.take("type", "lora"))
    put(recipe, "adapter.rank", adapter.take("rank"))
    put(recipe, "adapter.dropout", adapter.peek("dropout", 0.0))
    put(recipe, "adapter.targets", "all")  # it adapts every linear layer of a block


def _datasets(imported: Imported, dataset: Mapping[str, Any], top: Given, base: str) -> None:
    entry = catalogue().get(base)
    folders = []
    for number, directory in enumerate(dataset.get("directory", [])):
        given = Given(directory, f"directory.{number}", imported)
        repeats = directory.get("num_repeats", dataset.get("num_repeats", 1))
        whole = max(1, round(float(repeats)))
        if not same(repeats, whole):
            given.take("num_repeats", why=f"lorapod repeats whole times: {whole}")
        folder: dict[str, Any] = {"path": given.take("path"), "repeats": whole}
        sides = directory.get("resolutions", dataset.get("resolutions", [1024]))
        squares = sorted({round((s[0] * s[1]) ** 0.5) if isinstance(s, list) else int(s) for s in sides})
        folder["resolutions"] = squares
        folder["caption_prefix"] = directory.get("caption_prefix", dataset.get("caption_prefix", ""))
        folder["caption_dropout"] = top.peek("uncond_fraction", 0.0)
        folder["validation_share"] = 0.0
        if entry is not None and entry.modality == "clip":
            frames = [f for f in directory.get("frame_buckets", dataset.get("frame_buckets", [1])) if f > 1] or [1]
            step = entry.geometry.frame_step if entry.geometry and entry.geometry.frame_step else 1
            folder["frames"] = sorted({f - (f - 1) % step for f in frames})
            folder["clip_windows"] = "middle" if top.peek("video_clip_mode") == "single_middle" else "head"
        if masks := given.take("mask_path"):
            folder["masks"] = masks
        if control := given.take("control_path"):
            folder["control"] = control
        if not directory.get("skip_empty_caption", dataset.get("skip_empty_caption", True)):
            folder["allow_missing_captions"] = True
        folders.append(folder)
        for key in ("num_repeats", "resolutions", "frame_buckets", "caption_prefix", "skip_empty_caption"):
            given.take(key)
        given.leave_rest(
            "lorapod has no word for it in one folder; set it for all in `dataset` of the trainer's options"
        )
    imported.recipe["datasets"] = folders


def _settle(imported: Imported, main: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
    """Renders the recipe back, and keeps in diffusion-pipe's own words what would come out otherwise."""
    recipe = Recipe.model_validate(presets.fill(imported.recipe))
    entry = catalogue()[recipe.base_model.name]
    rendering = DiffusionPipe().render(recipe, entry, _context(entry, len(recipe.datasets)))
    texts = {file.path: tomlkit.parse(file.text).unwrap() for file in rendering.files}
    ours = next(text for path, text in texts.items() if path.name.startswith("main"))
    options: dict[str, Any] = {}
    tables = {
        "main": (main, ours),
        "model": (main.get("model", {}), ours["model"]),
        "adapter": (main["adapter"], ours["adapter"]),
        "dataset": (dataset, texts[DATASET]),
    }
    for name, (theirs, mine) in tables.items():
        kept = options if name == "main" else {}
        for key, value in theirs.items():
            if (
                isinstance(value, Mapping)
                or key in _OURS.get(name, ())
                or key == "directory"
                or _noted(imported, name, key)
            ):
                continue
            label = key if name == "main" else f"{name}.{key}"
            if key in mine and same(mine[key], value):
                imported.note(label, value, Fate.CARRIED)
            else:
                _keep(imported, kept, name, key, value, entry)
        for key, value in mine.items():
            default = _DEFAULTS[name].get(key, value) if key not in theirs else value
            if not same(default, value):
                kept[key] = default
        if kept and name != "main":
            options[name] = kept
    _optimizer(imported, options, main.get("optimizer", {}), ours["optimizer"])
    if options:
        imported.recipe["trainer_options"] = {"diffusion-pipe": options}


def _noted(imported: Imported, table: str, key: str) -> bool:
    label = key if table == "main" else f"{table}.{key}"
    return any(note.key == label for note in imported.notes)


def _keep(imported: Imported, kept: dict[str, Any], table: str, key: str, value: Any, entry: Entry) -> None:
    """Keeps a key in the trainer's own words, where it reads such a key."""
    label = key if table == "main" else f"{table}.{key}"
    own = {key: value} if table == "main" else {table: {key: value}}
    try:
        check_own(own, str(entry.trainers["diffusion-pipe"].options["type"]), "")
    except LorapodError as error:
        imported.note(label, value, Fate.LEFT, error.what)
        return
    kept[key] = value
    imported.note(label, value, Fate.CARRIED, IN_ITS_WORDS)


def _optimizer(imported: Imported, options: dict[str, Any], theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    is_same = all(same(theirs.get(key), value) for key, value in mine.items() if key in theirs)
    is_whole = set(theirs) <= set(mine) and str(mine["type"]).lower() == str(theirs.get("type", "")).lower()
    if not (is_same and is_whole and str(theirs.get("type")) in OPTIMIZERS.values()):
        options["optimizer"] = {key: value for key, value in theirs.items() if key != "lr"}
    for key, value in theirs.items():
        why = "" if key == "lr" or "optimizer" not in options else IN_ITS_WORDS
        imported.note(f"optimizer.{key}", value, Fate.CARRIED, why)


def _context(entry: Entry, datasets: int) -> RenderContext:
    files = {f"{spec.layout}/{spec.part}": Path(f"/m/{spec.part}") for spec in entry.files}
    files["single-files/training_adapter"] = Path("/m/adapter")
    data = [Path(f"/d/{number}") for number in range(datasets)]
    return RenderContext(Path("/r"), Path("/t"), Path("/t/python"), files, data, Path("/o"))

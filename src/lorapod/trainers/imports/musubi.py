"""A recipe out of musubi-tuner's dataset TOML and its command line, which is read and never run.

Two commands for the two experts of Wan 2.2 become one recipe for both where all else in them is alike.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorapod.errors import LorapodError, RequestError
from lorapod.models import Entry, catalogue
from lorapod.recipe import Recipe, presets
from lorapod.trainers.imports.notes import IN_ITS_WORDS, Fate, Given, Imported, put, same
from lorapod.trainers.musubi.interface import check_own, options_of
from lorapod.trainers.musubi.render import render
from lorapod.trainers.rendering import RenderContext

_SCRIPT = re.compile(r"(\w+?)_train_network\.py$")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_SETTING = re.compile(r"^(?:export +)?([A-Za-z_]\w*)=(.*)$", re.MULTILINE)
_PLAIN = re.compile(r"[\w./:=,+-]+")
_FAMILIES = {
    "wan": "wan", "qwen_image": "qwen_image", "zimage": "z_image", "flux_kontext": "flux", "flux_2": "flux2",
}  # fmt: skip
_VERSIONS = {
    ("qwen_image", "original"): "qwen-image", ("qwen_image", "edit-2509"): "qwen-image-edit-2509",
    ("flux2", "klein-base-4b"): "flux2-klein-base-4b",
}  # fmt: skip
"""Base models of families that are told apart by `--model_version`."""
_BY_SIZE = ("qwen_shift", "flux_shift", "flux2_shift")
_FORMER = {
    "flux_kontext_no_resize_control": "no_resize_control", "qwen_image_edit_no_resize_control": "no_resize_control",
    "qwen_image_edit_control_resolution": "control_resolution",
}  # fmt: skip
"""What it called keys of a dataset before."""
_OPTIMIZERS = {
    "adamw": "adamw", "adamw8bit": "adamw-8bit", "bitsandbytes.optim.adamw8bit": "adamw-8bit", "prodigy": "prodigy",
    "prodigyopt.prodigy": "prodigy", "adafactor": "adafactor",
}  # fmt: skip
_PLACES = (
    "dit", "dit_high_noise", "vae", "t5", "clip", "text_encoder", "text_encoder1", "text_encoder2", "base_weights",
    "base_weights_multiplier",
)  # fmt: skip
_OURS = {"dataset_config", "output_dir", "output_name", "logging_dir", "log_with", "metadata_title", "sample_prompts",
         "config_file", "network_module", "task", "max_train_steps", "max_train_epochs", *_PLACES}  # fmt: skip
_WINDOWS = {"head": "head", "uniform": "uniform", "chunk": "every"}


def read(commands: Sequence[Sequence[str]], dataset: Mapping[str, Any], base: str | None, name: str) -> Imported:
    """The recipe of command lines and a dataset TOML.

    Args:
        commands: Of `command_lines`.

    Raises:
        RequestError: There is no such command line, or it cannot be told what base model it is for.
    """
    found = [options_in(argv) for argv in commands]
    if not found:
        raise RequestError(
            "There is no command line of musubi-tuner's training",
            "A line with `…_train_network.py` and its options is looked for.",
            "Give the script that starts it, or a text file with the command.",
        )
    family, options = found[0]
    bases = [base or base_of(each[0], each[1]) for each in found]
    if len(found) > 1:
        _refuse_unlike(found)
    return of_options(family, options, dataset, _one_base(bases), name)


def _one_base(bases: Sequence[str]) -> str:
    stems = {each.removesuffix("-high").removesuffix("-low") for each in bases}
    if len(set(bases)) == 1:
        return bases[0]
    if len(stems) == 1 and len(bases) == 2:
        return stems.pop()
    raise RequestError(
        "The command lines train different base models", ", ".join(bases) + ".", "Import them one by one."
    )


def _refuse_unlike(found: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    apart = {
        "dit",
        "output_dir",
        "output_name",
        "metadata_title",
        "seed",
        "min_timestep",
        "max_timestep",
        "logging_dir",
    }
    first = {key: value for key, value in found[0][1].items() if key not in apart}
    for _, other in found[1:]:
        second = {key: value for key, value in other.items() if key not in apart}
        if first != second:
            differing = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
            raise RequestError(
                "The command lines differ in more than the expert",
                f"In {', '.join(differing)}.",
                "Import them one by one.",
            )


def command_lines(text: str) -> list[list[str]]:
    """The words of each command in a text that starts a training script; lines that end in a backslash go on.

    A variable that the text itself sets to a plain value is filled in; nothing is run.
    """
    found = []
    joined = re.sub(r"\\\r?\n", " ", text)
    values = _plain_values(joined)
    for line in joined.splitlines():
        if "_train_network.py" not in line or line.lstrip().startswith("#"):
            continue
        line = _VARIABLE.sub(lambda match: values.get(match[1] or match[2], match[0]), line)
        if unknown := re.findall(r"\$\([^)]*\)?|`[^`]*`?|\$\{[^}]*\}?|\$\w+", line):
            raise RequestError(
                "The command line holds shell variables",
                f"{', '.join(dict.fromkeys(unknown))}: the file does not set them to a plain value, once.",
                "Write their values out; nothing is run here.",
            )
        try:
            found.append(shlex.split(line, comments=True))
        except ValueError as error:
            raise RequestError("The command line cannot be read", f"{error}: {line.strip()[:200]}", "") from error
    return found


def _plain_values(text: str) -> dict[str, str]:
    """The values of variables that are set to one word alone, on a line that is in no branch and no loop."""
    given: dict[str, list[str]] = {}
    for name, value in _SETTING.findall(text):
        given.setdefault(name, []).append(value)
    plain = {}
    for name, values in given.items():
        with suppress(ValueError):
            words = shlex.split(values[0], comments=True)
            if len(set(values)) == 1 and len(words) == 1 and _PLAIN.fullmatch(words[0]):
                plain[name] = words[0]
    return plain


def options_in(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Family and options of a command, each as the trainer's parser would take it."""
    at = next(i for i, word in enumerate(argv) if _SCRIPT.search(word))
    script = _SCRIPT.search(argv[at])
    assert script is not None
    family = _FAMILIES.get(script[1].rpartition("/")[2])
    if family is None:
        raise RequestError(f"lorapod does not know musubi-tuner's {script[0]}", "", f"Known: {', '.join(_FAMILIES)}.")
    known = options_of("train", family)
    options: dict[str, Any] = {}
    option = ""
    for word in argv[at + 1 :]:
        if word in ("&", "&&", ";", "|", ">", "2>&1"):
            break
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            options[option] = _typed(value, known.get(option, "")) if equals else True
        elif option:
            value = _typed(word, known.get(option, ""))
            before = options[option]
            options[option] = [value] if before is True and known.get(option, "").endswith("...") else (
                value if before is True else [*(before if isinstance(before, list) else [before]), value]
            )  # fmt: skip
    return family, options


def _typed(text: str, takes: str) -> Any:
    kind = takes.removesuffix("...")
    try:
        return int(text) if kind == "int" else float(text) if kind == "float" else text
    except ValueError:
        return text


def base_of(family: str, options: Mapping[str, Any]) -> str:
    """The base model of a command.

    Raises:
        RequestError: lorapod has no such base model.
    """
    told = str(options.get("dit", "")).casefold()
    if family == "z_image":
        return "z-image-turbo" if "turbo" in told or options.get("base_weights") else "z-image"
    if family == "flux":
        return "flux-kontext-dev"
    if family in ("qwen_image", "flux2"):
        flags = "edit-2509" if options.get("edit_plus") else "edit" if options.get("edit") else "original"
        version = str(options.get("model_version", "dev" if family == "flux2" else flags)).lower()
        if (family, version) not in _VERSIONS:
            known = ", ".join(f"{name} ({each})" for (of, each), name in _VERSIONS.items() if of == family)
            raise RequestError(
                f"lorapod has no base model for the model version {version}",
                f"Known: {known}.",
                "Name one with --base.",
            )
        return _VERSIONS[family, version]
    task = str(options.get("task", "t2v-14B"))
    clips = task[:3]
    if task.endswith("A14B"):
        if "dit_high_noise" in options:
            return f"wan2.2-{clips}-a14b"
        high = "high" in told or int(options.get("min_timestep") or 0) >= 500
        low = "low" in told or (options.get("max_timestep") is not None and int(options["max_timestep"]) < 1000)
        return f"wan2.2-{clips}-a14b-{'high' if high else 'low'}" if high or low else f"wan2.2-{clips}-a14b"
    found = {"t2v-1.3B": "wan2.1-t2v-1.3b", "t2v-14B": "wan2.1-t2v-14b", "i2v-14B": "wan2.1-i2v-14b-480p"}.get(task)
    if found is None:
        raise RequestError(f"lorapod has no base model for the task {task}", "", "Name one with --base.")
    return found


def of_options(family: str, options: Mapping[str, Any], dataset: Mapping[str, Any], base: str, name: str) -> Imported:
    """The recipe of a command's options and a dataset TOML."""
    if base not in catalogue():
        raise RequestError(f"There is no base model {base!r}", "", "`lorapod models list` names them.")
    imported = Imported({"trainer": "musubi"})
    recipe, given = imported.recipe, Given(options, "", imported)
    recipe["name"] = re.sub(r"[^\w .-]+", "-", str(given.take("output_name", name))).strip() or name
    recipe["base_model"] = {"name": base}
    put(recipe, "base_model.training_adapter", "catalogue" if given.peek("base_weights") else "none")
    given.leave("lorapod fetches the base model and says where it is", *_PLACES)
    given.take("dataset_config")
    given.leave("a run has a folder of its own in the workspace", "output_dir", "logging_dir", "log_with")
    given.leave("`previews.prompts` says what is drawn", "sample_prompts")
    given.leave("follows from the base model", "network_module", "task", "edit", "edit_plus")
    given.leave("lorapod writes what it knows into a LoRA's header itself", "metadata_title", "metadata_author")
    put(recipe, "adapter.rank", given.peek("network_dim", 4))
    put(recipe, "adapter.alpha", float(given.peek("network_alpha", 1)))
    put(recipe, "adapter.dropout", float(given.peek("network_dropout") or 0.0))
    put(recipe, "adapter.targets", "attention+feed-forward")
    put(recipe, "optimizer.kind", _OPTIMIZERS.get(str(given.peek("optimizer_type", "")).casefold(), "adamw"))
    put(recipe, "optimizer.learning_rate", float(given.peek("learning_rate", 2e-6)))
    _optimizer_args(recipe, given.peek("optimizer_args") or [])
    schedule = str(given.peek("lr_scheduler", "constant"))
    known = {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine", "linear": "linear"}
    put(recipe, "optimizer.schedule", known.get(schedule, "constant"))
    warmup = given.peek("lr_warmup_steps", 0)
    put(recipe, "optimizer.warmup_steps", int(warmup) if str(warmup).isdigit() else 0)
    put(recipe, "optimizer.clip_norm", float(given.peek("max_grad_norm", 1.0)))
    epochs = given.take("max_train_epochs")
    steps = given.take("max_train_steps", 1600)
    put(recipe, "training.epochs" if epochs else "training.steps", int(epochs or steps))
    put(recipe, "training.accumulation", int(given.peek("gradient_accumulation_steps", 1)))
    put(recipe, "training.gradient_checkpointing", bool(given.peek("gradient_checkpointing", False)))
    put(recipe, "training.precision", "fp32" if given.peek("mixed_precision", "no") == "no" else "bf16")
    put(recipe, "training.swap_blocks", int(given.peek("blocks_to_swap", 0) or 0))
    fp8 = bool(given.peek("fp8_base", False)), bool(given.peek("fp8_scaled", False))
    put(recipe, "base_model.quantize", {(True, True): "fp8", (False, False): "none"}.get(fp8))  # else in its own words
    put(recipe, "training.seed", given.peek("seed"))
    sampling = given.peek("timestep_sampling", "sigma")
    put(recipe, "training.timestep_sampling", "uniform" if sampling in ("uniform", "sigma") else "logit-normal")
    shift = float(given.peek("discrete_flow_shift", 1.0)) if sampling == "shift" else 1.0
    put(recipe, "training.timestep_shift", shift)
    put(recipe, "training.resolution_shift", sampling in _BY_SIZE)
    recipe["saving"] = {
        "checkpoint_every": int(given.peek("save_every_n_steps", 0)) if given.peek("save_state") else 0,
        "lora_every": int(given.peek("save_every_n_steps", 0)),
        "precision": "bf16" if given.peek("save_precision") == "bf16" else "fp32",
    }
    _datasets(imported, dataset, catalogue()[base])
    _settle(imported, options, given, family)
    return imported


def _optimizer_args(recipe: dict[str, Any], arguments: Sequence[str]) -> None:
    for argument in arguments if isinstance(arguments, list) else [arguments]:
        key, _, value = str(argument).partition("=")
        if key == "weight_decay":
            put(recipe, "optimizer.weight_decay", float(value))
        elif key == "betas":
            put(recipe, "optimizer.betas", [float(part) for part in value.strip("()[] ").split(",")])


def _datasets(imported: Imported, dataset: Mapping[str, Any], entry: Entry) -> None:
    general = dict(dataset.get("general", {}))
    own: dict[str, Any] = {}
    folders: list[dict[str, Any]] = []
    for number, table in enumerate(dataset.get("datasets", [])):
        table = {_FORMER.get(key, key): value for key, value in table.items()}
        given = Given({**general, **table}, f"datasets.{number}", imported)
        path = given.take("video_directory") or given.take("image_directory")
        if path is None:
            raise RequestError(
                "A dataset is no folder",
                "It is listed in a JSON lines file.",
                "Put its files into a folder with captions.",
            )
        size = given.peek("resolution", [960, 544])
        width, height = size if isinstance(size, list) else (size, size)
        side = round((int(width) * int(height)) ** 0.5)
        is_square = int(width) == int(height)
        given.take("resolution", why="" if is_square else f"buckets keep the area of a square of {side}")
        folder: dict[str, Any] = {
            "path": path, "repeats": int(given.take("num_repeats", 1)), "resolutions": [side],
            "caption_dropout": 0.0, "validation_share": 0.0,
        }  # fmt: skip
        if frames := given.take("target_frames"):
            folder["frames"] = sorted({int(f) for f in frames})
            how = given.peek("frame_extraction", "head")
            if how in _WINDOWS:
                folder["clip_windows"] = _WINDOWS[given.take("frame_extraction", "head")]
            else:
                folder["clip_windows"] = "every"
                given.take("frame_extraction", why="lorapod takes stretches one after the other in its place")
            if folder["clip_windows"] == "uniform":
                folder["windows_per_clip"] = int(given.take("frame_sample", 1))
        put(imported.recipe, "training.batch_size", int(given.take("batch_size", 1)))
        given.take("caption_extension")
        if not given.peek("enable_bucket", False):
            given.table["enable_bucket"] = False
        for key in ("enable_bucket", "bucket_no_upscale"):
            if key in given.table and not same(given.peek(key), key == "enable_bucket"):
                own[key] = given.peek(key)
            given.take(key)
        given.leave("caches belong to the run", "cache_directory")
        given.leave("lorapod reads it off the clips", "source_fps")
        if control := given.take("control_directory"):
            own |= _of_controls(given, own, entry, any("control" in each for each in folders))
            folder["control"] = control
        given.leave_rest()
        twin = next((f for f in folders if {**f, "resolutions": []} == {**folder, "resolutions": []}), None)
        if twin is None:
            folders.append(folder)
        else:
            twin["resolutions"] = sorted({*twin["resolutions"], side})
    imported.recipe["datasets"] = folders
    if own:
        put(imported.recipe, "trainer_options.musubi.dataset", own)


def _of_controls(given: Given, own: Mapping[str, Any], entry: Entry, is_told: bool) -> dict[str, Any]:
    """What a dataset says of the size of its control pictures, where it is not what is rendered anyhow.

    Args:
        own: What another dataset said, which all are told alike.
        is_told: Whether there was another.
    """
    size = given.peek("control_resolution", [])
    said = {"control_resolution": [size, size] if isinstance(size, int) else list(size)}
    said["no_resize_control"] = given.peek("no_resize_control", False)
    support = entry.trainers.get("musubi")
    rendered = {"control_resolution": support.options.get("control_resolution", []) if support else []}
    rendered["no_resize_control"] = False
    found = {}
    for key, value in said.items():
        now = own.get(key, rendered[key]) if is_told else value
        if not same(now, rendered[key]):
            found[key] = now
        given.take(key, why="" if same(now, value) else f"all datasets are told the same, {now}")
    return found


def _settle(imported: Imported, options: Mapping[str, Any], given: Given, family: str) -> None:
    """Renders the recipe back, and keeps in musubi-tuner's own words what would come out otherwise."""
    recipe = Recipe.model_validate(presets.fill(imported.recipe))
    entry = catalogue()[recipe.base_model.name]
    files = {f"{spec.layout}/{spec.part}": Path(f"/m/{spec.part}") for spec in entry.files}
    files["single-files/training_adapter"] = Path("/m/adapter")
    data = [Path(f"/d/{number}") for number in range(len(recipe.datasets))]
    context = RenderContext(Path("/r"), Path("/t"), Path("/t/python"), files, data, Path("/o"))
    plain = recipe.model_copy(update={"trainer_options": {}})
    stage = next(each for each in render(plain, entry, context).stages if each.name.startswith("train"))
    mine = options_in(stage.argv)[1]
    kept: dict[str, Any] = {}
    for key, value in given.table.items():
        if key in _OURS:
            continue
        if key in mine and _alike(mine[key], value):
            imported.note(key, value, Fate.CARRIED)
            continue
        try:
            check_own({"train": {key: value}}, family)
        except LorapodError as error:
            imported.note(key, value, Fate.LEFT, error.what)
            continue
        kept[key] = value
        imported.note(key, value, Fate.CARRIED, IN_ITS_WORDS)
    attention = {"sdpa", "flash_attn", "xformers", "flash3"}
    extra = {"fp8_base", "fp8_scaled", "preserve_distribution_shape", "min_timestep", "max_timestep"} | attention
    for key, value in mine.items():
        if key in options or key in _OURS or key not in extra:
            continue
        if value is True and (key not in attention or attention & options.keys()):
            kept[key] = False
    for key in ("max_data_loader_n_workers", "persistent_data_loader_workers"):
        kept.pop(key, None) if kept.get(key) == mine.get(key) else None
    if kept:
        put(imported.recipe, "trainer_options.musubi.train", kept)


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, list) or isinstance(b, list):
        first, second = (each if isinstance(each, list) else [each] for each in (a, b))
        return sorted(map(str, first)) == sorted(map(str, second))
    return same(a, b)

"""What diffusion-pipe is given: every base model, the person's own options, and what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from lorapod import recipe as recipes
from lorapod.errors import BaseModelError, DatasetError, RequestError
from lorapod.models import catalogue
from lorapod.recipe import Recipe
from lorapod.trainers.data_view import DataViews
from lorapod.trainers.diffusion_pipe import render
from lorapod.trainers.diffusion_pipe.dialect import DiffusionPipe
from lorapod.trainers.diffusion_pipe.interface import interface, problems
from lorapod.trainers.locations import assumed_files
from lorapod.trainers.rendering import RenderContext, Rendering, ResumePoint, View
from lorapod.workspace import Workspace

MODELS = [name for name, entry in catalogue().items() if "diffusion-pipe" in entry.trainers]


def recipe_of(model: str, folder: Path, **sections: Any) -> Recipe:
    datasets = sections.pop("datasets", [{}])
    data = folder / "data"
    data.mkdir(exist_ok=True)
    raw = {
        "name": "zorb",
        "trainer": "diffusion-pipe",
        "base_model": {"name": model, **sections.pop("base_model", {})},
        "datasets": [{"path": str(data), **each} for each in datasets],
        **sections,
    }
    file = folder / "recipe.toml"
    file.write_text(tomlkit.dumps(raw), encoding="utf-8")
    return recipes.load(file)


def context_of(recipe: Recipe, folder: Path, **more: Any) -> RenderContext:
    files = assumed_files(recipe, catalogue()[recipe.base_model.name], Workspace(folder / "ws"))
    return RenderContext(
        folder=folder / "config",
        home=Path("/trainers/dp"),
        python=Path("/trainers/venv/bin/python"),
        model_files=files,
        data=[folder / f"view-{i}" for i in range(len(recipe.datasets))],
        output=folder / "output",
        **more,
    )


def rendered(model: str, folder: Path, context: dict[str, Any] | None = None, **sections: Any) -> Rendering:
    recipe = recipe_of(model, folder, **sections)
    return render(recipe, catalogue()[model], context_of(recipe, folder, **(context or {})))


def parsed(rendering: Rendering, name: str = "main.toml") -> dict[str, Any]:
    return tomlkit.parse(next(f.text for f in rendering.files if str(f.path) == name)).unwrap()


@pytest.mark.parametrize("model", MODELS)
def test_every_base_model_is_rendered_with_keys_that_are_read(model: str, tmp_path: Path) -> None:
    made = rendered(model, tmp_path, trainer_options={"diffusion-pipe": {"blocks_to_swap": 0, "map_num_proc": 2}})
    mains = [str(file.path) for file in made.files if str(file.path).startswith("main")]
    for name in mains:
        config, dataset = parsed(made, name), parsed(made, "dataset.toml")
        assert list(problems(config, dataset)) == []
        assert config["dataset"] == str(tmp_path / "config/dataset.toml")
        assert {"epochs", "output_dir"} <= set(config) and ("save_every_n_steps" in config)
        assert "alpha" not in config["adapter"] and config["adapter"]["rank"] in (16, 32)
        assert dataset["resolutions"] and dataset["min_ar"] < 1 < dataset["max_ar"]
        assert dataset["directory"][0]["path"] == str(tmp_path / "view-0")
    assert made.stages[0].name == "cache" and "--cache_only" in made.stages[0].argv
    assert len(made.stages) == 1 + len(mains)


def test_what_each_model_is_found_by(tmp_path: Path) -> None:
    ws = tmp_path / "ws/models"
    assert parsed(rendered("flux-dev", tmp_path))["model"] == {
        "type": "flux", "diffusers_path": str(ws / "flux-dev/diffusers"), "dtype": "bfloat16",
        "transformer_dtype": "float8", "timestep_sample_method": "logit_normal", "flux_shift": True,
    }  # fmt: skip
    wan = parsed(rendered("wan2.1-t2v-1.3b", tmp_path))["model"]
    assert wan["ckpt_path"] == str(ws / "wan2.1-t2v-1.3b/original") and wan["shift"] == 3.0
    assert wan["llm_path"].endswith("umt5_xxl_fp16.safetensors") and "transformer_dtype" not in wan
    turbo = parsed(rendered("z-image-turbo", tmp_path))["model"]
    assert turbo["text_encoders"] == [{"path": turbo["text_encoders"][0]["path"], "type": "lumina2"}]
    assert [Path(path).name for path in turbo["merge_adapters"]] == ["zimage_turbo_training_adapter_v2.safetensors"]
    sdxl = parsed(rendered("sdxl", tmp_path))["model"]
    assert sdxl["text_encoder_1_lr"] == 0.0 and sdxl["unet_lr"] == 1e-4 and sdxl["min_snr_gamma"] == 5.0


def test_an_expert_is_trained_in_its_range_alone_and_both_in_one_request_share_a_cache(tmp_path: Path) -> None:
    assert parsed(rendered("wan2.2-t2v-a14b-high", tmp_path))["model"]["min_t"] == 0.875
    low = parsed(rendered("wan2.2-t2v-a14b-low", tmp_path))["model"]
    assert (low["min_t"], low["max_t"]) == (0.0, 0.875)
    both = rendered("wan2.2-t2v-a14b", tmp_path)
    assert [stage.name for stage in both.stages] == ["cache", "train-high", "train-low"]
    high, low = parsed(both, "main-high.toml"), parsed(both, "main-low.toml")
    assert high["dataset"] == low["dataset"] and high["output_dir"] != low["output_dir"]
    assert (high["model"]["min_t"], high["model"]["max_t"]) == (0.875, 1.0)
    assert "high_noise" in high["model"]["transformer_path"] and "low_noise" in low["model"]["transformer_path"]
    only = rendered("wan2.2-t2v-a14b", tmp_path, base_model={"expert": "low"})
    assert [stage.name for stage in only.stages] == ["cache", "train-low"]


def test_the_length_is_in_epochs_of_the_data_so_that_a_schedule_ends_with_it(tmp_path: Path) -> None:
    sections = {"training": {"steps": 100}, "optimizer": {"schedule": "cosine"}}
    config = parsed(rendered("sdxl", tmp_path, {"steps_per_epoch": 30}, **sections))
    assert (config["epochs"], config["max_steps"]) == (4, 100)
    blind = rendered("sdxl", tmp_path, **sections)
    assert any("cosine" in note for note in blind.notes)


def test_datasets_keep_their_own_repeats_resolutions_and_frames(tmp_path: Path) -> None:
    views = [
        View(0, "clip", tmp_path / "clips", repeats=3),
        View(0, "picture", tmp_path / "stills", masks=tmp_path / "masks"),
        View(0, "clip", tmp_path / "held", held_out=True),
    ]
    made = rendered(
        "wan2.1-t2v-14b", tmp_path, {"views": views}, datasets=[{"resolutions": [480, 256], "frames": [81, 33]}]
    )
    clips, stills = parsed(made, "dataset.toml")["directory"]
    assert clips == {
        "path": str(tmp_path / "clips"), "resolutions": [256, 480], "num_repeats": 3, "frame_buckets": [33, 81]
    }  # fmt: skip
    assert stills["mask_path"] == str(tmp_path / "masks") and "frame_buckets" not in stills
    assert parsed(made, "evaluation.toml")["directory"][0]["path"] == str(tmp_path / "held")
    config = parsed(made)
    assert config["eval_datasets"] == [{"name": "held_out", "config": str(tmp_path / "config/evaluation.toml")}]
    assert config["eval_every_n_steps"] == 100


def test_a_small_gpu_gets_the_settings_for_24_gigabytes_and_the_persons_own_options_win(tmp_path: Path) -> None:
    small = {"gpu_gigabytes": 23.6}
    config = parsed(rendered("wan2.1-t2v-14b", tmp_path, small))
    assert (config["blocks_to_swap"], config["activation_checkpointing"]) == (32, "unsloth")
    own = {"blocks_to_swap": 4, "model": {"transformer_dtype": "bfloat16"}, "dataset": {"num_ar_buckets": 5}}
    made = rendered("wan2.1-t2v-14b", tmp_path, small, trainer_options={"diffusion-pipe": own})
    assert parsed(made)["blocks_to_swap"] == 4 and parsed(made)["model"]["transformer_dtype"] == "bfloat16"
    assert parsed(made, "dataset.toml")["num_ar_buckets"] == 5
    assert not any("fp8" in note for note in made.notes)
    assert "blocks_to_swap" not in parsed(rendered("wan2.1-t2v-14b", tmp_path, {"gpu_gigabytes": 80.0}))


def test_what_saves_memory_is_what_the_recipe_says(tmp_path: Path) -> None:
    left_open = parsed(rendered("wan2.1-t2v-14b", tmp_path))
    assert left_open["model"]["transformer_dtype"] == "float8" and left_open["activation_checkpointing"]
    given = rendered(
        "wan2.1-t2v-14b",
        tmp_path,
        {"gpu_gigabytes": 24.0},
        base_model={"quantize": "none"},
        training={"gradient_checkpointing": "off", "swap_blocks": 12},
    )
    config = parsed(given)
    assert "transformer_dtype" not in config["model"]
    assert config["activation_checkpointing"] is False and config["blocks_to_swap"] == 12
    assert "transformer_dtype" in parsed(rendered("z-image", tmp_path, base_model={"quantize": "fp8"}))["model"]


def test_targets_are_those_of_the_recipe(tmp_path: Path) -> None:
    assert "exclude_modules" not in parsed(rendered("wan2.1-t2v-14b", tmp_path))["adapter"]
    attention = parsed(rendered("wan2.1-t2v-14b", tmp_path, adapter={"targets": "attention"}))["adapter"]
    assert "ffn" in attention["exclude_modules"]
    assert "exclude_modules" not in parsed(rendered("flux-dev", tmp_path, adapter={"targets": "all"}))["adapter"]


def test_commands_name_the_gpus_the_port_and_what_to_go_on_with(tmp_path: Path) -> None:
    made = rendered(
        "sdxl",
        tmp_path,
        {"devices": "2,3", "gpus": 2, "port": 29617, "resume": {"train": ResumePoint("20260101_00-00-00")}},
    )
    cache, train = made.stages
    assert train.argv[:5] == [
        "/trainers/venv/bin/python",
        "-m",
        "deepspeed.launcher.runner",
        "--include",
        "localhost:2,3",
    ]
    assert train.argv[-2:] == ["--resume_from_checkpoint", "20260101_00-00-00"]
    assert cache.argv[cache.argv.index("--master_port") + 1] == "29617" and "--resume_from_checkpoint" not in cache.argv
    assert train.cwd == Path("/trainers/dp") and "NCCL_P2P_DISABLE" not in train.env
    assert "NCCL_P2P_DISABLE" in rendered("sdxl", tmp_path).stages[0].env


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"block_to_swap": 3}, "blocks_to_swap"),
        ({"target_frames": [81]}, "reads no key"),
        ({"model": {"min_r": 0.5}}, "min_t"),
        ({"rank": 4}, "belongs to the table `adapter`"),
        ({"blocks_to_swap": "many"}, "a whole number"),
        ({"blocks_to_swap": 39}, "38 at most"),
        ({"activation_checkpointing": "yes"}, "unsloth"),
        ({"output_dir": "/x"}, "cannot be set"),
        ({"monitoring": {"enable_wandb": True, "wandb_api_key": "k"}}, "copied into every folder"),
        ({"optimizer": {"type": "sgd", "beta": 1}}, "optimizer.beta"),
        ({"dataset": {"resolution": 512}}, "resolutions"),
    ],
)
def test_own_options_that_would_be_ignored_are_refused(own: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        rendered("wan2.1-t2v-14b", tmp_path, trainer_options={"diffusion-pipe": own})
    assert says in str(caught.value)


def test_an_optimizer_of_pytorch_optimizer_takes_what_the_person_gives(tmp_path: Path) -> None:
    own = {"optimizer": {"type": "CAME", "betas": [0.9, 0.99, 0.999]}}
    made = parsed(rendered("sdxl", tmp_path, optimizer={"kind": "adafactor"}, trainer_options={"diffusion-pipe": own}))
    assert made["optimizer"] == {"lr": 1e-4, "type": "CAME", "betas": [0.9, 0.99, 0.999]}


@pytest.mark.parametrize(
    ("model", "sections", "says"),
    [
        ("sdxl", {"adapter": {"rank": 16, "alpha": 8.0}}, "builtin and musubi"),
        ("sdxl", {"adapter": {"kind": "dora"}}, "dora"),
        ("flux-dev", {"adapter": {"kind": "lokr"}}, "LoKr"),
        ("flux-dev", {"optimizer": {"kind": "schedule-free"}}, "schedule-free"),
        ("wan2.1-t2v-14b", {"datasets": [{"clip_windows": "every"}]}, "several stretches"),
        ("wan2.1-t2v-14b", {"datasets": [{"frames": [80]}]}, "77 or 81"),
        ("wan2.1-t2v-14b", {"datasets": [{"caption_dropout": 0.1}, {"caption_dropout": 0.0}]}, "one `caption_dropout`"),
        ("sdxl", {"datasets": [{"resolutions": [256, 512, 768, 1024]}]}, "more than 3"),
        ("wan2.2-ti2v-5b", {"training": {"first_frame_share": 0.5}}, "first frames"),
        ("flux-dev", {"training": {"timestep_shift": 3.0}}, "not by both"),
        ("wan2.1-t2v-14b", {"base_model": {"expert": "high"}}, "one denoiser"),
        ("flux-dev", {"saving": {"formats": ["diffusers"]}}, "lora convert"),
        ("flux-dev", {"datasets": [{"control": "."}]}, "takes no control pictures"),
        (
            "flux-kontext-dev",
            {"datasets": [{"control": "."}, {}], "training": {"batch_size": 2}},
            "builtin can",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_with_who_can(
    model: str, sections: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError) as caught:
        rendered(model, tmp_path, **sections)
    assert says in str(caught.value)


def test_a_base_model_that_it_does_not_train_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of("sdxl", tmp_path)
    with pytest.raises(BaseModelError):
        render(recipe, catalogue()["demo"], context_of(recipe, tmp_path))


def test_the_table_holds_no_key_twice_and_says_what_each_takes() -> None:
    words = ("int", "float", "bool", "str", "table", "one of ")
    flat = json.loads(json.dumps(interface()))
    for table in ("main", "adapter", "monitoring", "dataset", "directory"):
        for key, takes in flat[table].items():
            assert all(each.rstrip(".").startswith(words) for each in takes.split(" | ")), key


def test_kontext_is_given_control_pictures_beside_its_items_or_none(tmp_path: Path) -> None:
    made = parsed(rendered("flux-kontext-dev", tmp_path, datasets=[{"control": str(tmp_path)}, {}]), "dataset.toml")
    assert [each.get("control_path") for each in made["directory"]] == [f"{tmp_path}/view-0-control", None]
    views = [
        View(0, "picture", Path("/v/a"), controls=Path("/v/a-control")),
        View(0, "picture", Path("/v/b"), held_out=True, controls=Path("/v/b-control")),
    ]
    both = rendered("flux-kontext-dev", tmp_path, {"views": views}, datasets=[{"control": str(tmp_path)}])
    assert parsed(both, "dataset.toml")["directory"][0]["control_path"] == "/v/a-control"
    assert parsed(both, "evaluation.toml")["directory"][0]["control_path"] == "/v/b-control"
    assert list(problems(parsed(both), parsed(both, "dataset.toml"))) == []


def test_clips_that_would_hang_a_model_of_pictures_are_refused(tmp_path: Path) -> None:
    recipe = recipe_of("flux-kontext-dev", tmp_path)
    views = DataViews([View(0, "clip", Path("/v/a"), items=2)], [[]], "")
    with pytest.raises(DatasetError, match="pictures alone, and the data holds 2 clips"):
        DiffusionPipe().measure(recipe, catalogue()["flux-kontext-dev"], context_of(recipe, tmp_path), views)

"""What is rendered for musubi-tuner, held against the committed table of its interface."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorapod import recipe as recipes
from lorapod.errors import RequestError
from lorapod.models import catalogue
from lorapod.trainers.musubi.interface import interface, options_of
from lorapod.trainers.musubi.render import render
from lorapod.trainers.rendering import RenderContext, Rendering, ResumePoint, View

MODELS = sorted(name for name, entry in catalogue().items() if "musubi" in entry.trainers)
Render = Callable[..., Rendering]


@pytest.fixture
def rendered(tmp_path: Path) -> Render:
    def make(
        model: str,
        *changes: str,
        own: dict[str, Any] | None = None,
        views: list[View] | None = None,
        resume: dict[str, ResumePoint] | None = None,
    ) -> Rendering:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        file = tmp_path / "recipe.toml"
        entry = catalogue()[model]
        takes = entry.trainers["musubi"].control
        (tmp_path / "before").mkdir(exist_ok=True)
        control = 'control = "before"\n' if takes and takes.least else ""
        file.write_text(
            f'name = "zorb"\n[base_model]\nname = "{model}"\n[[datasets]]\npath = "data"\n{control}', encoding="utf-8"
        )
        files = {f"{spec.layout}/{spec.part}": Path(f"/m/{spec.part}.safetensors") for spec in entry.files}
        context = RenderContext(
            Path("/run/config"), Path("/musubi"), Path("/musubi/.venv/bin/python"), files, [data], Path("/run/output"),
            views=views or [], resume=resume or {},
        )  # fmt: skip
        recipe = recipes.load(file, ["previews.prompts=['a zorb']", *changes])
        return render(recipe, entry, context, own)

    return make


def options(rendering: Rendering, stage: str) -> dict[str, list[str]]:
    """Option to its values, of the script itself."""
    argv = next(s.argv for s in rendering.stages if s.name == stage)
    script = next(i for i, word in enumerate(argv) if word.endswith(".py"))
    found: dict[str, list[str]] = {}
    for word in argv[script + 1 :]:
        if word.startswith("--"):
            current = found.setdefault(word.removeprefix("--"), [])
        else:
            current.append(word)
    return found


def dataset(rendering: Rendering) -> dict[str, Any]:
    return tomllib.loads(next(f.text for f in rendering.files if f.path.name == "dataset.toml"))


@pytest.mark.parametrize("model", MODELS)
def test_every_option_is_one_that_musubi_knows_and_takes(rendered: Render, model: str) -> None:
    family, rendering = catalogue()[model].family, rendered(model)
    assert [s.name for s in rendering.stages][:2] == ["cache latents", "cache text"]
    for stage, kind in (
        ("cache latents", "cache_latents"),
        ("cache text", "cache_text"),
        (rendering.stages[-1].name, "train"),
    ):
        known = options_of(kind, family)
        for option, values in options(rendering, stage).items():
            takes = known[option]
            assert (takes == "flag") == (not values), option
            if takes.startswith("one of "):
                assert values[0] in takes.removeprefix("one of ").split(", "), option
            if takes in ("int", "float"):
                float(values[0])
    train = options(rendering, rendering.stages[-1].name)
    assert train["network_alpha"] == train["network_dim"], (
        "alpha is rank where the recipe gives none; 1 would be musubi's"
    )
    assert {"dit", "network_module", "optimizer_type", "mixed_precision", "output_dir", "output_name"} <= set(train)
    assert set(dataset(rendering)["general"]) <= set(interface()["general"])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("wan2.1-t2v-14b", {"task": ["t2v-14B"], "mixed_precision": ["bf16"], "fp8_scaled": []}),
        ("wan2.1-t2v-1.3b", {"task": ["t2v-1.3B"], "network_module": ["networks.lora_wan"]}),
        ("wan2.2-t2v-a14b-low", {"mixed_precision": ["fp16"], "min_timestep": ["0"], "max_timestep": ["875"]}),
        (
            "wan2.2-i2v-a14b-high",
            {"min_timestep": ["900"], "max_timestep": ["1000"], "preserve_distribution_shape": []},
        ),
        ("qwen-image", {"model_version": ["original"], "network_module": ["networks.lora_qwen_image"]}),
        ("z-image", {"network_module": ["networks.lora_zimage"], "timestep_sampling": ["shift"]}),
        (
            "flux-kontext-dev",
            {
                "network_module": ["networks.lora_flux"],
                "timestep_sampling": ["flux_shift"],
                "fp8_scaled": [],
                "text_encoder1": ["/m/text_encoder.safetensors"],
                "text_encoder2": ["/m/text_encoder_clip.safetensors"],
            },
        ),
        (
            "flux2-klein-base-4b",
            {
                "network_module": ["networks.lora_flux_2"],
                "timestep_sampling": ["flux2_shift"],
                "model_version": ["klein-base-4b"],
            },
        ),
        ("qwen-image-edit-2509", {"model_version": ["edit-2509"], "timestep_sampling": ["qwen_shift"]}),
        ("z-image-turbo", {"base_weights": ["/m/training_adapter.safetensors"], "base_weights_multiplier": ["1"]}),
    ],
)
def test_each_base_model_is_trained_as_musubi_says(
    rendered: Render, model: str, expected: dict[str, list[str]]
) -> None:
    train = options(rendered(model), "train")
    assert {option: train.get(option) for option in expected} == expected


def test_both_experts_are_two_trainings_on_one_cache(rendered: Render) -> None:
    rendering = rendered("wan2.2-t2v-a14b")
    assert [s.name for s in rendering.stages] == ["cache latents", "cache text", "train-high", "train-low"]
    high, low = options(rendering, "train-high"), options(rendering, "train-low")
    assert (high["output_name"], low["output_name"]) == (["zorb-high"], ["zorb-low"])
    assert (high["min_timestep"], low["max_timestep"]) == (["875"], ["875"])
    assert (high["dit"], low["dit"]) == (["/m/transformer_high.safetensors"], ["/m/transformer_low.safetensors"])
    only = rendered("wan2.2-t2v-a14b", "base_model.expert=low")
    assert [s.name for s in only.stages] == ["cache latents", "cache text", "train-low"]


def test_a_first_frame_is_cached_the_way_the_base_model_sees_it(rendered: Render) -> None:
    assert "clip" in options(rendered("wan2.1-i2v-14b-480p"), "cache latents")
    two_two = options(rendered("wan2.2-i2v-a14b-low"), "cache latents")
    assert "i2v" in two_two and "clip" not in two_two


def test_clips_are_cut_by_their_own_frame_rate_into_frames_that_the_model_takes(rendered: Render) -> None:
    views = [View(0, "clip", Path("/v/30"), 30.0), View(0, "clip", Path("/v/24"), 24), View(0, "picture", Path("/v/p"))]
    tables = dataset(rendered("wan2.1-t2v-1.3b", "datasets.0.frames=[18,33]", views=views))["datasets"]
    assert [table.get("source_fps") for table in tables] == [30.0, 24.0, None]
    assert all(isinstance(table["source_fps"], float) for table in tables[:2]), "musubi refuses whole numbers"
    assert tables[0]["target_frames"] == [17, 33]
    assert tables[2]["image_directory"] == "/v/p" and "target_frames" not in tables[2]


def test_caches_lie_outside_of_the_data_and_never_go_stale(rendered: Render, tmp_path: Path) -> None:
    def folders(*changes: str) -> list[str]:
        return [t["cache_directory"] for t in dataset(rendered("z-image", *changes))["datasets"]]

    two = folders("datasets.0.resolutions=[512,768]")
    assert len(set(two)) == 2
    assert not any(Path(folder).is_relative_to(tmp_path / "data") for folder in two)
    assert folders("datasets.0.resolutions=[512]")[0] == two[0] != folders("datasets.0.resolutions=[640]")[0]


def test_optimizer_schedule_and_length_are_the_recipes(rendered: Render) -> None:
    train = options(
        rendered("z-image", "optimizer.kind=prodigy", "optimizer.learning_rate=1.0", "optimizer.schedule=constant",
                 "optimizer.warmup_steps=20", "training.epochs=7", "saving.checkpoint_every=50"), "train")  # fmt: skip
    assert train["optimizer_type"] == ["prodigyopt.Prodigy"] and train["learning_rate"] == ["1"]
    assert train["lr_scheduler"] == ["constant_with_warmup"], "musubi refuses a warm-up with `constant`"
    assert train["max_train_epochs"] == ["7"] and "max_train_steps" not in train
    assert "save_state" in train and train["save_every_n_steps"] == ["50"]


def test_previews_go_into_a_prompt_file(rendered: Render) -> None:
    rendering = rendered(
        "z-image", 'previews.prompts=["a zorb\\nin snow","two zorbs"]', "previews.negative_prompt='blurry'"
    )
    lines = next(f.text for f in rendering.files if f.path.name == "prompts.txt").splitlines()
    assert (
        len(lines) == 2 and lines[0].startswith("a zorb in snow --w 1024 --h 1024") and lines[0].endswith("--n blurry")
    )
    assert options(rendering, "train")["sample_prompts"] == ["/run/config/prompts.txt"]
    with pytest.raises(RequestError, match="as an option"):
        rendered("z-image", "previews.prompts=['a zorb --s 900']")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimizer.kind=schedule-free", "schedule-free"),
        ("adapter.kind=dora", "dora"),
        ("datasets.0.shuffle_tags=true", "shuffle_tags"),
        ("datasets.0.clip_windows=middle", "diffusion-pipe can"),
        ("saving.formats=['diffusers']", "lora convert"),
        ("training.timestep_sampling=uniform", "uniform"),
    ],
)
def test_what_it_cannot_do_is_refused_with_who_can(rendered: Render, change: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        rendered("z-image", change)
    assert words in str(caught.value) + caught.value.why


def test_own_options_pass_through_checked(rendered: Render) -> None:
    train = options(rendered("qwen-image", own={"train": {"blocks_to_swap": 16, "fp8_scaled": False}}), "train")
    assert train["blocks_to_swap"] == ["16"] and "fp8_scaled" not in train and "fp8_base" in train
    for own, words in (
        ({"train": {"block_to_swap": 16}}, "blocks_to_swap"),
        ({"train": {"blocks_to_swap": "many"}}, "a whole number"),
        ({"train": {"output_dir": "/x"}}, "set by lorapod"),
        ({"trian": {}}, "train"),
        ({"dataset": {"bucket_upscale": True}}, "bucket_no_upscale"),
    ):
        with pytest.raises(RequestError) as caught:
            rendered("qwen-image", own=own)
        assert words in f"{caught.value.what} {caught.value.why}"


def test_nothing_secret_is_rendered(rendered: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_mine")
    assert "hf_secret" not in repr(rendered("z-image"))


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0), ("linear", 0), ("linear", 20), ("cosine", 20)])
def test_a_falling_schedule_goes_on_where_it_was(rendered: Render, schedule: str, warmup: int) -> None:
    """Held against torch itself: the state of the schedule that a run begins with, read by the one that it goes on with."""
    import torch
    from transformers import get_scheduler

    steps, at = 200, 120
    words = [f"training.steps={steps}", f"optimizer.schedule={schedule}", f"optimizer.warmup_steps={warmup}"]
    made = rendered("z-image-turbo", *words, resume={"train": ResumePoint("/run/output/state", at, steps)})
    argv = options(made, "train")
    assert argv["resume"] == ["/run/output/state"] and argv["max_train_steps"] == [str(steps - at)]
    assert argv["output_dir"] == ["/run/output/from-000120"] and "lr_warmup_steps" not in argv

    def fresh() -> torch.optim.Optimizer:
        return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)

    first = fresh()
    begun = get_scheduler(schedule, first, num_warmup_steps=warmup, num_training_steps=steps)
    whole = []
    for step in range(steps):
        first.step()
        begun.step()
        whole.append(first.param_groups[0]["lr"])
        if step + 1 == at:
            kept = dict(begun.state_dict()), first.state_dict()
    second = fresh()
    key, _, length = argv["lr_scheduler_args"][0].partition("=")
    goes_on = getattr(torch.optim.lr_scheduler, argv["lr_scheduler_type"][0])(second, **{key: int(length)})
    second.load_state_dict(kept[1])
    goes_on.load_state_dict(kept[0])
    again = []
    for _ in range(steps - at):
        second.step()
        goes_on.step()
        again.append(second.param_groups[0]["lr"])
    worst = max(abs(a - b) for a, b in zip(again, whole[at:], strict=True)) / 1e-4
    assert worst < (1e-6 if schedule == "linear" or not warmup else 0.02)
    assert again[-1] < 1e-9


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ([], {"fp8_base", "fp8_scaled", "gradient_checkpointing"}),
        (["base_model.quantize=none"], {"gradient_checkpointing"}),
        (["base_model.quantize=fp8", "training.gradient_checkpointing=off"], {"fp8_base", "fp8_scaled"}),
        (["training.swap_blocks=20"], {"fp8_base", "fp8_scaled", "gradient_checkpointing", "blocks_to_swap"}),
    ],
)
def test_what_saves_memory_is_what_the_recipe_says(rendered: Render, changes: list[str], wanted: set[str]) -> None:
    given = options(rendered("wan2.1-t2v-14b", *changes), "train")
    assert given.keys() & {"fp8_base", "fp8_scaled", "gradient_checkpointing", "blocks_to_swap"} == wanted


@pytest.mark.parametrize(
    "change",
    [
        "base_model.quantize=nf4", "training.gradient_checkpointing=selective", "training.memory_gb=20",
        "training.loss=huber", "training.attention=math",
        "training.loss_weighting=cosmap", "training.timestep_mean=1", "training.highest_noise=0.5",
        "training.timestep_sampling=mode", "datasets.0.regularisation=preserve", "datasets.0.loss_weight=2",
        "adapter.text_encoders=true", "training.gpus=2",
    ],
)  # fmt: skip
def test_what_only_the_builtin_trainer_does_is_refused(rendered: Render, change: str) -> None:
    with pytest.raises(RequestError, match="builtin"):
        rendered("wan2.1-t2v-14b", change)


def test_control_pictures_are_a_folder_beside_the_view_or_a_list(rendered: Render) -> None:
    views = [
        View(0, "picture", Path("/v/a"), controls=Path("/v/a-control")),
        View(0, "picture", Path("/v/b"), controls=Path("/v/b-control"), listed=Path("/v/b.jsonl")),
        View(0, "picture", Path("/v/c")),
    ]
    one, several, none = dataset(rendered("flux2-klein-base-4b", views=views))["datasets"]
    assert (one["image_directory"], one["control_directory"]) == ("/v/a", "/v/a-control")
    assert several["image_jsonl_file"] == "/v/b.jsonl" and not {"image_directory", "control_directory"} & several.keys()
    assert none["image_directory"] == "/v/c" and "control_directory" not in none
    assert len({table["cache_directory"] for table in (one, several, none)}) == 3


def test_qwens_control_pictures_have_the_size_of_its_makers_pipeline_unless_told_otherwise(rendered: Render) -> None:
    made = dataset(rendered("qwen-image-edit-2509"))
    assert made["datasets"][0]["control_resolution"] == [1024, 1024] and "control_resolution" not in made["general"]
    own = {"dataset": {"control_resolution": [768, 768], "no_resize_control": True}}
    told = dataset(rendered("qwen-image-edit-2509", own=own))
    assert (told["datasets"][0]["control_resolution"], told["datasets"][0]["no_resize_control"]) == ([768, 768], True)
    assert not told["general"].keys() & own["dataset"].keys(), "its parser refuses them there"
    assert told["datasets"][0]["cache_directory"] != made["datasets"][0]["cache_directory"]
    with pytest.raises(RequestError, match="no dataset has any"):
        rendered("z-image", "trainer_options.musubi.dataset={no_resize_control = true}")


def test_previews_start_from_their_control_pictures(rendered: Render, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    words = ["previews.control=['a.png','b.png']", "previews.prompts=['one','two','three']"]
    text = next(f.text for f in rendered("flux-kontext-dev", *words).files if f.path.name == "prompts.txt")
    assert [Path(line.partition(" --ci ")[2]).name for line in text.splitlines()] == ["a.png", "b.png", "a.png"]
    assert all(" --g 2.5 --fs 0 --ci " in line for line in text.splitlines()), "told to the model; shifted by the size"
    guided = next(
        f.text for f in rendered("flux2-klein-base-4b", "previews.guidance=0").files if "prompts" in f.path.name
    )
    assert " --g 1\n" in guided, "off is 1 there, and 0 would draw what the prompt is not"


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("z-image", ["datasets.0.control='before'"], "takes no control pictures"),
        ("z-image", ["previews.control=['before/a.png']"], "takes no control pictures"),
        ("flux-kontext-dev", ["datasets=[{path='data'}]"], "builtin and diffusion-pipe can train it without"),
        ("qwen-image-edit-2509", ["datasets=[{path='data'}]"], "none to start from"),
        ("flux-kontext-dev", ["adapter.targets=attention"], "builtin and diffusion-pipe can"),
        ("flux2-klein-base-4b", ["adapter.targets=attention"], "; builtin can"),
        ("flux2-klein-base-4b", ["datasets.0.masks='before'"], "; builtin can"),
        ("flux2-klein-base-4b", ["training.timestep_shift=3.0"], "; builtin can"),
        ("qwen-image-edit-2509", ["training.timestep_sampling=uniform"], "; builtin can"),
        ("z-image", ["training.resolution_shift=true"], "; diffusion-pipe can"),
    ],
)
def test_an_editing_model_is_refused_what_it_cannot_with_who_can(
    rendered: Render, tmp_path: Path, model: str, changes: list[str], words: str
) -> None:
    (tmp_path / "before").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "before/a.png")
    with pytest.raises(RequestError) as caught:
        rendered(model, *changes)
    assert words in f"{caught.value.what} {caught.value.why}"


@pytest.mark.parametrize("length", ["training.steps=200", "training.epochs=5"])
def test_a_resumed_training_draws_at_its_end_and_not_again_at_its_beginning(rendered: Render, length: str) -> None:
    words = [length, "previews.every=0", "previews.at_start=true", "previews.at_end=true"]
    whole = options(rendered("z-image", *words), "train")
    assert "sample_at_first" in whole and {"sample_every_n_steps", "sample_every_n_epochs"} & whole.keys()
    rest = options(rendered("z-image", *words, resume={"train": ResumePoint("/run/state", 120, 200)}), "train")
    assert "sample_at_first" not in rest and "sample_every_n_epochs" not in rest
    assert rest["sample_every_n_steps"] == rest["max_train_steps"] == ["80"]

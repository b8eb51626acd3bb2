"""Every kind of adapter, on a transformer and on a U-Net: trains, goes on bit for bit, and its file does what it did.

What a file does is computed here as ComfyUI's weight adapters compute it, on plain weights; LoRA, rsLoRA and DoRA also
through diffusers' own loader.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import picture_models
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorapod import recipe as recipes
from lorapod.engine import adapter_files, adapters
from lorapod.engine.adapter_files import Merged
from lorapod.engine.adapter_layers import changed
from lorapod.engine.families import Conditions, Family, family_of
from lorapod.engine.job import Job
from lorapod.engine.prepare import prepare
from lorapod.engine.train import Training
from lorapod.errors import AdapterError, RequestError
from lorapod.models import BaseModel
from lorapod.recipe.choices import AdapterKind, Targets
from lorapod.recipe.schema import AdapterSection
from lorapod.workspace import Workspace

CPU = torch.device("cpu")
FP32 = torch.float32
KINDS = [kind.value for kind in AdapterKind]
MODELS = ["z_image", "sdxl"]


@pytest.fixture(scope="module")
def models(tiny_z_image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"z_image": tiny_z_image, "sdxl": picture_models.build_sdxl(tmp_path_factory.mktemp("models") / "sdxl")}


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One workspace for all, so that captions and latents are cached once a model."""
    return Workspace(tmp_path_factory.mktemp("workspace"))


def never() -> bool:
    return False


def run_of(recipe_file: Callable[..., Path], model: Path, at: Path, *overrides: str) -> Path:
    quiet = ["previews.at_start=false", "previews.at_end=false", "evaluation.every=0"]
    changes = [f"base_model.name='{model}'", "training.steps=3", *quiet, *overrides]
    at.mkdir(parents=True)
    recipe = recipes.load(recipe_file("[saving]\nprecision = 'fp32'\ncheckpoint_every = 2"), changes)
    (at / "recipe.toml").write_text(recipes.dumps(recipe), encoding="utf-8")
    return at


def train(run: Path, workspace: Workspace, resume: bool = False) -> Training:
    job = Job(run, workspace)
    prepare(job, never)
    training = Training(job)
    assert training.run(resume, never)
    return training


def output(family: Family, denoiser: nn.Module, job: Job) -> Tensor:
    """What the denoiser says of fixed noise under a caption."""
    text: Conditions = job.text_cache.get(job.text_key("zorb")) or {}
    generator = torch.Generator().manual_seed(3)
    channels = denoiser.config.in_channels
    noisy = torch.randn(1, channels, 1, 8, 8, generator=generator)
    with torch.no_grad():
        if family.name == "sdxl":
            ids = torch.tensor([[64, 64, 0, 0, 64, 64]])
            return family.predict(denoiser.eval(), noisy[:, :, 0], torch.tensor([500]), ids, [text])  # type: ignore[attr-defined]
        return family.velocity(denoiser.eval(), noisy, torch.tensor([0.5]), [{}], [text])  # type: ignore[attr-defined]


def as_comfyui_applies(weight: Tensor, file: dict[str, Tensor], key: str) -> Tensor:
    """The weight with what the file has under a key, by the formulae of ComfyUI's weight adapters."""

    def get(name: str) -> Tensor | None:
        return file.get(f"{key}.{name}")

    alpha = get("alpha")
    if (blocks := get("oft_blocks")) is not None:
        one, q = torch.eye(blocks.shape[1]), blocks - blocks.transpose(1, 2)
        r = (one + q) @ (one - q).inverse()
        rows = weight.view(blocks.shape[0], blocks.shape[1], -1)
        return torch.einsum("knm,kno->kmo", r, rows).reshape(weight.shape)
    if get("lokr_w2") is not None or get("lokr_w2_a") is not None:
        inner: int | None = None
        factors = []
        for name in ("lokr_w1", "lokr_w2"):
            if (whole := get(name)) is None:
                a, b = file[f"{key}.{name}_a"], file[f"{key}.{name}_b"]
                whole, inner = a @ b, b.shape[0]
            factors.append(whole)
        scale = float(alpha) / inner if alpha is not None and inner else 1.0
        return weight + scale * torch.kron(*factors).reshape(weight.shape)
    if (w1_b := get("hada_w1_b")) is not None:
        scale = float(alpha) / w1_b.shape[0] if alpha is not None else 1.0
        return weight + scale * (file[f"{key}.hada_w1_a"] @ w1_b) * (
            file[f"{key}.hada_w2_a"] @ file[f"{key}.hada_w2_b"]
        )
    down = get("lora_A.weight") if get("lora_A.weight") is not None else get("lora_down.weight")
    up = get("lora_B.weight") if get("lora_B.weight") is not None else get("lora_up.weight")
    assert down is not None and up is not None
    scale = float(alpha) / down.shape[0] if alpha is not None else 1.0
    whole = weight + scale * up @ down
    if (magnitude := get("dora_scale")) is not None:  # (o, 1), by the norm of each row, as LyCORIS has it
        whole = whole * (magnitude / whole.norm(dim=1, keepdim=True))
    return whole


def apply_file(denoiser: nn.Module, family: Family, file: dict[str, Tensor], layout: Any) -> int:
    """Changes every linear layer that the file has; returns of how many keys use was made."""
    used = set()
    with torch.no_grad():
        for name, module in denoiser.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            key = family.export_key(name, layout)
            if mine := [k for k in file if k.startswith(f"{key}.")]:
                module.weight.copy_(as_comfyui_applies(module.weight, file, key))
                used.update(mine)
    return len(used)


def overrides_for(kind: str) -> list[str]:
    found = [f"adapter.kind='{kind}'", "optimizer.learning_rate=0.05"]
    if kind != "oft":
        found.append("adapter.alpha=2")
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_trains_goes_on_and_its_file_does_what_the_adapter_did(
    recipe_file: Callable[..., Path], tmp_path: Path, models: dict[str, Path], cached: Workspace, kind: str, model: str
) -> None:
    more = overrides_for(kind)
    if kind in ("lora", "rslora", "dora"):
        more.append("saving.formats=['comfyui','diffusers']")
    whole = run_of(recipe_file, models[model], tmp_path / "whole", *more)
    training = train(whole, cached)
    family, base = training.job.family, training.job.base
    trained = output(family, training.denoiser, training.job)

    resumed = run_of(recipe_file, models[model], tmp_path / "resumed", *more)
    (resumed / "checkpoints").mkdir()
    shutil.copy(whole / "checkpoints/step-0000002.safetensors", resumed / "checkpoints")
    train(resumed, cached, resume=True)
    file = whole / "lora/zorb.safetensors"
    assert (resumed / "lora/zorb.safetensors").read_bytes() == file.read_bytes()

    def fresh() -> nn.Module:
        return family.load_denoiser(base, family.experts[0], CPU, FP32)

    untouched = output(family, fresh(), training.job)
    change = (trained - untouched).abs().max()
    assert change > 1e-3
    tolerance = {"rtol": 0.0, "atol": 2e-3 * float(change) + 1e-6}
    denoiser, tensors = fresh(), load_file(file)
    assert apply_file(denoiser, family, tensors, recipes.LoraFormat.COMFYUI) == len(tensors)
    torch.testing.assert_close(output(family, denoiser, training.job), trained, **tolerance)

    ours = fresh()  # as `lorapod sample` puts it on
    adapter_files.add_lora_file(ours, family, file)
    torch.testing.assert_close(output(family, ours, training.job), trained, **tolerance)
    with adapter_files.scaled(ours, 0.0):
        torch.testing.assert_close(output(family, ours, training.job), untouched)

    merged = fresh()
    adapter_files.merge(merged, family, [Merged(file, 1.0, True)])
    torch.testing.assert_close(output(family, merged, training.job), trained, **tolerance)

    onward = fresh()  # a training that starts from it
    section = training.recipe.adapter.model_copy(update={"alpha": None})
    adapters.add_adapter(onward, family, section, float(section.rank), seed=7)
    adapters.continue_from(onward, family, file)
    torch.testing.assert_close(output(family, onward, training.job), trained, **tolerance)

    if "saving.formats=['comfyui','diffusers']" in more:
        pipe = picture_models.pipeline_of(base.folder)
        pipe.load_lora_weights(whole / "lora/zorb-diffusers.safetensors")
        theirs = pipe.unet if model == "sdxl" else pipe.transformer
        torch.testing.assert_close(output(family, theirs, training.job), trained, **tolerance)


def fresh_of(models: dict[str, Path], model: str) -> tuple[Family, nn.Module]:
    base = BaseModel("tiny", model, models[model])
    family = family_of(base)
    return family, family.load_denoiser(base, family.experts[0], CPU, FP32)


def test_layers_are_chosen_by_patterns_of_their_names(models: dict[str, Path]) -> None:
    family, denoiser = fresh_of(models, "z_image")
    section = AdapterSection(rank=2, targets=["layers.1.attention.to_?", "*.feed_forward.w2"])
    adapters.add_adapter(denoiser, family, section, 2, seed=1)
    assert [name for name, _ in adapters.layers_of(denoiser)] == [
        "noise_refiner.0.feed_forward.w2", "context_refiner.0.feed_forward.w2", "layers.0.feed_forward.w2",
        "layers.1.attention.to_q", "layers.1.attention.to_k", "layers.1.attention.to_v", "layers.1.feed_forward.w2",
    ]  # fmt: skip


def test_a_pattern_that_fits_nothing_is_named_with_the_nearest_layers(models: dict[str, Path]) -> None:
    family, denoiser = fresh_of(models, "z_image")
    with pytest.raises(AdapterError, match=r"called \*\.attention\.to_qq") as caught:
        adapters.target_names(denoiser, family, ["layers.0.attention.to_k", "*.attention.to_qq"])
    assert "layers.0.attention.to_q" in caught.value.why


def test_a_wrong_pattern_is_refused_before_anything_is_cached(
    recipe_file: Callable[..., Path], tmp_path: Path, models: dict[str, Path]
) -> None:
    """As is a layer that no file format has a name for."""
    for number, pattern in enumerate(("*.to_zz", "t_embedder.mlp.0")):
        run = run_of(recipe_file, models["z_image"], tmp_path / f"run-{number}", f"adapter.targets=['{pattern}']")
        with pytest.raises(AdapterError, match="can have an adapter"):
            prepare(Job(run, Workspace(tmp_path / "empty")), never)
    assert not (tmp_path / "empty/cache").exists()


def test_style_and_character_are_layers_of_sdxl_and_refused_elsewhere(models: dict[str, Path]) -> None:
    full = picture_models.full_size("sdxl")
    sdxl = family_of(BaseModel("tiny", "sdxl", models["sdxl"]))
    style, character = (adapters.target_names(full, sdxl, which) for which in (Targets.STYLE, Targets.CHARACTER))
    assert len(style) == len(character) == 10 * 8 and not set(style) & set(character)
    assert all(name.startswith("up_blocks.0.attentions.1.") for name in style)
    flux = family_of(BaseModel("flux", "flux", models["sdxl"]))
    assert len(adapters.target_names(picture_models.full_size("flux"), flux, Targets.CHARACTER)) == 4
    family, denoiser = fresh_of(models, "z_image")
    with pytest.raises(RequestError, match="learn style alone"):
        adapters.target_names(denoiser, family, Targets.STYLE)


class Products(TorchDispatchMode):
    """Notes the types of matrix products with `rows` rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.types = rows, set[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left = args[-2]
            self.types |= {left.dtype} if left.shape[0] == self.rows else set()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "dropout"), [*((kind, 0.0) for kind in KINDS), ("lora", 0.5), ("rslora", 0.5), ("dora", 0.5)]
)
def test_every_kind_computes_in_the_type_of_its_layer(models: dict[str, Path], kind: str, dropout: float) -> None:
    base = BaseModel("tiny", "z_image", models["z_image"])
    family = family_of(base)
    denoiser = family.load_denoiser(base, family.experts[0], CPU, torch.bfloat16)
    section = AdapterSection(kind=AdapterKind(kind), rank=4, dropout=dropout)
    adapters.add_adapter(denoiser, family, section, 4, 1)
    _, layer = next(adapters.layers_of(denoiser))
    with torch.no_grad():
        for part in adapters.parts_of(layer).values():
            part += 0.05 * torch.randn_like(part)
    x = torch.randn(37, layer.base_layer.in_features).bfloat16()
    layer.eval()
    with Products(37) as seen:
        y = layer(x)
    assert y.dtype is torch.bfloat16 and seen.types == {torch.bfloat16}
    alpha = 8 if kind == "rslora" else 4  # over the rank: alpha over its square root, of rsLoRA
    exact = x.float() @ changed(layer.base_layer.weight, adapters.parts_of(layer), alpha).t()
    assert ((y.float() - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_as_the_base_model(models: dict[str, Path], kind: str) -> None:
    family, denoiser = fresh_of(models, "sdxl")
    x = torch.randn(2, 4, 64)
    names = adapters.target_names(denoiser, family, Targets.ATTENTION)
    layer = next(name for name in names if denoiser.get_submodule(name).in_features == 64)
    before = denoiser.get_submodule(layer)(x)
    adapters.add_adapter(denoiser, family, AdapterSection(kind=AdapterKind(kind), rank=4), 4, seed=1)
    torch.testing.assert_close(denoiser.get_submodule(layer)(x), before)
    trained = adapters.adapter_parameters(denoiser)
    assert trained and all(parameter.dtype is FP32 for parameter in trained)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "oft", "alpha": 4}, "no scale"),
        ({"kind": "lora", "factor": 4}, "for `lokr`"),
        ({"targets": []}, "at least 1 item"),
        ({"ema_decay": 1.0}, "less than 1"),
    ],
)
def test_what_a_kind_does_not_have_is_refused_in_the_recipe(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AdapterSection.model_validate(wrong)


def test_the_factor_of_a_lokr_sets_its_size(models: dict[str, Path]) -> None:
    family, denoiser = fresh_of(models, "z_image")
    adapters.add_adapter(denoiser, family, AdapterSection(kind=AdapterKind.LOKR, rank=64, factor=4), 64, seed=1)
    tensors = adapters.adapter_tensors(denoiser)
    assert tensors["layers.0.attention.to_q.lokr_w1"].shape == (4, 4)
    assert tensors["layers.0.attention.to_q.lokr_w2"].shape == (8, 8)


def test_formats_that_a_kind_has_not_are_refused(
    recipe_file: Callable[..., Path], tmp_path: Path, models: dict[str, Path], cached: Workspace
) -> None:
    run = run_of(
        recipe_file, models["z_image"], tmp_path / "run", "adapter.kind='lokr'", "saving.formats=['diffusers']"
    )
    with pytest.raises(RequestError, match="layout `diffusers`"):
        prepare(Job(run, cached), never)


def test_a_file_of_another_kind_is_not_continued(
    recipe_file: Callable[..., Path], tmp_path: Path, models: dict[str, Path], cached: Workspace
) -> None:
    run = run_of(recipe_file, models["z_image"], tmp_path / "run", "training.steps=1", "adapter.kind='loha'")
    train(run, cached)
    family, denoiser = fresh_of(models, "z_image")
    adapters.add_adapter(denoiser, family, AdapterSection(rank=4), 4, seed=1)
    with pytest.raises(AdapterError, match="another kind") as caught:
        adapters.continue_from(denoiser, family, run / "lora/zorb.safetensors")
    assert caught.value.remedy == 'Set `adapter.kind = "loha"`.'


def test_merged_adapters_are_trained_on_and_left_out_of_the_result(
    recipe_file: Callable[..., Path], tmp_path: Path, models: dict[str, Path], cached: Workspace
) -> None:
    first = run_of(recipe_file, models["z_image"], tmp_path / "first", *overrides_for("lokr"))
    train(first, cached)
    file = first / "lora/zorb.safetensors"
    merged = f"adapter.merged=[{{path='{file}', strength=0.5}}]"
    # With a learning rate that moves nothing, the new adapter is the base model with what was merged.
    run = run_of(recipe_file, models["z_image"], tmp_path / "second", merged, "optimizer.learning_rate=1e-12")
    training = train(run, cached)
    family, denoiser = fresh_of(models, "z_image")
    adapter_files.merge(denoiser, family, [Merged(file, 0.5, True)])
    torch.testing.assert_close(
        output(family, training.denoiser, training.job), output(family, denoiser, training.job), rtol=0, atol=1e-6
    )
    with training.base_for_previews():  # previews keep it
        assert torch.equal(training.denoiser.get_submodule("layers.0.attention.to_q.base_layer").weight,
                           denoiser.get_submodule("layers.0.attention.to_q").weight)  # fmt: skip
    assert not any(key.startswith("lokr") or "lokr_" in key for key in load_file(run / "lora/zorb.safetensors"))
    assert file.name in load_metadata(run / "lora/zorb.safetensors")["lorapod.recipe"]
    assert str(tmp_path) not in load_metadata(run / "lora/zorb.safetensors")["lorapod.recipe"]


def load_metadata(path: Path) -> dict[str, str]:
    from lorapod import lora_file

    return lora_file.inspect(path).metadata


def test_averaged_weights_are_what_is_saved_and_go_on_bit_for_bit(
    recipe_file: Callable[..., Path], tmp_path: Path, models: dict[str, Path], cached: Workspace
) -> None:
    more = [
        "adapter.ema_decay=0.5",
        "optimizer.learning_rate=0.05",
        "saving.checkpoint_every=1",
        "saving.keep_checkpoints=9",
    ]
    whole = run_of(recipe_file, models["z_image"], tmp_path / "whole", *more)
    training = train(whole, cached)
    held = [load_file(whole / f"checkpoints/step-000000{step}.safetensors") for step in (1, 2, 3)]
    names = [name.removeprefix("average.") for name in held[0] if name.startswith("average.")]
    assert names
    name = next(name for name in names if name.endswith("to_q.B"))
    # B begins at zero; the first steps count more: decays of min(0.5, (1 + t) / (10 + t)).
    mean = torch.zeros_like(held[0][f"adapter.{name}"])
    for step, state in enumerate(held, 1):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * state[f"adapter.{name}"]
        torch.testing.assert_close(state[f"average.{name}"], mean)
    exported = load_file(whole / "lora/zorb.safetensors")[f"diffusion_model.{name.removesuffix('.B')}.lora_B.weight"]
    assert torch.equal(exported, held[2][f"average.{name}"])
    assert not torch.equal(exported, held[2][f"adapter.{name}"])
    assert torch.equal(dict(training.average.parameters)[name], held[2][f"adapter.{name}"])  # training itself goes on

    resumed = run_of(recipe_file, models["z_image"], tmp_path / "resumed", *more)
    (resumed / "checkpoints").mkdir()
    shutil.copy(whole / "checkpoints/step-0000002.safetensors", resumed / "checkpoints")
    train(resumed, cached, resume=True)
    assert (resumed / "lora/zorb.safetensors").read_bytes() == (whole / "lora/zorb.safetensors").read_bytes()

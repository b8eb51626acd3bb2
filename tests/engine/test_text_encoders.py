"""SDXL's text encoders trained beside the U-Net: what is learnt, kept, written and read by diffusers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import picture_models
import pytest
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from PIL import Image
from safetensors.torch import load_file, save_file

from lorapod import lora_convert, lora_file, lora_math
from lorapod import recipe as recipes
from lorapod.engine import adapters
from lorapod.engine.adapter_files import add_lora_file
from lorapod.engine.evaluate import answer_to
from lorapod.engine.export import write_lora
from lorapod.engine.families import family_of
from lorapod.engine.families.sdxl import SDXL, TextEncoders
from lorapod.engine.job import Job
from lorapod.engine.prepare import prepare
from lorapod.engine.previews import Previews
from lorapod.engine.step import preserved_target
from lorapod.engine.text_encoders import live_text
from lorapod.engine.train import Training
from lorapod.errors import AdapterError, LorapodError, RequestError
from lorapod.models import BaseModel
from lorapod.recipe import Recipe
from lorapod.recipe.choices import LoraFormat, Regularisation
from lorapod.recipe.schema import DatasetSection
from lorapod.workspace import Workspace

KINDS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, iter(range(100))
        self.model = picture_models.build_sdxl(folder / "sdxl")
        (folder / "pictures").mkdir()
        for i in range(4):
            Image.new("RGB", (64, 64), (60 * i, 120, 200 - 40 * i)).save(folder / "pictures" / f"{i}.png")
            (folder / "pictures" / f"{i}.txt").write_text(f"zorb number {i}", encoding="utf-8")

    def run(self, *changes: str, model: Path | None = None) -> Path:
        file = self.folder / "recipe.toml"
        file.write_text(
            f"name = 'zorb'\n[base_model]\nname = '{model or self.model}'\n[[datasets]]\npath = 'pictures'\n"
            "resolutions = [64]\nvalidation_share = 0.25\n[training]\nsteps = 4\nprecision = 'fp32'\n[optimizer]\n"
            "learning_rate = 0.01\nwarmup_steps = 0\n[adapter]\nrank = 4\ntext_encoders = true\n[evaluation]\nevery = 0\n"
            "[previews]\nprompts = ['a zorb']\nwidth = 64\nheight = 64\nsteps = 2\n[saving]\nprecision = 'fp32'\n"
            "formats = ['comfyui', 'diffusers']\ncheckpoint_every = 2\n",
            encoding="utf-8",
        )
        run = self.folder / f"run-{next(self.numbers)}"
        run.mkdir()
        (run / "recipe.toml").write_text(recipes.dumps(recipes.load(file, list(changes))), encoding="utf-8")
        return run

    def train(self, run: Path, resume: bool = False, stop_at: int | None = None) -> Training:
        with contextlib.redirect_stdout(io.StringIO()):
            job = Job(run, Workspace(self.folder))
            prepare(job, lambda: False)
            training = Training(job)
            finished = training.run(resume, lambda: stop_at is not None and training.step >= stop_at)
        assert finished == (stop_at is None)
        return training


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def trained(bench: Bench) -> Training:
    return bench.train(bench.run())


def encoded(encode: Callable[[list[str]], list[dict[str, torch.Tensor]]]) -> torch.Tensor:
    with torch.no_grad():
        return encode(["a zorb in the rain"])[0]["tokens"]


def test_both_encoders_learn_at_a_rate_of_their_own(trained: Training) -> None:
    tensors = adapters.adapter_tensors(trained.denoiser)
    for encoder in ("text_encoder", "text_encoder_2"):
        of = [name for name in tensors if name.startswith(f"{encoder}.")]
        assert {name.split(".")[-2] for name in of} == set(KINDS)
        learnt = [name for name in of if name.endswith(".B") and tensors[name].abs().max() > 0]
        assert len(learnt) >= len(KINDS) and any(
            ".layers.0." in name for name in learnt
        )  # of CLIP-L the last is not used
    first, second = trained.optimizer.param_groups
    assert second["lr"] == pytest.approx(first["lr"] / 2) and len(second["params"]) > 0
    assert len(first["params"]) + len(second["params"]) == len(trained.parameters)


def test_captions_are_encoded_with_what_was_learnt(bench: Bench, trained: Training) -> None:
    live = live_text(trained.denoiser)
    assert live is not None
    now = encoded(live)
    with adapters.switched_off(trained.denoiser):
        before = encoded(live)
    entry = trained.job.family.encode_text(
        trained.job.family.load_text_encoder(trained.job.base, trained.job.device, torch.float32),
        ["a zorb in the rain"],
    )[0]["tokens"]
    torch.testing.assert_close(before, entry, rtol=1e-5, atol=1e-5)
    assert (now - before).abs().max() > 1e-3
    request = Previews(trained.job).request("a zorb", 1, live)
    assert not torch.equal(request.text["tokens"], Previews(trained.job).request("a zorb", 1).text["tokens"])


def test_diffusers_loads_the_file_with_the_same_effect_on_the_encoders(bench: Bench, trained: Training) -> None:
    live = live_text(trained.denoiser)
    assert live is not None
    for name in ("zorb.safetensors", "zorb-diffusers.safetensors"):
        pipe = picture_models.pipeline_of(bench.model)
        pipe.load_lora_weights(trained.job.folder / "lora" / name)
        theirs = pipe.encode_prompt(["a zorb in the rain"], do_classifier_free_guidance=False)[0]
        torch.testing.assert_close(encoded(live), theirs[0], rtol=1e-4, atol=1e-4)


def test_the_keys_are_those_that_comfyui_and_sd_scripts_read(trained: Training) -> None:
    keys = set(load_file(trained.job.folder / "lora" / "zorb.safetensors"))
    for number in (1, 2):
        for kind in KINDS:
            part = "mlp" if kind.startswith("fc") else "self_attn"
            layer = f"lora_te{number}_text_model_encoder_layers_0_{part}_{kind}"
            assert {f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha"} <= keys
    theirs = set(load_file(trained.job.folder / "lora" / "zorb-diffusers.safetensors"))
    assert "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight" in theirs


def test_keys_at_full_size_are_those_that_diffusers_converts_to() -> None:
    """Every layer of both encoders as published, through diffusers' own conversion to kohya's names."""
    models, denoiser = picture_models.full_size_encoders(), torch.nn.Module()
    assert [sum(p.numel() for p in m.parameters()) for m in models] == [123_060_480, 694_659_840]
    for name, module in SDXL().encoders_of(TextEncoders((None, None), models)).items():
        setattr(denoiser, name, torch.nn.ModuleDict({"text_model": module}))
    layers = [n for n, m in denoiser.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == (12 + 32) * len(KINDS)
    ours = {n: SDXL().export_key(n, LoraFormat.COMFYUI) for n in layers}
    diffusers = {f"{SDXL().export_key(n, LoraFormat.DIFFUSERS)}.lora_A.weight": torch.zeros(4, 1) for n in layers}
    theirs = {key for key in convert_state_dict_to_kohya(diffusers) if not key.endswith("alpha")}
    assert theirs == {f"{key}.lora_down.weight" for key in ours.values()}
    assert [SDXL().module_of(key) for key in ours.values()] == layers


def test_it_goes_on_to_the_same_bytes(bench: Bench, trained: Training) -> None:
    run = bench.run()
    bench.train(run, stop_at=2)
    bench.train(run, resume=True)
    ours, theirs = (each / "lora" / "zorb.safetensors" for each in (run, trained.job.folder))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_file_with_encoders_is_drawn_with_them(bench: Bench, trained: Training) -> None:
    """By `lorapod sample`'s own code: at strength 1 what training drew last, at 0 the base model."""
    from lorapod.engine.sample import _by_strength

    job = Job(bench.run("adapter.text_encoders=false"), Workspace(bench.folder))
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(job, lambda: False)
        previews = Previews(job)
        file = trained.job.folder / "lora" / "zorb.safetensors"
        plain, full = _by_strength(job, previews, {job.family.experts[0]: file}, [0.0, 1.0])
    drawn = Previews(trained.job).latents(trained.denoiser, previews.pairs)
    torch.testing.assert_close(full[0], drawn[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain[0], full[0], atol=1e-3)


def test_it_can_be_continued_from(bench: Bench, trained: Training) -> None:
    file = trained.job.folder / "lora" / "zorb.safetensors"
    again = bench.train(bench.run(f"adapter.continue_from={file}", "optimizer.learning_rate=1e-9", "training.steps=1"))
    before, after = adapters.adapter_tensors(trained.denoiser), adapters.adapter_tensors(again.denoiser)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)


def test_what_the_lora_commands_make_of_it_is_what_it_does(trained: Training, tmp_path: Path) -> None:
    """Converted, cut to a lower rank and merged, by what diffusers' encoders say of a caption then."""
    live, model = live_text(trained.denoiser), trained.job.base.folder
    assert live is not None
    source = lora_convert.read(trained.job.folder / "lora" / "zorb-diffusers.safetensors")
    lora_convert.write(source, tmp_path / "converted.safetensors", LoraFormat.KOHYA)
    lora_convert.write(lora_math.resize(source, 4)[0], tmp_path / "resized.safetensors", LoraFormat.COMFYUI)
    halves = lora_math.merge([source, source], [0.25, 0.75])
    lora_convert.write(halves, tmp_path / "merged.safetensors", LoraFormat.DIFFUSERS)
    for file in sorted(tmp_path.iterdir()):
        pipe = picture_models.pipeline_of(model)
        pipe.load_lora_weights(file)
        theirs = pipe.encode_prompt(["a zorb in the rain"], do_classifier_free_guidance=False)[0]
        torch.testing.assert_close(encoded(live), theirs[0], rtol=1e-4, atol=1e-4)
    assert (
        load_file(tmp_path / "converted.safetensors").keys()
        == load_file(trained.job.folder / "lora" / "zorb.safetensors").keys()
    )


def test_inspecting_names_the_encoders_alike_in_every_layout(trained: Training) -> None:
    folder = trained.job.folder / "lora"
    infos = [lora_file.inspect(folder / name) for name in ("zorb.safetensors", "zorb-diffusers.safetensors")]
    for info in infos:
        blocks = [block for block in info.block_norms if block.startswith("text_encoder")]
        assert blocks == [f"text_encoder{each}.layers.{i}" for each in ("", "_2") for i in range(4)]
        assert not info.warnings  # CLIP-L's last block is not asked in SDXL, so that zeros there are as they should be
        assert info.metadata["ss_text_encoder_lr"] == "0.005" and info.metadata["ss_unet_lr"] == "0.01"
        assert info.metadata["modelspec.prediction_type"] == "epsilon"
    rows = lora_math.compare(*(lora_convert.read(info.path) for info in infos))
    assert len({row.module for row in rows}) == len(rows)
    assert all(row.cosine > 0.999 for row in rows if any(row.norms))


def test_a_merged_file_changes_what_captions_say_and_the_new_one_is_without_encoders(
    bench: Bench, trained: Training
) -> None:
    file, first = trained.job.folder / "lora" / "zorb.safetensors", live_text(trained.denoiser)
    again = bench.train(
        bench.run("adapter.text_encoders=false", f"adapter.merged=[{{path='{file}'}}]", "training.steps=1")
    )
    merged = live_text(again.denoiser)
    assert merged is not None and first is not None
    torch.testing.assert_close(encoded(merged), encoded(first), rtol=1e-4, atol=1e-4)
    keys = load_file(again.job.folder / "lora" / "zorb.safetensors")
    assert keys and all(key.startswith("lora_unet_") for key in keys)


def test_a_training_adapter_that_changes_them_is_refused_before_anything_is_cached(
    bench: Bench, trained: Training
) -> None:
    """Previews are drawn without it, and the encoders could not be had back."""
    file = trained.job.folder / "lora" / "zorb.safetensors"
    with pytest.raises(RequestError, match="changes the text encoders"):
        bench.train(bench.run(f"base_model.training_adapter={file}"))


def test_continuing_with_other_layers_says_which_setting(bench: Bench, trained: Training, tmp_path: Path) -> None:
    file, alone = trained.job.folder / "lora" / "zorb.safetensors", tmp_path / "alone.safetensors"
    lora_convert.convert(file, alone, LoraFormat.COMFYUI, text_encoders=False)
    assert all(key.startswith("lora_unet_") for key in load_file(alone))
    with pytest.raises(AdapterError) as without:
        bench.train(bench.run("adapter.text_encoders=false", f"adapter.continue_from={file}"))
    assert "set `adapter.text_encoders = true`" in without.value.remedy
    with pytest.raises(AdapterError) as beyond:
        bench.train(bench.run(f"adapter.continue_from={alone}"))
    assert "leave `adapter.text_encoders` out" in beyond.value.remedy


def test_dropout_variants_masks_preservation_and_averages_go_on_to_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    """All that decides which caption an item has, or what is made of it, with encoders that are asked in the step."""
    own = tmp_path / "own"
    own.mkdir()
    for i in range(2):
        Image.new("RGBA", (64, 64), (90 * i, 20, 70, 120)).save(own / f"{i}.png")
        (own / f"{i}.txt").write_text(f"a hat {i}\na cap\n", encoding="utf-8")
    changes = [
        "datasets.0.caption_dropout=0.5", "adapter.ema_decay=0.5", "training.batch_size=2", "training.accumulation=2",
        "datasets.0.validation_share=0", "previews.at_start=false", "previews.at_end=false",
    ]  # fmt: skip

    def run() -> Path:
        made = bench.run(*changes)
        recipe = recipes.load(made / "recipe.toml")
        kept = DatasetSection(
            path=own,
            resolutions=[64],
            caption_per_line=True,
            shuffle_tags=True,
            alpha_masks=True,
            regularisation=Regularisation.PRESERVE,
        )
        recipe = recipe.model_copy(update={"datasets": [*recipe.datasets, kept]})
        (made / "recipe.toml").write_text(recipes.dumps(recipe), encoding="utf-8")
        return made

    whole, parted = run(), run()
    bench.train(whole)
    bench.train(parted, stop_at=2)
    training = bench.train(parted, resume=True)
    ours, theirs = (each / "lora" / "zorb.safetensors" for each in (parted, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    step = next(b for b in (training.batches.read(i) for i in range(8)) if b.preserved)
    with torch.no_grad(), adapters.switched_off(training.denoiser):
        plain = answer_to(training.job, training.denoiser, step).predicted
    target = preserved_target(training.job, training.denoiser, step, torch.zeros_like(plain))
    place = step.preserved[0]
    torch.testing.assert_close(target[place], plain[place])  # by the encoders without their adapters too


@pytest.mark.parametrize(
    "name", ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder.encoder.layers.0.mlp.fc1"]
)
def test_a_file_for_encoders_that_stay_as_they_are_says_how_to_leave_them_out(
    tiny_z_image: Path, tmp_path: Path, name: str
) -> None:
    halves = ("lora_down", "lora_up") if name.startswith("lora_") else ("lora_A", "lora_B")
    file = tmp_path / "theirs.safetensors"
    save_file({f"{name}.{half}.weight": torch.zeros(4, 4) for half in halves}, file)
    base = BaseModel("tiny", "z_image", tiny_z_image)
    family = family_of(base)
    denoiser = family.load_denoiser(base, family.experts[0], torch.device("cpu"), torch.float32)
    with pytest.raises(AdapterError, match="changes the text encoder too") as refused:
        add_lora_file(denoiser, family, file)
    assert "--without-text-encoders" in refused.value.remedy


@pytest.mark.parametrize(("prediction", "said"), [("epsilon", "epsilon"), ("v_prediction", "v")])
def test_the_file_says_what_its_base_model_predicts(tmp_path: Path, prediction: str, said: str) -> None:
    folder = picture_models.build_sdxl(tmp_path / "model", prediction_type=prediction)
    base = BaseModel("tiny", "sdxl", folder)
    family, recipe = family_of(base), Recipe(name="m", base_model={"name": "sdxl"}, datasets=[{"path": "d"}])
    denoiser = family.load_denoiser(base, family.experts[0], torch.device("cpu"), torch.float32)
    adapters.add_adapter(denoiser, family, recipe.adapter, recipe.alpha, 1)
    (path, _), *_ = write_lora(
        tmp_path, denoiser, family, base, family.experts[0], recipe, step=1, final=True, items=1
    )  # fmt: skip
    assert lora_file.inspect(path).metadata["modelspec.prediction_type"] == said


def test_a_base_model_with_large_encoders_refuses(bench: Bench, tiny_z_image: Path) -> None:
    with pytest.raises(LorapodError, match="text encoders of this base model cannot be trained"):
        bench.train(bench.run(model=tiny_z_image))

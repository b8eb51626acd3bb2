"""The catalogue: every entry is whole and consistent, and a person's own are read beside it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fakes.hub_models import entry as make_entry
from lorapod.errors import BaseModelError
from lorapod.models import Layout, catalogue, entries
from lorapod.models.base_model import FAMILY_OF_PIPELINE
from lorapod.models.catalogue import FAMILIES, Entry, FileSpec
from lorapod.workspace import Workspace

EXPECTED = {
    "demo", "flux-dev", "sdxl", "qwen-image", "z-image", "z-image-turbo", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b",
    "wan2.1-i2v-14b-480p", "wan2.2-t2v-a14b", "wan2.2-t2v-a14b-high", "wan2.2-t2v-a14b-low", "wan2.2-i2v-a14b",
    "wan2.2-i2v-a14b-high", "wan2.2-i2v-a14b-low", "wan2.2-ti2v-5b", "flux-kontext-dev",
    "flux2-klein-base-4b", "qwen-image-edit-2509",
}  # fmt: skip


def test_the_promised_base_models_are_there() -> None:
    assert set(catalogue()) >= EXPECTED


@pytest.mark.parametrize("entry", catalogue().values(), ids=lambda e: e.name)
def test_an_entry_says_what_a_person_and_a_trainer_need(entry: Entry) -> None:
    assert entry.family in FAMILIES and entry.licence and entry.geometry
    if entry.packaged:
        return
    assert entry.hub and entry.parameters and entry.trainers and entry.lora_targets and entry.text_tokens
    for trainer in entry.trainers:
        specs = entry.files_for(trainer)
        assert len(specs) == len(set(specs))
        assert any(s.part.startswith(("transformer", "checkpoint", "all")) for s in specs)
    if entry.modality == "clip":
        assert entry.geometry.frame_step == 4 and entry.geometry.fps in (16, 24)
    denoisers = {(s.layout, s.part) for s in entry.files if s.part.startswith(("transformer", "checkpoint"))}
    assert denoisers <= {(s.layout, s.part) for s in entry.shapes}, "a wrong file would not be noticed"


def test_shapes_tell_the_wan_models_apart() -> None:
    seen = {}
    for name in ("wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.1-i2v-14b-480p", "wan2.2-i2v-a14b-high", "wan2.2-ti2v-5b"):
        shapes = next(s for s in catalogue()[name].shapes if s.layout is Layout.SINGLE_FILES)
        seen[name] = (tuple(sorted(shapes.tensors.items())), shapes.absent)
    assert len(set(seen.values())) == len(seen)


def test_the_two_experts_split_the_noise_without_a_gap() -> None:
    for kind in ("t2v", "i2v"):
        high, low = (catalogue()[f"wan2.2-{kind}-a14b-{which}"].timesteps for which in ("high", "low"))
        assert high and low and high[1] == 1 and low[0] == 0 and high[0] == low[1]


def test_what_the_engine_can_train_is_pulled_for_it() -> None:
    for entry in catalogue().values():
        has_folder = any(spec.layout == "diffusers" for spec in entry.files)
        if has_folder and entry.family in FAMILY_OF_PIPELINE.values():
            assert "builtin" in entry.trainers, entry.name


def test_a_trainer_that_cannot_train_it_is_refused_with_those_that_can() -> None:
    with pytest.raises(BaseModelError, match="musubi cannot train sdxl") as caught:
        catalogue()["sdxl"].files_for("musubi")
    assert "diffusion-pipe" in caught.value.why


@pytest.mark.parametrize(
    "wrong",
    [
        {"repo": "a/b"},
        {"repo": "a/b", "path": "x", "civitai": 3},
        {"repo": "a/b", "path": "../x"},
        {"repo": "a/b", "path": "x", "to": "/etc/x"},
        {"url": "http://example.org/x"},
        {"repo": "a/b/c", "path": "x"},
        {"repo": "a/b", "path": "x", "sha256": "short"},
    ],
)
def test_a_file_without_one_clear_safe_source_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FileSpec.model_validate({"layout": "original", "part": "vae"} | wrong)


def test_an_entry_that_needs_what_no_file_gives_is_refused() -> None:
    with pytest.raises(ValidationError, match="no file gives"):
        make_entry(trainers={"builtin": {"needs": ["original/vae"]}})


@pytest.mark.parametrize("text", ["name = 3", "not toml [", 'name = "x"\nfamily = "wax"', "\xff"])
def test_a_damaged_entry_of_the_workspace_is_named(workspace: Workspace, text: str) -> None:
    folder = workspace.models / "entries"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(BaseModelError, match=r"mine\.toml"):
        entries(workspace)

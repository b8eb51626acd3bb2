"""Where the workspace is."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorapod import workspace
from lorapod.settings import adopt_aliases
from lorapod.workspace import find_workspace


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NETWORK_VOLUME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(workspace, "POD_VOLUME", tmp_path / "workspace")
    return tmp_path / "workspace"


def test_the_old_templates_workspace_is_used_until_there_is_one_of_lorapods_own(volume: Path) -> None:
    assert find_workspace().root == volume.parent / "home/lorapod"
    volume.mkdir()
    assert find_workspace().root == volume / "lorapod"
    (volume / "image_dataset_here").mkdir()
    assert find_workspace().root == volume
    (volume / "diffusion_pipe_working_folder").mkdir()
    assert find_workspace().root == volume / "diffusion_pipe_working_folder"
    (volume / "lorapod").mkdir()
    assert find_workspace().root == volume / "lorapod"


def test_what_is_asked_for_comes_first(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume.mkdir()
    monkeypatch.setenv("NETWORK_VOLUME", str(volume / "mine"))
    assert find_workspace().root == volume / "mine"
    assert find_workspace(volume / "other").root == volume / "other"
    monkeypatch.setenv("NETWORK_VOLUME", " ")
    assert find_workspace().root == volume / "lorapod"


def test_aliases_never_take_the_place_of_a_key_that_is_set() -> None:
    environment = {"HUGGING_FACE_TOKEN": " hf_other ", "HF_TOKEN": "hf_own", "civitai_token": "c", "CIVITAI_TOKEN": " "}
    assert adopt_aliases(environment) == ["civitai_token"]
    assert environment["HF_TOKEN"] == "hf_own" and environment["CIVITAI_TOKEN"] == "c"

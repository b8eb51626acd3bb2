"""The family matrix runs, and says so where something is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    import family_matrix

    return family_matrix


def test_a_family_goes_through_all_of_it(matrix: ModuleType) -> None:
    found, seconds = matrix.run_matrix(["z_image"], "lora")
    assert [row.name for row in found] == ["Z-Image"] and not found[0].failed, found
    assert list(found[0].cells) == [
        "train + preview", "resume", "evaluate", "comfyui", "comfyui in diffusers", "diffusers", "diffusers in diffusers",
    ]  # fmt: skip
    assert 0 < sum(cell for cell in found[0].cells.values() if isinstance(cell, float)) <= seconds
    assert "| Z-Image | " in matrix.text_of(found, "lora", seconds)


def test_a_file_without_effect_fails_its_cell(matrix: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix.adapter_files, "add_lora_file", lambda *given: None)
    (row,), _ = matrix.run_matrix(["z_image"], "loha")
    assert row.failed and row.cells["comfyui"] == "AssertionError: the loss with the file is another"

"""A fake hub with a small Z-Image-like model on it, and a workspace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from fakes.hub import FakeHub, Repo
from fakes.hub_models import safetensors
from lorapod.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.setenv("CIVITAI_ENDPOINT", fake.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HF_TOKEN", "CIVITAI_TOKEN", "CIVITAI_API_KEY", "civitai_token"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        yield fake


@pytest.fixture
def toy(hub: FakeHub) -> Repo:
    """`maker/toy`: an index, a config, and weights of 3 MB in two files."""
    files = {
        "model_index.json": b'{"_class_name": "ZImagePipeline"}',
        "transformer/config.json": b"{}",
        "transformer/weights-1.safetensors": safetensors({"a.weight": [500, 1000]}),
        "transformer/weights-2.safetensors": safetensors({"b.weight": [250, 1000]}),
    }
    hub.repos["maker/toy"] = Repo(files)
    return hub.repos["maker/toy"]

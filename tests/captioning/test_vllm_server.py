"""A vLLM server of our own: started, waited for, asked with its key, and always ended."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from captioning.helpers import captioned, make_pictures, run
from lorapod.captioning.base import Captioner
from lorapod.captioning.joycaption import create
from lorapod.captioning.registry import Options
from lorapod.captioning.vllm_server import VllmCaptioner
from lorapod.errors import StageFailedError

FAKE = Path(__file__).parents[1] / "fakes/vllm"


def left(folder: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline", "status"])
    return [p for p in found if str(folder) in " ".join(p.info["cmdline"] or []) and p.info["status"] != "zombie"]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """A machine with vLLM and a large GPU."""
    (tmp_path / "joy").mkdir()
    (tmp_path / "joy/config.json").write_text('{"model_type": "llava", "vision_config": {"image_size": 384}}')
    monkeypatch.setenv("PATH", f"{FAKE.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("lorapod.captioning.joycaption.largest_gpu_gb", lambda: 80.0)
    return Options(model=str(tmp_path / "joy"), models=tmp_path / "models", environment=dict(os.environ))


def test_pictures_are_captioned_through_it_and_no_process_stays(options: Options, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 6)
    captioner: Captioner = create(options)
    assert isinstance(captioner, VllmCaptioner) and captioner.kinds == {"picture"}
    (server,) = left(tmp_path / "joy")
    assert not any(len(word) > 30 and "/" not in word for word in server.cmdline()), "no key among its arguments"
    outcome = run(folder, captioner)
    assert len(outcome.written) == 6 and len(captioned(folder)) == 6
    assert not left(tmp_path / "joy")


def test_a_server_that_does_not_come_up_is_told_with_its_last_words(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Options(
        model=options.model, models=options.models, environment={**options.environment, "FAKE_VLLM": "fail"}
    )
    with pytest.raises(StageFailedError, match="exit status 1") as caught:
        create(failing)
    assert "No available memory" in caught.value.why and "LORAPOD_VLLM=0" in caught.value.remedy
    assert not left(tmp_path / "joy")

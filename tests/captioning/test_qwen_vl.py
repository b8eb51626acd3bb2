"""Qwen3-VL's code path with a tiny random model: pictures and clips in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from captioning.tiny_qwen_vl import make
from data.clips_made import make_clip
from lorapod.captioning.base import Ask
from lorapod.captioning.local import Decoded
from lorapod.captioning.qwen_vl import QwenVL, create
from lorapod.captioning.registry import Options
from lorapod.errors import RequestError

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def asks(tmp_path: Path) -> list[Ask]:
    Image.new("RGB", (96, 64), (200, 10, 10)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 96), (10, 10, 200)).save(tmp_path / "b.png")
    make_clip(tmp_path / "c.mp4", 30)
    wanted = [("a.png", "picture"), ("b.png", "picture"), ("c.mp4", "clip")]
    return [Ask(tmp_path / name, kind, "Describe this." + " now" * n, max_tokens=8, temperature=0.0)  # type: ignore[arg-type]
            for n, (name, kind) in enumerate(wanted)]  # fmt: skip


def test_a_batch_of_pictures_and_a_clip_says_what_each_alone_would(folder: Path, asks: list[Ask]) -> None:
    model = QwenVL(folder, "cpu", 4)
    decoded = [Decoded(each, model.decode(each)) for each in asks]
    assert [len(each.media) for each in decoded] == [1, 1, 4]
    together = model.write(decoded)
    alone = [model.write([each])[0] for each in decoded]
    assert [each.text for each in together] == [each.text for each in alone]
    assert all(1 <= each.output_tokens <= 8 for each in together)
    model.free()


def test_a_clip_is_told_with_the_times_of_its_frames(folder: Path, asks: list[Ask]) -> None:
    model = QwenVL(folder, "cpu", 3)
    media = model.decode(asks[2])
    text = model._text(Decoded(asks[2], media), [2, 2, 2])
    assert text.startswith(
        "<|im_start|>user\n<0.0 seconds><|vision_start|><|image_pad|><|image_pad|><|vision_end|><0.5"
    )
    assert text.count("<|image_pad|>") == 6 and text.endswith("<|im_start|>assistant\n")


def test_what_is_missing_is_said(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RequestError, match="needs a GPU"):
        create(Options(model=str(folder)))
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(RequestError, match="another kind"):
        QwenVL(tmp_path, "cpu", 4)
    made = create(Options(model=str(folder), environment={"LORAPOD_CAPTION_ON_CPU": "1"}))
    assert made.kinds == {"picture", "clip"}

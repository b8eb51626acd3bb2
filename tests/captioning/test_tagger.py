"""The tagger's code path with a tiny ONNX model of the same shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.helpers import make_pictures, run
from lorapod.captioning.base import Ask
from lorapod.captioning.cleaning import Judge
from lorapod.captioning.registry import Options
from lorapod.captioning.wording import Wish
from lorapod.errors import RequestError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TAGS = "tag_id,name,category,count\n1,general,9,1\n2,solo,0,1\n3,red_coat,0,1\n4,^_^,0,1\n5,rarely_so,0,1\n"
TAGS += "6,momo_(show),4,1\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Gives 0.9 for all, less what it is asked to be less sure of, plus the mean of blue over 1000."""
    folder = tmp_path / "tagger"
    folder.mkdir()
    (folder / "selected_tags.csv").write_text(TAGS, encoding="utf-8")
    from onnx import TensorProto, helper, numpy_helper

    base = np.array([0.99, 0.5, 0.7, 0.6, 0.1, 0.9], dtype=np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Slice", ["mean", "zero", "one", "last"], ["blue"]),
        helper.make_node("Mul", ["blue", "small"], ["little"]),
        helper.make_node("Add", ["little", "base"], ["tags"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(value, dtype=kind), name)
        for name, value, kind in (
            ("axes", [1, 2], np.int64), ("zero", [0], np.int64), ("one", [1], np.int64), ("last", [1], np.int64),
            ("small", 0.001, np.float32), ("base", base, np.float32),
        )
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "tagger",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 16, 16, 3])],
        [helper.make_tensor_value_info("tags", TensorProto.FLOAT, ["n", 6])],
        constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    made.ir_version = 9
    onnx.save(made, folder / "model.onnx")
    return folder


def test_tags_come_by_how_sure_it_is_and_characters_first(model: Path, tmp_path: Path) -> None:
    from lorapod.captioning.tagger import create

    folder = make_pictures(tmp_path / "set", 3)
    captioner = create(Options(model=str(model)))
    outcome = run(folder, captioner, words=Judge(Wish(unit="tags", trigger="ohwx", captioner="tagger")))
    assert len(outcome.written) == 3 and outcome.error is None
    texts = {path.read_text().strip() for path in folder.glob("*.txt")}
    assert texts == {"ohwx, momo (show), red coat, ^_^, solo"}


def test_a_picture_is_padded_with_white_and_its_colours_are_the_other_way_round(model: Path, tmp_path: Path) -> None:
    from lorapod.captioning.tagger import Tagger

    Image.new("RGBA", (40, 20), (255, 0, 10, 255)).save(tmp_path / "a.png")
    pixels = Tagger(model).decode(Ask(tmp_path / "a.png", "picture", ""))
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.float32
    assert pixels[0, 8].tolist() == [255, 255, 255], "above it is white"
    assert pixels[8, 8].tolist() == [10, 0, 255], "blue, green, red"


def test_a_folder_without_a_tagger_is_said(tmp_path: Path) -> None:
    from lorapod.captioning.tagger import create

    with pytest.raises(RequestError, match="holds no tagger"):
        create(Options(model=str(tmp_path)))

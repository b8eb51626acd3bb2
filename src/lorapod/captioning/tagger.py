"""Tags by a WD14-type tagger (SmilingWolf/wd-eva02-large-tagger-v3 and its kin) through onnxruntime; pictures alone.

Tags are given by how sure the model is, characters first, underscores as spaces but in emoticons. Source of sizes, colours
and thresholds: the models' cards and the practice of sd-scripts. Not verified: the published files were never opened here.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lorapod.captioning.base import Answer, Ask, ItemError, Kind
from lorapod.captioning.local import Decoded, LocalCaptioner, find_model
from lorapod.captioning.registry import Options
from lorapod.data.names import shown
from lorapod.errors import RequestError

REPOSITORY = "SmilingWolf/wd-eva02-large-tagger-v3"
GENERAL_FROM, CHARACTER_FROM = 0.35, 0.85
"""Least probability of a tag that is told."""

_GENERAL, _CHARACTER = 0, 4
_EMOTICON = 3
_AT_ONCE = 8


def create(options: Options) -> LocalCaptioner:
    """From the options; the model is fetched into the workspace where `model` is no folder.

    Raises:
        RequestError: The folder holds no tagger.
        FetchError: It cannot be fetched.
    """
    wanted = ["model.onnx", "selected_tags.csv"]
    folder = find_model(options.model or REPOSITORY, options.models, options.environment, wanted, options.heard)
    return LocalCaptioner("tagger", Tagger(folder), options.batch or _AT_ONCE)


class Tagger:
    """The model, loaded at once, since it is small."""

    kinds: frozenset[Kind] = frozenset({"picture"})

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        try:
            self.tags = _tags(folder / "selected_tags.csv")
            self._session = onnxruntime.InferenceSession(
                folder / "model.onnx", providers=onnxruntime.get_available_providers()
            )
        except (OSError, KeyError, ValueError, onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf) as error:
            raise RequestError(f"{folder} holds no tagger", str(error), "Name a folder with model.onnx.") from error
        self.name = folder.name
        source = self._session.get_inputs()[0]
        self._input, self._side = source.name, source.shape[1] if isinstance(source.shape[1], int) else 448

    def decode(self, ask: Ask) -> NDArray[np.float32]:
        """Pixels (side, side, 3) in BGR, 0 to 255: upright, over white, padded with white to a square."""
        try:
            with Image.open(ask.path) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGBA")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ItemError(f"{shown(ask.path.name)} cannot be read", str(error)) from error
        side = max(image.size)
        square = Image.new("RGBA", (side, side), "white")
        square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
        small = square.convert("RGB").resize((self._side, self._side), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(small, dtype=np.float32)[:, :, ::-1])

    def write(self, batch: Sequence[Decoded]) -> list[Answer]:
        pixels = np.stack([each.media for each in batch])
        (probabilities,) = self._session.run(None, {self._input: pixels})
        return [Answer(", ".join(self.told(row)), dollars=0.0) for row in np.asarray(probabilities)]

    def told(self, probabilities: NDArray[np.float32]) -> list[str]:
        """Tags of one picture: characters first, each the surest first."""
        found = []
        for (name, category), probability in zip(self.tags, probabilities, strict=True):
            least = {_GENERAL: GENERAL_FROM, _CHARACTER: CHARACTER_FROM}.get(category)
            if least is not None and probability >= least:
                found.append((category != _CHARACTER, -float(probability), name))
        return [name if len(name) <= _EMOTICON else name.replace("_", " ") for _, _, name in sorted(found)]

    def free(self) -> None:
        pass


def _tags(file: Path) -> list[tuple[str, int]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [(row["name"], int(row["category"])) for row in csv.DictReader(lines)]

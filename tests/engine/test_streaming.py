"""A base model in shards, of every family: what two ranks hold is put together to what one would hold.

One process plays both ranks; tests/engine/test_ranks.py has two.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorapod import recipe as recipes
from lorapod.engine import streaming
from lorapod.engine.batches import Batch
from lorapod.engine.job import Job
from lorapod.engine.prepare import prepare
from lorapod.engine.ranks import Ranks
from lorapod.engine.streaming import InShards
from lorapod.engine.train import Training
from lorapod.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import family_matrix


class OneOfTwo(Ranks):
    """Rank 0 of two, of which the other does nothing but hold its shards."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.largest = 0

    def mine(self, values: Sequence[Any]) -> list[Any]:
        return list(values)

    def wait(self) -> None:
        pass

    def dealt(self, values: Sequence[Any]) -> Any:
        yield from ((value, True) for value in values)

    def part_of(self, batch: Batch, number: int) -> tuple[Batch | None, float]:
        return batch, 1.0

    def passes_left(self, sizes: Sequence[int]) -> int:
        return 0

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def combine(self, parameters: Any, losses: list[torch.Tensor], stop: bool) -> list[torch.Tensor]:
        return losses

    def gather(self, part: torch.Tensor, name: int) -> tuple[torch.Tensor, Any]:
        (other,) = (theirs for ours, theirs in self.pairs if ours is part)
        self.largest = max(self.largest, len(part))
        return torch.cat([part, other]), None


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> OneOfTwo:
    ranks = OneOfTwo()
    keep = InShards.keep

    def keep_both(self: InShards, blocks: Sequence[streaming.Places]) -> None:
        held = [{place: parameter.data for place, parameter in places.items()} for places in blocks]
        ranks.rank = 1
        keep(self, blocks)
        theirs = self.mine
        for places, values in zip(blocks, held, strict=True):
            for place, parameter in places.items():
                assert parameter.untyped_storage().nbytes() <= 4  # nothing of it is left here
                parameter.data = values[place]
        ranks.rank = 0
        keep(self, blocks)
        ranks.pairs = list(zip(self.mine, theirs, strict=True))

    monkeypatch.setattr(InShards, "keep", keep_both)
    return ranks


def trained(run: Path, workspace: Workspace, ranks: Ranks | None = None) -> Training:
    job = Job(run, workspace)
    prepare(job, lambda: False)
    training = Training(job, ranks)
    assert training.run(False, lambda: False)
    return training


def made_by(run: Path) -> tuple[dict[str, bytes], list[bytes]]:
    """The LoRAs' tensors and the previews of a run."""
    tensors = {
        f"{file.name}: {name}": value.numpy().tobytes()
        for file in sorted((run / "lora").glob("*.safetensors"))
        for name, value in load_file(file).items()
    }
    return tensors, [file.read_bytes() for file in sorted((run / "previews").glob("*.png"))]


def change(run: Path, **values: str) -> None:
    """Sets keys of a run's recipe, as TOML, wherever they are."""
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    for key, value in values.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    (run / "recipe.toml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "kind", "also"),
    [
        ("SDXL", "lora", {}),
        ("FLUX.1", "loha", {"quantize": '"int8"', "gradient_checkpointing": '"selective"'}),
        ("FLUX.2 klein", "lora", {}),
        ("Qwen-Image", "dora", {"quantize": '"nf4"'}),
        ("Wan t2v-a14b", "lora", {"quantize": '"fp8"'}),  # an expert trains while the other draws
    ],
)
def test_every_family_learns_the_same_to_the_last_bit(
    name: str, kind: str, also: dict[str, str], tmp_path: Path, one_of_two: OneOfTwo
) -> None:
    """Whatever type the weights have, and previews too."""
    _, build = family_matrix.rows()[name]
    model, workspace = build(tmp_path / "model"), Workspace(tmp_path / "workspace")
    frames = 9 if name.startswith("Wan") else 1
    data = family_matrix.dataset(tmp_path / "data", "pppp")
    runs = [tmp_path / "workspace/runs" / each for each in ("plain", "shards")]
    for run in runs:
        family_matrix.recipe_for(run, model, data, kind, ["comfyui"], frames)
        change(run, **{"gradient_checkpointing": '"full"', **also})
    change(runs[1], shard_base="true")
    trained(runs[0], workspace)
    trained(runs[1], workspace, one_of_two)
    assert one_of_two.largest and made_by(runs[1]) == made_by(runs[0])


def test_an_adapter_that_previews_leave_out_is_merged_again_after_them(
    tiny_z_image: Path, tmp_path: Path, one_of_two: OneOfTwo
) -> None:
    """The whole base model is read from disk for that, twice."""
    data, workspace = family_matrix.dataset(tmp_path / "data", "pppp"), Workspace(tmp_path / "workspace")
    runs = [tmp_path / "workspace/runs" / each for each in ("first", "plain", "shards")]
    for run in runs:
        family_matrix.recipe_for(run, tiny_z_image, data, "lora", ["comfyui"], 1)
    trained(runs[0], workspace)
    for run in runs[1:]:
        text = (run / "given.toml").read_text(encoding="utf-8").replace("every = 0\nat_start", "every = 1\nat_start")
        text = text.replace("[[datasets]]", f"training_adapter = '{runs[0] / 'lora/zorb.safetensors'}'\n[[datasets]]")
        (run / "given.toml").write_text(text, encoding="utf-8")
        (run / "recipe.toml").write_text(recipes.dumps(recipes.load(run / "given.toml")), encoding="utf-8")
    change(runs[2], shard_base="true", gradient_checkpointing='"full"')
    for run, ranks in ((runs[1], None), (runs[2], one_of_two)):
        trained(run, workspace, ranks)
    assert made_by(runs[2]) == made_by(runs[1]) != made_by(runs[0])
    assert len(made_by(runs[2])[1]) == 3

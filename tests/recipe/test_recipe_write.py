"""Writing recipes whole, and telling trainings apart."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lorapod import recipe

Write = Callable[..., Path]
FULL = """\
repeats = 2
[[datasets]]
path = "pictures"
shuffle_tags = true
[adapter]
alpha = 4
continue_from = "start.safetensors"
[optimizer]
learning_rate = 1e-5
betas = [0.8, 0.999]
[training]
epochs = 7
[previews]
prompts = ["a \\"cat\\"\\nin a hat", 'back\\slash', "é 猫 \\u007f \\u0001"]
seeds = [1, 9223372036854775807]
"""


def test_a_written_recipe_reads_back_equal_and_says_everything(write: Write, tmp_path: Path):
    (tmp_path / "start.safetensors").touch()
    for more in ("", FULL):
        first = recipe.load(write(more))
        text = recipe.dumps(first)
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        resolved = tmp_path / "elsewhere/resolved.toml"
        resolved.write_text(text, encoding="utf-8")
        again = recipe.load(resolved)
        assert again == first
        assert recipe.dumps(again) == text
        assert recipe.digest(again) == recipe.digest(first)
    assert 'schedule = "cosine"' in text
    assert f'path = "{tmp_path}/pictures"' in text
    assert "None" not in text and "steps = 1000" not in text


def test_any_text_survives_writing(write: Write, tmp_path: Path):
    rng = random.Random(3)
    path = write()
    for _ in range(150):
        text = "".join(rng.choices("\"'\\\n\r\t#=[]{}é\u2028\u0000\u001f\u007f\u0085😀ab ", k=rng.randrange(12)))
        first = recipe.load(path).model_copy(update={"notes": text})
        first.previews.prompts = [text, "x"]
        (tmp_path / "again.toml").write_text(recipe.dumps(first), encoding="utf-8", newline="")
        again = recipe.load(tmp_path / "again.toml")
        assert (again.notes, again.previews.prompts) == (text, [text, "x"])


@pytest.mark.parametrize(
    "override",
    ["name=dog", "notes=x", "training.steps=999", "training.epochs=9", "training.gradient_checkpointing=true",
     "previews.every=7", "evaluation.every=7", "saving.lora_every=7", "saving.precision=fp32", "adapter.alpha=16"],
)  # fmt: skip
def test_what_does_not_change_the_weights_keeps_the_digest(write: Write, override: str):
    path = write()
    one, other = recipe.load(path), recipe.load(path, [override])
    assert recipe.digest(one) == recipe.digest(other)
    assert recipe.differences(one, other) == []


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("optimizer.learning_rate=2e-4", ["optimizer.learning_rate"]),
        ("adapter.alpha=8", ["adapter.alpha"]),
        ("adapter.rank=8", ["adapter.alpha", "adapter.rank"]),
        ("training.seed=1", ["training.seed"]),
        ("training.precision=bf16", ["training.precision"]),
        ("datasets.0.repeats=2", ["datasets.0.repeats"]),
        ("base_model.name=z-image", ["base_model.name"]),
        ("trainer=musubi", ["trainer"]),
        ("optimizer.betas=[0.9, 0.98]", ["optimizer.betas"]),
    ],
)
def test_what_changes_the_weights_changes_the_digest_and_is_named(write: Write, override: str, difference: list[str]):
    path = write()
    one, other = recipe.load(path), recipe.load(path, [override])
    assert recipe.digest(one) != recipe.digest(other)
    assert set(difference) <= set(recipe.differences(one, other))
    if not override.startswith("base_model"):  # another base model brings another preset with it
        assert recipe.differences(one, other) == difference


def test_a_dataset_more_is_one_difference(write: Write):
    one = recipe.load(write())
    other = recipe.load(write('[[datasets]]\npath = "pictures"\n'))
    assert recipe.differences(one, other) == recipe.differences(other, one) == ["datasets.1"]
    assert recipe.digest(one) != recipe.digest(other)


def test_the_digest_of_a_recipe_is_the_same_in_every_version():
    found = recipe.Recipe(
        name="cat",
        base_model=recipe.BaseModelSection(name="demo"),
        datasets=[recipe.DatasetSection(path=Path("/pictures"))],
        training=recipe.TrainingSection(seed=7),
    )
    # Checkpoints hold it: if this changes, no earlier run can be resumed.
    assert recipe.digest(found) == "6c3053ae8a9f4f47"

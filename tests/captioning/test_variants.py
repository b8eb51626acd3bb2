"""Several captions of an item: asked for one by one, written together, trained with in turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from captioning.helpers import captioned, colour_of, make_pictures, run, service
from fakes.openai_server import FakeOpenAI
from lorapod.captioning.cleaning import Judge, unsound
from lorapod.captioning.items import plan_captions
from lorapod.captioning.ledger import undo_newest
from lorapod.captioning.wishes import variants_of
from lorapod.captioning.wording import Wish
from lorapod.cli.main import app
from lorapod.data import Geometry, plan_datasets
from lorapod.errors import RequestError
from lorapod.recipe.schema import DatasetSection

SIZES = Geometry(divisor=16, frame_step=1, fps=None)


def judges(variants: str = "long,short,tags") -> list[Judge]:
    return [Judge(wish) for wish in variants_of(Wish(trigger="ohwx"), variants, "openai")]


def lines_of(colour: tuple[int, int, int]) -> list[str]:
    red, green, blue = colour
    plain = f"ohwx, a plain square of the colour {red} {green} {blue}"
    return [f"{plain}, seen from straight ahead and lit evenly from edge to edge.", plain,
            f"ohwx, square, plain, colour {red} {green} {blue}"]  # fmt: skip


def test_each_variant_is_asked_for_and_a_line_of_the_caption_file(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 4)
    (folder / "item-0002.txt").write_text("by my own hand\n")
    with FakeOpenAI(chance={"503": 0.2, "refusal": 0.1}, retry_after="0.02") as fake:
        outcome = run(folder, service(fake.url), words=judges())
    assert len(outcome.written) == 3 and outcome.tally.total == 3
    texts = captioned(folder)
    assert texts.pop("item-0002") == "by my own hand\n"
    assert texts == {f"item-{i:04d}": "\n".join(lines_of(colour_of(i))) + "\n" for i in (0, 1, 3)}


def test_an_item_gets_all_its_captions_or_none(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 2)
    with FakeOpenAI(always={colour_of(1): "filter"}) as fake:
        outcome = run(folder, service(fake.url), words=judges())
    assert captioned(folder).keys() == {"item-0000"}
    assert [left.path.stem for left in outcome.failed] == ["item-0001"]


def test_captions_that_lack_a_variant_are_redone_and_undo_brings_the_former_ones_back(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 2)
    with FakeOpenAI() as fake:
        run(folder, service(fake.url), words=judges("short"))
        former = captioned(folder)
        assert not plan_captions(folder).ask
        plan = plan_captions(folder, redo="failed", unsound=lambda _, text: unsound(judges(), text))
        run(plan, service(fake.url), words=judges())
    assert captioned(folder)["item-0001"].splitlines() == lines_of(colour_of(1))
    assert not plan_captions(folder, redo="failed", unsound=lambda _, text: unsound(judges(), text)).ask
    undone = undo_newest([folder])
    assert undone and captioned(folder) == former


def test_training_takes_the_captions_in_turn_and_evaluation_the_first(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 12)
    for i in range(12):
        (folder / f"item-{i:04d}.txt").write_text(f"long {i}\n\n  short {i}\r\ntags, {i}\n")
    section = DatasetSection(path=folder, caption_per_line=True, trigger_word="ohwx", resolutions=[64])
    plan = plan_datasets([section], SIZES, seed=0)
    assert plan.validation and not any("joined" in problem.what for problem in plan.problems)
    for item in plan.train:
        number = int(item.item.path.stem[-4:])
        assert item.captions == (f"ohwx, long {number}", f"ohwx, short {number}", f"ohwx, tags, {number}")
    assert all(len(item.captions) == 1 and "long" in item.captions[0] for item in plan.validation)
    joined = plan_datasets([section.model_copy(update={"caption_per_line": False})], SIZES, seed=0)
    assert joined.train[0].captions[0].count(",") == 2 and len(joined.train[0].captions) == 1
    assert any("caption_per_line" in problem.remedy for problem in joined.problems)


@pytest.mark.parametrize(
    ("variants", "captioner", "says"),
    [
        ("long,huge", "openai", "no variant 'huge'"),
        ("long,long", "openai", "twice"),
        ("long,short", "template", "one kind"),
        ("tags,short", "tagger", "one kind"),
    ],
)
def test_what_cannot_be_varied_is_refused(variants: str, captioner: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        variants_of(Wish(), variants, captioner)
    assert says in f"{caught.value.what} {caught.value.why}"
    with pytest.raises(RequestError):
        variants_of(Wish(prompt="Say what you see"), "long,short", "openai")


def test_commands_know_variants(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 3)

    def caption(*words: str) -> str:
        ended = CliRunner().invoke(app, ["--workspace", str(tmp_path), "caption", *words], env={"COLUMNS": "160"})
        assert ended.exit_code == 0, ended.output
        return ended.output

    with FakeOpenAI() as fake:
        words = (str(folder), "--endpoint", fake.url, "--trigger", "ohwx", "--variants", "short,tags", "--yes")
        shown = caption(*words, "--dry-run")
        assert shown.count("Prompt:") == 2 and shown.count("item-0001.png:") == 2
        assert "caption_per_line = true" in caption(*words)
    (folder / "item-0002.txt").write_text("ohwx, a plain square of one colour, by hand\n")
    found = caption("check", str(folder), "--per-line", "--trigger", "ohwx")
    assert "3 of 3 items have a caption" in found and "It has 1 caption, most items have 2" in found

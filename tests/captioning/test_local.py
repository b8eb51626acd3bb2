"""Models on this machine: JoyCaption's code path with a tiny random model, and batches in which memory runs out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from captioning.helpers import captioned, make_pictures, run
from captioning.tiny_llava import make
from lorapod.captioning.base import Answer, Ask, ItemError, Kind
from lorapod.captioning.items import plan_captions
from lorapod.captioning.joycaption import JoyCaption, batch_for, create
from lorapod.captioning.local import Decoded, LocalCaptioner, find_model
from lorapod.captioning.registry import Options
from lorapod.captioning.runner import Runner
from lorapod.errors import LorapodError, RequestError

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("llava"))


def ask(path: Path, most: int = 12, temperature: float = 0.0) -> Ask:
    return Ask(path, "picture", "Describe this image.", max_tokens=most, temperature=temperature)


def test_the_model_looks_and_a_batch_says_what_each_alone_would(model: Path, tmp_path: Path) -> None:
    paths = []
    for number, colour in enumerate([(255, 0, 0), (0, 255, 0), (250, 250, 250)]):
        Image.new("RGB", (64 + 40 * number, 48), colour).save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    joy = JoyCaption(model, "fp32")
    asks = [Ask(p, "picture", "Describe this image." + " more words" * n, max_tokens=10, temperature=0.0)
            for n, p in enumerate(paths)]  # fmt: skip
    decoded = [Decoded(each, joy.decode(each)) for each in asks]
    together = joy.write(decoded)
    alone = [joy.write([each])[0] for each in decoded]
    assert [each.text for each in together] == [each.text for each in alone], "left padding changes nothing"
    other = joy.write([Decoded(asks[0], joy.decode(asks[1]))])[0]
    assert other.text != alone[0].text, "the picture is looked at"
    assert all(1 <= each.output_tokens <= 10 and each.dollars == 0 for each in together)
    joy.free()


def test_an_answer_without_an_end_is_cut(model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (28, 28), "red").save(tmp_path / "a.png")
    joy = JoyCaption(model, "fp32")
    request = ask(tmp_path / "a.png", most=1)
    (answer,) = joy.write([Decoded(request, joy.decode(request))])
    assert answer.output_tokens <= 1 and (answer.complete or answer.text)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "CMYK", "I;16"])
def test_pictures_of_all_kinds_are_decoded_over_white(model: Path, tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    (Image.new("RGBA", (40, 60), (0, 0, 0, 0)) if mode == "RGBA" else Image.new(mode, (40, 60))).save(file)
    image = JoyCaption(model, "fp32").decode(ask(file))
    assert (image.mode, image.size) == ("RGB", (28, 28))
    if mode == "RGBA":
        assert image.getpixel((3, 3)) == (255, 255, 255)


def test_a_folder_is_captioned_by_the_runner_and_one_broken_picture_fails_alone(model: Path, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 5)
    options = Options(model=str(model), batch=2, environment={"LORAPOD_CAPTION_ON_CPU": "1"})
    outcome = run(folder, create(options), words=_Anything())
    assert len(outcome.written) == 5 and not outcome.failed and len(captioned(folder)) == 5


class _Anything:
    """Takes every answer of a random model."""

    def ask(self, subject: object) -> Ask:
        return ask(subject.path, most=4)  # type: ignore[attr-defined]

    def __call__(self, request: Ask, answer: Answer, repeats: int) -> object:
        from lorapod.captioning.judging import Accepted

        return Accepted(f"caption of {request.path.stem}")


class Slow:
    """A model that notes its batches."""

    name = "slow"
    kinds: frozenset[Kind] = frozenset({"picture"})

    def __init__(self, room: int = 100, seconds: float = 0.0) -> None:
        self.room, self.seconds, self.batches = room, seconds, list[int]()
        self.decoded, self.deciding = 0, threading.Lock()

    def decode(self, ask: Ask) -> str:
        with self.deciding:
            self.decoded += 1
        if ask.path.stem.endswith("3"):
            raise ItemError("It is broken")
        return ask.path.stem

    def write(self, batch: Sequence[Decoded]) -> list[Answer]:
        time.sleep(self.seconds)
        if len(batch) > self.room:
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
        self.batches.append(len(batch))
        return [Answer(f"It is {each.media}.") for each in batch]

    def free(self) -> None:
        pass


def test_batches_are_full_and_answers_belong_to_their_asks(tmp_path: Path) -> None:
    async def whole() -> tuple[list[object], Slow]:
        model = Slow(seconds=0.01)
        captioner = LocalCaptioner("slow", model, 4)
        asks = [ask(Path(f"/x/item-{number}")) for number in range(12)]
        answers = await asyncio.gather(*(captioner.caption(each) for each in asks), return_exceptions=True)
        await captioner.close()
        return list(answers), model

    answers, model = asyncio.run(whole())
    for number, answer in enumerate(answers):
        if number == 3:
            assert isinstance(answer, ItemError)
        else:
            assert isinstance(answer, Answer) and answer.text == f"It is item-{number}."
    assert sum(model.batches) == 11 and max(model.batches) == 4 and len(model.batches) <= 4


def test_when_memory_runs_out_batches_are_halved_and_nothing_is_lost() -> None:
    async def whole() -> tuple[list[Answer], LocalCaptioner]:
        captioner = LocalCaptioner("slow", Slow(room=2), 8)
        answers = await asyncio.gather(*(captioner.caption(ask(Path(f"/x/i{n}0"))) for n in range(8)))
        await captioner.close()
        return answers, captioner

    answers, captioner = asyncio.run(whole())
    assert [each.text for each in answers] == [f"It is i{n}0." for n in range(8)]
    assert captioner.batch == 2 and "2 at a time" in captioner.warnings[0]


def test_a_model_that_does_not_fit_at_all_ends_the_run(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 2)
    outcome = run(folder, LocalCaptioner("slow", Slow(room=0), 4))
    assert outcome.error is not None and "no room" in outcome.error.what and not outcome.written


def test_stopping_keeps_what_is_written(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 30)

    async def stopped() -> int:
        captioner = LocalCaptioner("slow", Slow(seconds=0.1), 2)
        judge = _Anything()
        runner = Runner(plan_captions(folder), captioner, [judge])  # type: ignore[arg-type]
        task = asyncio.create_task(runner.run())
        await asyncio.sleep(0.5)
        runner.stop()
        outcome = await task
        await captioner.close()
        return len(outcome.written)

    written = asyncio.run(stopped())
    assert 0 < written < 30 and len(captioned(folder)) == written


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="needs a GPU") as caught:
        create(Options(model=str(tmp_path)))
    assert "LORAPOD_CAPTION_ON_CPU" in caught.value.remedy
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(RequestError, match="another kind"):
        JoyCaption(tmp_path, "bf16")
    with pytest.raises(LorapodError, match="no folder"):
        find_model("someone/something", None, {})
    assert (batch_for(80, "bf16"), batch_for(24, "bf16"), batch_for(8, "4-bit")) == (16, 6, 1)

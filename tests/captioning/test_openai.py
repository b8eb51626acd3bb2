"""The captioner of OpenAI-compatible services, by the real client against a fake over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captioning.helpers import service
from data.clips_made import make_clip
from fakes.openai_server import FakeOpenAI
from lorapod.captioning.base import Answer, Ask, BusyError, DeclinedError, ItemError, Kind
from lorapod.captioning.openai import create
from lorapod.captioning.registry import Options
from lorapod.errors import LorapodError, RequestError


def picture(folder: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path = folder / "cat.png"
    (image or Image.new("RGB", (64, 32), (200, 40, 80))).save(path, **options)
    return path


def asked(fake: FakeOpenAI, path: Path, kind: Kind = "picture", **options: Any) -> Answer:
    async def once() -> Answer:
        captioner = service(fake.url, **options)
        try:
            return await captioner.caption(Ask(path, kind, "What is it?", system="Be brief.", max_tokens=77))
        finally:
            await captioner.close()

    return asyncio.run(once())


def sent_pictures(fake: FakeOpenAI) -> list[Image.Image]:
    parts = fake.requests[-1]["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def test_what_is_sent_and_what_comes_back(tmp_path: Path) -> None:
    with FakeOpenAI() as fake:
        answer = asked(fake, picture(tmp_path), price=(1.0, 10.0))
        request = fake.requests[-1]
    assert answer == Answer("a plain square of the colour 200 40 80", True, 300, 12, (300 + 120) / 1e6)
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert [part["type"] for part in request["messages"][1]["content"]] == ["text", "image_url"]
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("fake-vl", 77, 0.6)


def test_pictures_are_turned_put_over_white_and_scaled_down(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with FakeOpenAI() as fake:
        large = Image.new("RGBA", (3000, 1500), (0, 0, 0, 0))
        asked(fake, picture(tmp_path, large, exif=exif))
        (sent,) = sent_pictures(fake)
    assert sent.format == "JPEG" and sent.size == (512, 1024)
    assert sent.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_clips_go_as_frames_or_whole(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=24)
    with FakeOpenAI() as fake:
        asked(fake, clip, "clip", frames=6)
        frames = sent_pictures(fake)
        told = fake.requests[-1]["messages"][-1]["content"][0]["text"]
        asked(fake, clip, "clip", clips_as_video=True)
        video = fake.requests[-1]["messages"][-1]["content"][1]
    assert len(frames) == 6
    assert len({frame.tobytes() for frame in frames}) == 6, "the same frame several times"
    assert told.startswith("These 6 pictures are frames of one clip, in order, at 0.0, ")
    assert video["type"] == "video_url"
    assert base64.b64decode(video["video_url"]["url"].removeprefix("data:video/mp4;base64,")) == clip.read_bytes()


@pytest.mark.parametrize(
    ("fault", "slow_down", "seconds"),
    [("429", True, 3.0), ("503", True, 3.0), ("500", False, None), ("cut", False, None), ("reset", False, None),
     ("bad json", False, None), ("no choices", True, None)],
)  # fmt: skip
def test_what_may_pass_is_busy(tmp_path: Path, fault: str, slow_down: bool, seconds: float | None) -> None:
    with FakeOpenAI(retry_after="3") as fake:
        fake.next_faults.append(fault)
        with pytest.raises(BusyError) as caught:
            asked(fake, picture(tmp_path))
    assert len(fake.requests) == 1, "the client asked again by itself"
    assert (caught.value.slow_down, caught.value.seconds) == (slow_down, seconds)


def test_retry_after_may_be_a_date(tmp_path: Path) -> None:
    with FakeOpenAI() as fake:
        fake.next_faults.append("429 date")
        with pytest.raises(BusyError) as caught:
            asked(fake, picture(tmp_path))
    assert caught.value.seconds is not None and 0 <= caught.value.seconds <= 2


def test_no_answer_in_time_and_no_service_are_busy(tmp_path: Path) -> None:
    with FakeOpenAI(seconds=1) as fake, pytest.raises(BusyError, match="too long"):
        asked(fake, picture(tmp_path), timeout_seconds=0.2)
    with pytest.raises(BusyError, match="connection"):
        asked(fake, picture(tmp_path))


def test_a_service_that_is_not_there_is_told_once_and_not_for_each_item() -> None:
    with FakeOpenAI() as fake:
        pass
    with pytest.raises(LorapodError, match="cannot be reached") as caught:
        create(Options(endpoint=fake.url, model="m"))
    assert "Start the service" in str(caught.value)


@pytest.mark.parametrize("fault", ["filter", "403 moderation"])
def test_what_is_filtered_is_declined(tmp_path: Path, fault: str) -> None:
    with FakeOpenAI() as fake, pytest.raises(DeclinedError):
        fake.next_faults.append(fault)
        asked(fake, picture(tmp_path))


@pytest.mark.parametrize(
    ("changed", "options", "what"),
    [
        ({"key": "right"}, {"key": "wrong"}, "refuses the key"),
        ({"models": ("other",)}, {}, "does not know fake-vl"),
        ({"sees": False}, {}, "cannot look at pictures"),
    ],
)
def test_what_no_item_fares_better_with_stops(tmp_path: Path, changed: Any, options: Any, what: str) -> None:
    with FakeOpenAI(**changed) as fake, pytest.raises(LorapodError, match=what) as caught:
        asked(fake, picture(tmp_path), **options)
    assert not isinstance(caught.value, BusyError | DeclinedError | ItemError)


def test_an_answer_at_the_limit_is_incomplete_and_thoughts_are_left_out(tmp_path: Path) -> None:
    with FakeOpenAI() as fake:
        fake.next_faults.extend(["length", "think"])
        assert not asked(fake, picture(tmp_path)).complete
        assert asked(fake, picture(tmp_path)).text == "a plain square of the colour 200 40 80"


def test_parameters_that_a_service_does_not_take_are_left_out(tmp_path: Path) -> None:
    with FakeOpenAI(refuses=("max_tokens", "temperature")) as fake:
        assert asked(fake, picture(tmp_path)).complete
        assert fake.requests[-1]["max_completion_tokens"] == 77


def test_a_picture_that_cannot_be_opened_is_the_items_fault(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"x")
    with FakeOpenAI() as fake, pytest.raises(ItemError):
        asked(fake, tmp_path / "cat.png")
    assert fake.requests == []


def test_the_cost_that_a_service_tells_counts(tmp_path: Path) -> None:
    with FakeOpenAI(cost=0.25) as fake:
        assert asked(fake, picture(tmp_path), price=(1.0, 1.0)).dollars == 0.25


def test_the_model_is_the_services_only_one() -> None:
    with FakeOpenAI(models=("vl-7b",)) as fake:
        assert create(Options(endpoint=fake.url)).model == "vl-7b"
        fake.models = ("a", "b")
        with pytest.raises(RequestError, match="has 2 models"):
            create(Options(endpoint=fake.url))
        assert create(Options(endpoint=fake.url, model="b")).model == "b"
        fake.key = "k"
        with pytest.raises(LorapodError, match="refuses the key"):
            create(Options(endpoint=fake.url))

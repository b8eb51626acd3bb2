"""The Gemini captioner, through the real client, against a service on loopback."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.clips_made import make_clip
from fakes.gemini_server import FakeGemini
from lorapod.captioning import gemini as module
from lorapod.captioning.base import Answer, Ask, BusyError, DeclinedError, ItemError
from lorapod.captioning.gemini import GeminiCaptioner, create, price_of
from lorapod.captioning.registry import Options
from lorapod.errors import LorapodError, RequestError


@pytest.fixture
def service() -> Iterator[FakeGemini]:
    with FakeGemini() as fake:
        yield fake


@pytest.fixture
def picture(tmp_path: Path) -> Ask:
    Image.new("RGB", (64, 48), (200, 10, 10)).save(tmp_path / "a.png")
    return Ask(tmp_path / "a.png", "picture", "Describe it.", system="Be brief.", width=64, height=48)


@pytest.fixture
def clip(tmp_path: Path) -> Ask:
    make_clip(tmp_path / "c.mp4", 60)
    return Ask(tmp_path / "c.mp4", "clip", "Describe it.", seconds=2.0)


def asked(service: FakeGemini, *asks: Ask, **more: Any) -> list[Answer]:
    async def run() -> list[Answer]:
        captioner = GeminiCaptioner("secret-key", address=service.url, poll_seconds=0.01, **more)
        try:
            return [await captioner.caption(ask) for ask in asks]
        finally:
            await captioner.close()

    return asyncio.run(run())


def test_a_picture_and_a_clip_go_inside_the_request(service: FakeGemini, picture: Ask, clip: Ask) -> None:
    first, second = asked(service, picture, clip)
    assert first.text.startswith("A plain scene") and first.complete and second.text != first.text
    assert (first.input_tokens, first.output_tokens) == (800, 130)
    assert first.dollars == pytest.approx((800 * 0.75 + 130 * 3.75) / 1e6, rel=1.1)
    config = service.requests[0]["generationConfig"]
    assert config["maxOutputTokens"] > 2000 and config["thinkingConfig"]["thinking_level"] == "LOW"
    assert service.requests[0]["systemInstruction"]["parts"][0]["text"] == "Be brief."
    part = service.requests[1]["contents"][0]["parts"][0]
    assert part["inlineData"]["mime_type"] == "video/mp4" and part["videoMetadata"]["fps"] == 6.0
    assert not service.files


def test_a_large_clip_goes_by_the_files_api_and_is_deleted(
    service: FakeGemini, clip: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_INLINE_BYTES", 100)
    service.polls = 3
    service.put_file("files/old", "lorapod-caption-x.mp4")
    service.put_file("files/other", "holiday.mp4")
    (answer,) = asked(service, clip)
    assert answer.text and service.counts["uploaded"] == 1 and service.looks["files/up-1"] == 3
    assert list(service.files) == ["files/other"], "what a killed run left goes, what is the person's stays"
    assert service.contents["files/up-1"] == clip.path.read_bytes()


@pytest.mark.parametrize("fault", ["prompt blocked", "503"])
def test_an_uploaded_file_is_deleted_whatever_comes(
    service: FakeGemini, clip: Ask, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(module, "MOST_INLINE_BYTES", 100)
    service.next_faults.append(fault)
    with pytest.raises(LorapodError):
        asked(service, clip)
    assert not service.files and service.counts["deleted"] == 1


def test_a_clip_that_google_cannot_read_is_named(
    service: FakeGemini, clip: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_INLINE_BYTES", 100)
    service.fails = True
    with pytest.raises(ItemError, match="cannot read") as caught:
        asked(service, clip)
    assert "could not be decoded" in caught.value.why and not service.files


def test_a_container_that_it_does_not_take_becomes_mp4(service: FakeGemini, clip: Ask, tmp_path: Path) -> None:
    matroska = tmp_path / "c.mkv"
    make_clip(matroska, 60)
    asked(service, Ask(matroska, "clip", "Describe it.", seconds=2.0))
    assert service.requests[0]["contents"][0]["parts"][0]["inlineData"]["mime_type"] == "video/mp4"


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("prompt blocked", DeclinedError, "PROHIBITED_CONTENT"),
        ("answer blocked", DeclinedError, "SAFETY"),
        ("nothing", BusyError, "no reason"),
        ("429", BusyError, "quota"),
        ("429 day", LorapodError, "midnight"),
        ("503", BusyError, "overloaded"),
        ("500", BusyError, "internal"),
        ("broken", BusyError, "connection"),
    ],
)
def test_what_goes_wrong_is_told_apart(
    service: FakeGemini, picture: Ask, fault: str, error: type[LorapodError], words: str
) -> None:
    service.next_faults.append(fault)
    with pytest.raises(error) as caught:
        asked(service, picture)
    assert words in str(caught.value)
    assert type(caught.value) is error and len(service.requests) == 1, "the client itself asks once"
    if isinstance(caught.value, BusyError):
        assert caught.value.slow_down == (fault in ("429", "503"))
        assert caught.value.seconds == (7.0 if fault == "429" else None)


def test_room_that_thinking_used_up_is_doubled_once(service: FakeGemini, picture: Ask) -> None:
    service.next_faults.append("all thought")
    (answer,) = asked(service, picture)
    rooms = [request["generationConfig"]["maxOutputTokens"] for request in service.requests]
    assert answer.text and rooms[1] == 2 * rooms[0] and answer.input_tokens == 1600, "both are paid for"
    service.next_faults.extend(["all thought"] * 2)
    with pytest.raises(BusyError, match="thought for so long"):
        asked(service, picture)


def test_a_cut_answer_a_refusal_and_thoughts_are_seen(service: FakeGemini, picture: Ask) -> None:
    service.next_faults.extend(["cut", "refusal", "thoughts"])
    cut, refusal, thoughts = asked(service, picture, picture, picture)
    assert not cut.complete and refusal.text.startswith("I'm sorry") and "Hm." not in thoughts.text


def test_a_wrong_key_a_model_that_is_not_there_and_one_that_is_gone(service: FakeGemini, picture: Ask) -> None:
    service.key = "another"
    with pytest.raises(LorapodError, match="refuses the key"):
        asked(service, picture)
    service.key = "secret-key"
    with pytest.raises(RequestError, match=r"does not know gemini-9"):
        asked(service, picture, model="gemini-9")
    with pytest.raises(RequestError, match="is gone") as caught:
        GeminiCaptioner("k", "gemini-2.5-flash")
    assert "gemini-3.8-flash" in caught.value.remedy
    with pytest.raises(RequestError, match="needs a key"):
        create(Options())


def test_costs_are_estimated_by_length_and_by_day(picture: Ask, clip: Ask, make: Callable[[], GeminiCaptioner]) -> None:
    captioner = make()
    still, moving = captioner.estimate(picture), captioner.estimate(clip)
    assert still.input_tokens == pytest.approx(1120, abs=20) and moving.input_tokens == pytest.approx(893, abs=20)
    assert still.dollars is not None and 0.0005 < still.dollars < 0.01
    before, after = (price_of("gemini-3.8-flash", datetime.date(*day)) for day in ((2026, 12, 31), (2027, 1, 1)))
    assert before and after and after.output == 2 * before.output
    assert price_of("gemini-unheard-of") is None


@pytest.fixture
def make() -> Callable[[], GeminiCaptioner]:
    return lambda: GeminiCaptioner("secret-key", "gemini-3.8-flash")

"""What is done before training, side by side: it stops when asked, keeps what it has, and goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomlkit
from huggingface_hub import constants

from captioning.tiny_llava import make as make_llava
from fakes.hub import FakeHub, Repo
from fakes.hub_models import entry, safetensors
from fakes.openai_server import FakeOpenAI
from lorapod.captioning.joycaption import REPOSITORY
from lorapod.cli.start_shown import summary_lines
from lorapod.errors import LorapodError
from lorapod.models.catalogue import entries
from lorapod.start.answers import Answers
from lorapod.start.data import contents_of
from lorapod.start.session import Session
from lorapod.start.steps_captions import CaptionerStep
from lorapod.start.work import Job, StoppedError, jobs_of, stop_all
from start.helpers import folder_of, gpu, session_on


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        fake.repos["maker/toy"] = Repo(
            {
                "model_index.json": b'{"_class_name": "ZImagePipeline"}',
                "transformer/config.json": b"{}",
                "transformer/weights-1.safetensors": safetensors({"a.weight": [500, 1000]}),
                "transformer/weights-2.safetensors": safetensors({"b.weight": [250, 1000]}),
            }
        )
        yield fake


@pytest.fixture
def service() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as fake:
        yield fake


def ready(root: Path, service: FakeOpenAI, captioner: str = "openai") -> Session:
    environment = {"OPENAI_BASE_URL": service.url, "OPENAI_API_KEY": "sk"}
    session = session_on(root / "w", environment=environment)
    own = root / "w/models/entries/toy.toml"
    own.parent.mkdir(parents=True)
    own.write_text(tomlkit.dumps(entry().model_dump(mode="json", exclude_none=True, exclude_defaults=True)))
    session.facts.entries = entries(session.facts.workspace)
    session.take(
        Answers(model="toy", goal="character", data=[folder_of(root / "mine", 12)], trigger="zorb", captioner=captioner)
    )
    session.fill()
    return session


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(session: Session) -> list[Job]:
    jobs = jobs_of(session)
    for job in jobs:
        job.start()
    return jobs


def test_a_download_and_captions_go_on_at_the_same_time(tmp_path: Path, hub: FakeHub, service: FakeOpenAI) -> None:
    hub.bytes_per_second, service.seconds = 2_000_000.0, 0.05
    session = ready(tmp_path, service)
    jobs = start(session)
    assert [job.title for job in jobs] == ["Captions", session.facts.entries["toy"].title]
    until(lambda: all(0 < job.done < (job.total or 0) for job in jobs))
    until(lambda: all(job.is_over for job in jobs))
    assert [job.error for job in jobs] == [None, None]
    session.forget_contents()
    assert not session.contents.bare and "zorb" in (tmp_path / "mine/00.txt").read_text()
    assert "of" in jobs[1].said and (tmp_path / "w/models").is_dir()


def test_asked_to_stop_both_keep_what_they_have_and_go_on_later(
    tmp_path: Path, hub: FakeHub, service: FakeOpenAI
) -> None:
    hub.bytes_per_second, service.seconds, service.stands = 1_000_000.0, 0.2, 2
    session = ready(tmp_path, service)
    jobs = start(session)
    until(lambda: jobs[0].done >= 2 and jobs[1].done > 400_000)
    began = time.monotonic()
    stop_all(jobs)
    assert time.monotonic() - began < 10 and all(isinstance(job.error, StoppedError) for job in jobs)
    session.forget_contents()
    written = len(session.contents.captioned)
    assert 2 <= written < 12
    sent, asked = hub.sent_bytes, sum(service.answered.values())
    assert sent < 3_000_000
    hub.bytes_per_second, service.seconds = None, 0.0
    again = start(session)
    until(lambda: all(job.is_over for job in again))
    assert [job.error for job in again] == [None, None]
    assert sum(service.answered.values()) - asked <= 12 - written
    assert hub.sent_bytes < 3_000_000 + sent / 2


def test_one_that_fails_leaves_the_other_to_end(tmp_path: Path, hub: FakeHub, service: FakeOpenAI) -> None:
    hub.repos.clear()
    session = ready(tmp_path, service)
    jobs = start(session)
    until(lambda: all(job.is_over for job in jobs))
    assert jobs[0].error is None and isinstance(jobs[1].error, LorapodError)
    session.forget_contents()
    assert not session.contents.bare


def test_a_captioner_of_this_machine_is_fetched_with_its_bar_stops_and_goes_on(tmp_path: Path, hub: FakeHub) -> None:
    pytest.importorskip("transformers")
    made = make_llava(tmp_path / "llava")
    files = {file.name: file.read_bytes() for file in made.iterdir()}
    files["more.safetensors"] = bytes(35_000_000)  # the hub's client takes ten megabytes at a time
    hub.repos[REPOSITORY] = Repo(files)
    session = session_on(tmp_path / "w", gpu(24), environment={"LORAPOD_CAPTION_ON_CPU": "1", "LORAPOD_VLLM": "0"})
    assert "17 GB to fetch" in next(each.title for each in CaptionerStep().question(asking(session, tmp_path)).choices)
    assert "joycaption (17 GB to fetch)" in " ".join(summary_lines(session))
    hub.bytes_per_second = 12_000_000.0
    [job] = start(session)
    until(lambda: "fetching the captioner" in job.said and 0 < job.done < (job.total or 0))
    stop_all([job])
    assert isinstance(job.error, StoppedError)
    hub.bytes_per_second = None
    [job] = start(session)
    until(lambda: job.is_over, 60)
    assert job.error is None, job.error
    assert not session.facts.captioner_gigabytes("joycaption")
    assert (
        len(job.notes) + len(contents_of([tmp_path / "mine"]).captioned) == 2
    )  # random weights may say nothing of use


def asking(session: Session, root: Path) -> Session:
    """The session with two pictures without captions, and JoyCaption to write them."""
    answers = Answers(model="demo", goal="character", data=[folder_of(root / "mine", 2)], captioner="joycaption")
    session.take(answers)
    session.fill()
    return session


def test_there_is_nothing_to_do_where_everything_is_here(tmp_path: Path) -> None:
    session = session_on(tmp_path / "w")
    session.fill()
    assert jobs_of(session) == []

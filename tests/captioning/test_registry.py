"""Captioners by name, and the choice where none is named."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fakes.openai_server import FakeOpenAI
from lorapod.captioning import registry
from lorapod.captioning.registry import Options, choose, create, is_near, sends_to
from lorapod.captioning.template import TemplateCaptioner
from lorapod.errors import RequestError
from lorapod.settings import environment_of

PICTURES, CLIPS = frozenset({"picture"}), frozenset({"clip"})


def test_what_is_named_is_taken_and_what_is_unknown_refused() -> None:
    assert choose("template", PICTURES, Options()).name == "template"
    with pytest.raises(RequestError, match="no captioner 'tempalte'"):
        choose("tempalte", PICTURES, Options())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (Options(endpoint="http://localhost:1/v1"), "openai"),
        (Options(environment={"OPENAI_BASE_URL": "http://localhost:1/v1", "GEMINI_API_KEY": "x"}), "openai"),
        (Options(environment={"OPENAI_API_KEY": "x"}), "openai"),
    ],
)
def test_the_choice_says_why(options: Options, name: str) -> None:
    chosen = choose("", PICTURES, options, gpu_gb=0)
    assert chosen.name == name and chosen.why


def test_gemini_is_for_clips_and_a_gpu_for_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "names", lambda: list(registry.KNOWN))
    monkeypatch.setattr(registry, "_missing", lambda known: None)
    options = Options(environment={"GEMINI_API_KEY": "x"})
    assert choose("", CLIPS, options, gpu_gb=24).name == "gemini"
    assert choose("", PICTURES, options, gpu_gb=24).name == "joycaption"
    assert choose("", PICTURES, options, gpu_gb=4).name == "gemini"
    assert choose("", CLIPS, Options(), gpu_gb=24).name == "qwen-vl"


def test_where_nothing_is_at_hand_nothing_is_made_up() -> None:
    with pytest.raises(RequestError, match="No captioner is at hand"):
        choose("", PICTURES, Options(), gpu_gb=0)


def test_a_package_adds_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("mine", "lorapod.captioning.template:create", registry.GROUP),
        EntryPoint("broken", "no.such:thing", registry.GROUP),
        EntryPoint("openai", "no.such:thing", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert {"mine", "broken"} <= set(registry.names())
    assert isinstance(create("mine", Options()), TemplateCaptioner)
    with pytest.raises(RequestError, match="cannot be loaded"):
        create("broken", Options())
    with FakeOpenAI() as fake:
        assert create("openai", Options(endpoint=fake.url, model="m")).name == "openai"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "10.1.2.3", "gpu-box", "box.local", "::1"])
def test_hosts_of_the_own_network(host: str) -> None:
    assert is_near(host) and not is_near("openrouter.ai")


def test_who_gets_to_see_the_items() -> None:
    assert sends_to("openai", Options()) == "api.openai.com"
    assert sends_to("openai", Options(endpoint="http://127.0.0.1:8000/v1")) is None
    assert sends_to("gemini", Options()) == "Google"
    assert sends_to("joycaption", Options()) is None


def test_keys_come_from_the_workspace_and_the_environment_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAPOD_B", "environment")
    file = tmp_path / ".env"
    file.write_text("# keys\nexport LORAPOD_A='a b'\nLORAPOD_B=file\n\nno line\n")
    file.chmod(0o600)
    found = environment_of(tmp_path)
    assert (found["LORAPOD_A"], found["LORAPOD_B"]) == ("a b", "environment")
    assert "LORAPOD_A" not in os.environ
    file.chmod(0o644)
    with pytest.raises(RequestError, match="Others may read"):
        environment_of(tmp_path)

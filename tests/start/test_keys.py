"""Keys are tried by the services' own clients against services on loopback, and kept where only their owner reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from fakes.gemini_server import FakeGemini
from fakes.hub import FakeHub, Repo
from fakes.openai_server import FakeOpenAI
from lorapod.errors import RequestError
from lorapod.settings import environment_of
from lorapod.start.keys import keep_key, try_key
from lorapod.workspace import Workspace


def test_a_hugging_face_key_is_right_wrong_or_cannot_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with FakeHub() as hub:
        hub.tokens["hf_right"] = set()
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert try_key("HF_TOKEN", "hf_right", {}) == "the key of zoe"
        with pytest.raises(RequestError, match="does not know this key"):
            try_key("HF_TOKEN", "hf_wrong", {})
        hub.repos["maker/gated"] = Repo({"a.json": b"{}"}, gated=True)
        with pytest.raises(RequestError, match="is not open to it"):  # right, but the licence was not accepted yet
            try_key("HF_TOKEN", "hf_right", {}, "maker/gated")
        hub.tokens["hf_right"].add("maker/gated")
        assert try_key("HF_TOKEN", "hf_right", {}, "maker/gated")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RequestError, match="cannot be asked"):
        try_key("HF_TOKEN", "hf_right", {})


def test_a_gemini_key_is_right_wrong_or_cannot_be_tried() -> None:
    with FakeGemini() as service:
        there = {"GOOGLE_GEMINI_BASE_URL": service.url}
        assert try_key("GEMINI_API_KEY", service.key, there)
        with pytest.raises(RequestError, match="does not know this key"):
            try_key("GEMINI_API_KEY", "wrong", there)
    with pytest.raises(RequestError, match="cannot be asked"):
        try_key("GEMINI_API_KEY", "any", there)


def test_an_openai_key_is_right_wrong_or_cannot_be_tried() -> None:
    with FakeOpenAI(key="sk-right") as service:
        there = {"OPENAI_BASE_URL": service.url}
        assert try_key("OPENAI_API_KEY", "sk-right", there)
        with pytest.raises(RequestError, match="does not know this key"):
            try_key("OPENAI_API_KEY", "sk-wrong", there)
    with pytest.raises(RequestError, match="cannot be asked"):
        try_key("OPENAI_API_KEY", "sk-right", there)


@pytest.mark.parametrize("text", ["two words", "schlüssel", "a\nb"])
def test_what_cannot_be_a_key_is_not_sent(text: str) -> None:
    with pytest.raises(RequestError, match="no key"):
        try_key("HF_TOKEN", text, {})


def test_a_kept_key_replaces_the_one_before_and_leaves_other_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    file = tmp_path / ".env"
    file.write_text("# mine\nexport HF_TOKEN='old'\nOTHER=1\n")
    file.chmod(0o600)
    keep_key(Workspace(tmp_path), "HF_TOKEN", "hf_new")
    assert file.read_text() == "# mine\nOTHER=1\nHF_TOKEN=hf_new\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert environment_of(tmp_path)["HF_TOKEN"] == "hf_new"

"""`lorapod caption`, as typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from captioning.helpers import captioned, make_pictures, said_of
from fakes.openai_server import FakeOpenAI
from lorapod.cli.main import app
from lorapod.errors import RequestError


def caption(workspace: Path, *arguments: object) -> Result:
    result = CliRunner().invoke(app, ["--workspace", str(workspace), "caption", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_a_dataset_of_the_workspace_by_its_name(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "image_dataset_here", 3)
    with FakeOpenAI() as fake:
        result = caption(tmp_path, "image_dataset_here", "--trigger", "ohwx", "--endpoint", fake.url)
        assert result.exit_code == 0
        assert "openai, fake-vl (the endpoint is" in result.stdout
        assert "3 captions written." in result.stdout
        assert captioned(folder) == {f"item-{i:04d}": f"ohwx, {said_of(i)}" for i in range(3)}
        again = caption(tmp_path, "image_dataset_here", "--trigger", "ohwx", "--endpoint", fake.url)
        assert "3 captioned already" in again.stdout and len(fake.requests) == 3


def test_undo(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 3)
    caption(tmp_path, "set", "--captioner", "template", "--trigger", "ohwx", "--class", "cat")
    assert captioned(folder)["item-0001"] == "ohwx, cat, square picture\n"
    (folder / "item-0001.txt").write_text("mine")
    result = caption(tmp_path, "undo", "set")
    assert "2 captions removed" in result.stdout and "1 stay" in result.stdout
    assert captioned(folder) == {"item-0001": "mine"}
    with pytest.raises(RequestError, match="nothing to undo"):
        caption(tmp_path, "undo", "set")


def test_a_dry_run_shows_prompt_cost_and_three_captions_and_writes_nothing(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 10)
    before = sorted(folder.iterdir())
    with FakeOpenAI() as fake:
        result = caption(tmp_path, folder, "--endpoint", fake.url, "--price", "1,10", "--dry-run", "--notes", "A game.")
        assert len(fake.requests) == 3
    assert "Cost: about $0.02" in result.stdout and "for 10 items" in result.stdout
    assert "Prompt: Write a caption for this image" in result.stdout and "A game." in result.stdout
    assert result.stdout.count("a plain square of the colour") == 3
    assert sorted(folder.iterdir()) == before


def test_what_failed_is_named_at_the_end_and_by_the_next_run(tmp_path: Path) -> None:
    make_pictures(tmp_path / "set", 3)
    with FakeOpenAI() as fake:
        fake.next_faults.append("filter")
        result = caption(tmp_path, "set", "--endpoint", fake.url)
        assert result.exit_code == 1
        assert "2 captions written, 1 failed." in result.stdout
        assert "fake-vl declined: its content filter" in result.stdout
        result = caption(tmp_path, "set", "--endpoint", fake.url)
        assert "1 of them failed the last time:" in result.stdout and "1 not asked again" in result.stdout
        assert caption(tmp_path, "set", "--endpoint", fake.url, "--redo", "failed").exit_code == 0


def test_the_budget_ends_the_run_and_says_so(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 20)
    with FakeOpenAI(cost=0.1) as fake:
        result = caption(tmp_path, "set", "--endpoint", fake.url, "--price", "300,0", "--budget", "1")
    assert "10 captions written, 10 not come to. $1.00 spent." in result.stdout
    assert "The budget of $1.00 is used up. The same command goes on" in result.stdout
    assert len(captioned(folder)) == 10 and result.exit_code == 0


def test_redo_failed_asks_again_for_captions_that_are_no_good(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 2)
    caption(tmp_path, "set", "--captioner", "template", "--prompt", "I'm sorry, I cannot", "--limit", "1")
    assert not captioned(folder), "an excuse was written"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--goal", "fame"], "no goal 'fame'"),
        (["--base", "sd9"], "sd9"),
        (["--price", "cheap"], "'cheap' cannot be read"),
        (["--redo", "all", "--redo", "a"], "several things"),
        (["--captioner", "template", "--prompt", "{colour}"], "names 'colour'"),
        (["--captioner", "template", "--redo", "nobody"], "no item 'nobody'"),
    ],
)
def test_bad_requests_get_one_clear_answer(tmp_path: Path, options: list[str], what: str) -> None:
    make_pictures(tmp_path / "set", 1)
    with pytest.raises(RequestError, match=what):
        caption(tmp_path, "set", *options)

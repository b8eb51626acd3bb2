"""The report of a run: what a person finds on the page, for runs that ended well, badly or not at all."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorapod.errors import RunError
from lorapod.runs.report import write_report

RECIPE = """
name = "momo <3"

[base_model]
name = "z-image-turbo"

[[datasets]]
path = "momo"
trigger_word = "momo"
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a run of these events and returns the report's HTML."""

    def write(*events: dict[str, Any], recipe: str = RECIPE, tail: str = "") -> str:
        (tmp_path / "recipe.toml").write_text(recipe)
        lines = [json.dumps({"t": 1000.0 + i, **event}, ensure_ascii=False) for i, event in enumerate(events)]
        (tmp_path / "events.jsonl").write_text("".join(f"{line}\n" for line in lines) + tail)
        return write_report(tmp_path).read_text()

    return write


def step(number: int, loss: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"type": "step", "step": number, "total": 10, "epoch": 1, "loss": loss, "lr": 1e-4, "seconds": 0.25} | more


def preview(folder: Path, number: int, size: tuple[int, int] = (64, 48), **more: Any) -> dict[str, Any]:
    path = folder / "previews" / f"{number}-{more.get('seed', 1)}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (number, 0, 0)).save(path)
    name = str(path.relative_to(folder))
    return {"type": "preview", "step": number, "path": name, "prompt": "momo & friends", "seed": 1} | more


DONE = {"type": "end", "status": "done", "seconds": 3725.0}


class Tags(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def text_of(page: str) -> str:
    page = re.sub(r"<(style|script).*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))


def test_page_asks_nothing_of_the_network(write: Write, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "momo.safetensors").write_bytes(bytes(10))
    lora = {"type": "lora", "step": 10, "path": "lora/momo.safetensors", "format": "comfyui", "base_model": "demo"}
    page = write(preview(tmp_path, 0), step(1), step(2), preview(tmp_path, 2), lora, DONE)
    tags = Tags(page)
    assert not tags.of("link")
    assert all("src" not in attributes for attributes in tags.of("script"))
    assert all(str(image["src"]).startswith("data:image/") for image in tags.of("img"))
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page


def test_outcome_and_numbers_are_at_hand(write: Write) -> None:
    text = text_of(write(step(1, 0.9), step(10, 0.3, memory_gb=7.25), DONE))
    for expected in ("done", "z-image-turbo", "trigger momo", "1 h 02 min", "250 ms", "7.2 GB"):
        assert expected in text


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([step(1)], "unfinished"),
        ([step(1), {"type": "end", "status": "failed", "seconds": 1.0}], "failed"),
        ([step(1), {"type": "end", "status": "stopped", "seconds": 1.0}], "stopped"),
        ([step(1), {"type": "end", "status": "interrupted", "seconds": 1.0}, step(2)], "unfinished"),
        ([], "unfinished"),
    ],
)
def test_status_is_that_of_the_latest_events(write: Write, events: list[dict[str, Any]], status: str) -> None:
    assert f'class="status {status}"' in write(*events)


def test_run_time_counts_every_session(write: Write) -> None:
    stopped = {"type": "end", "status": "stopped", "seconds": 60.0}
    assert "3 min 00 s" in text_of(
        write(step(1), stopped, step(2), {"type": "end", "status": "done", "seconds": 120.0})
    )


def test_steps_done_again_after_an_interruption_count_once(write: Write) -> None:
    page = write(step(1, 0.5), step(2, 0.123), step(1, 0.5), step(2, 0.456), DONE)
    assert "each step 0.456" in text_of(page)
    assert "0.123" not in page


def test_held_out_loss_is_shown_for_each_dataset(write: Write) -> None:
    evaluations = [
        {"type": "eval", "step": s, "loss": loss, "dataset": name}
        for name, first, last in (("momo", 0.9, 0.4), ("things", 0.3, 0.35))
        for s, loss in ((0, first), (10, last))
    ]
    text = text_of(write(step(1), *evaluations, DONE))
    assert "Held-out loss, momo 0.9 → 0.4" in text
    assert "Held-out loss, things 0.3 → 0.35" in text


def test_curve_is_drawn_from_the_losses(write: Write) -> None:
    paths = Tags(write(*(step(i, 1.0 / i) for i in range(1, 11)), DONE)).of("path")
    raw = [tuple(map(float, point.split())) for point in str(paths[0]["d"]).removeprefix("M").split("L")]
    assert len(raw) == 10
    assert [x for x, _ in raw] == sorted(x for x, _ in raw)
    assert raw[-1][1] > raw[0][1]  # a falling loss goes down the picture, where y is larger


def test_an_outlier_is_said_to_lie_outside_rather_than_flattening_the_curve(write: Write) -> None:
    text = text_of(write(*(step(i, 50.0 if i == 70 else 0.5 + i / 1000) for i in range(1, 200)), DONE))
    assert "outlying values lie above the chart" in text


@pytest.mark.parametrize("losses", [[0.5, 0.5], [0.0, 0.0], [-1.0, 1e9], [1e-12, 2e-12]])
def test_flat_and_extreme_curves_are_drawn(write: Write, losses: list[float]) -> None:
    assert "<path" in write(*(step(i, loss) for i, loss in enumerate(losses)), DONE)


def test_previews_of_each_prompt_are_compared_with_the_base_model(write: Write, tmp_path: Path) -> None:
    page = write(*(preview(tmp_path, s, seed=seed) for s in (0, 5, 10) for seed in (1, 2)), DONE)
    tags = Tags(page)
    slider = next(attributes for attributes in tags.of("input") if attributes["type"] == "range")
    assert slider["data-steps"] == "0,5,10"
    assert len(tags.of("article")) == 2
    # Before and after stand side by side without JavaScript too.
    shown = [a for a in tags.of("figure") if "hidden" not in a]
    assert [a["data-step"] for a in shown] == ["0", "10"] * 2
    assert "momo & friends" in text_of(page)


def test_large_previews_are_embedded_small(write: Write, tmp_path: Path) -> None:
    source = str(Tags(write(preview(tmp_path, 0, (2000, 1000)), DONE)).of("img")[0]["src"])
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        assert picture.size == (512, 256)


def test_many_previews_keep_the_page_small_and_say_so(write: Write, tmp_path: Path) -> None:
    page = write(*(preview(tmp_path, s) for s in range(40)), DONE)
    steps = {a["data-step"] for a in Tags(page).of("figure")}
    assert {"0", "39"} <= steps
    assert len(steps) == 16
    assert "24 more steps" in text_of(page)


def test_preview_that_is_gone_or_damaged_is_counted(write: Write, tmp_path: Path) -> None:
    gone = preview(tmp_path, 5)
    (tmp_path / gone["path"]).unlink()
    damaged = preview(tmp_path, 6)
    (tmp_path / damaged["path"]).write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    assert "2 previews cannot be shown" in text_of(write(preview(tmp_path, 0), gone, damaged, DONE))


def test_newest_lora_is_shown_with_how_to_use_it(write: Write, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "new one.safetensors").write_bytes(bytes(2_000_000))
    events = [
        {"type": "lora", "step": s, "path": f"lora/{name}.safetensors", "format": "comfyui", "base_model": "x"}
        for s, name in ((5, "old"), (10, "new one"))
    ]
    page = write(*events, DONE)
    assert "old.safetensors" not in page
    assert 'href="lora/new%20one.safetensors"' in page
    assert "2.0 MB" in page
    assert "models/loras" in page


def test_of_two_experts_both_files_are_shown_and_where_each_goes(write: Write) -> None:
    events = [
        {"type": "lora", "step": s, "path": f"lora/{name}.safetensors", "format": "comfyui", "expert": expert}
        for s, name, expert in ((2, "m-high-step2", "high"), (4, "m-high", "high"), (8, "m-low", "low"))
    ]
    page = write(*events, DONE)
    assert "m-high.safetensors" in page and "m-low.safetensors" in page and "m-high-step2" not in page
    assert "two experts" in page and "two experts" not in write(*events[:2], DONE)


def test_demo_lora_is_not_said_to_work_in_comfyui(write: Write) -> None:
    lora = {"type": "lora", "step": 10, "path": "lora/momo.safetensors", "format": "comfyui", "base_model": "demo"}
    page = write(lora, DONE, recipe=RECIPE.replace("z-image-turbo", "demo"))
    assert "models/loras" not in page
    assert "lorapod sample" in page


def test_errors_and_warnings_are_shown_with_what_to_do(write: Write) -> None:
    warning = {"type": "warning", "message": "a.png: no caption", "hint": "Write one."}
    error = {"type": "error", "message": "The loss became NaN", "hint": "Lower the rate."}
    text = text_of(write(warning, warning, error, {"type": "end", "status": "failed", "seconds": 1.0}))
    for expected in ("The loss became NaN", "Lower the rate.", "a.png: no caption", "(2 times)", "Write one."):
        assert expected in text


def test_text_from_people_is_escaped(write: Write) -> None:
    evil = "<script>alert(1)</script>"
    page = write({"type": "warning", "message": evil, "hint": evil}, recipe=RECIPE + f"# {evil}\n")
    assert evil not in page
    assert len(Tags(page).of("script")) == 1
    assert "momo <3" in text_of(page)


def test_torn_lines_and_odd_fields_do_not_stop_the_report(write: Write) -> None:
    odd = [
        {"type": "step", "step": "x", "loss": None}, step(4), {"type": "step"},
        {"type": "step", "step": 3, "loss": float("nan")},
        {"type": "preview"}, {"type": "preview", "step": 1, "path": "../none.png"}, {"type": "lora"}, {"type": "eval"},
        {"type": "end"}, {"type": "from the future"}, {"type": "warning", "message": "line\u2028separator"},
    ]  # fmt: skip
    text = text_of(write(*odd, tail='{"t": 5, "type": "st'))
    assert "separator" in text
    assert "nan" not in text


def test_recipe_that_cannot_be_read_is_still_shown(write: Write) -> None:
    assert "not = = toml" in write(step(1), recipe="not = = toml")


def test_data_is_summed_up_where_it_is_known(write: Write, tmp_path: Path) -> None:
    buckets = [{"bucket": "128x96", "items": 14, "lost": 0.034}]
    (tmp_path / "data.json").write_text(
        json.dumps(
            {
                "datasets": [{"path": "/x/momo", "items": 20, "validation": 4, "buckets": buckets}],
                "unused": [{"path": "/x/momo/torn.png", "why": "The file cannot be read."}],
            }
        )
    )
    text = text_of(write(step(1), DONE))
    for expected in (
        "20 trained on, 4 held out",
        "128x96",
        "3.4%",
        "1 not trained on",
        "torn.png: The file cannot be read",
    ):
        assert expected in text


def test_the_verdict_and_warnings_come_before_pictures_and_curves(write: Write, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/a.safetensors").write_bytes(b"x")
    lora = {"type": "lora", "step": 2, "path": "lora/a.safetensors", "format": "comfyui"}
    warning = {"type": "warning", "message": "Odd `x<y` thing"}
    page = write(step(1), step(2), preview(tmp_path, 0), lora, warning, DONE)
    assert "Odd <code>x&lt;y</code> thing" in page
    text = text_of(page)
    places = [text.index(each) for each in ("The LoRA", "Odd x<y thing", "Previews", "Training loss")]
    assert places == sorted(places)


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        write_report(tmp_path)


def test_same_run_gives_the_same_page(write: Write, tmp_path: Path) -> None:
    events = [preview(tmp_path, 0), step(1), step(2), DONE]
    assert write(*events) == write(*events)


def test_clips_are_embedded_beside_their_strips_first_and_last_before_the_others(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    for number in (0, 5, 10):
        clip = tmp_path / f"previews/{number}.mp4"
        events.append(preview(tmp_path, number, (1000, 120), clip=f"previews/{number}.mp4"))
        clip.write_bytes(bytes([number]) * 400)
    monkeypatch.setattr("lorapod.runs.report._MOST_CLIP_BYTES", 1000)
    page = write(*events, DONE)
    tags = Tags(page)
    # Each step's figure once, and the first once more for comparison.
    shown = [base64.b64decode((video["src"] or "").partition(",")[2])[0] for video in tags.of("video")]
    assert shown == [0, 0, 10]
    assert len(tags.of("img")) == 4
    strip = Image.open(io.BytesIO(base64.b64decode((tags.of("img")[0]["src"] or "").partition(",")[2])))
    assert strip.size == (1000, 120)  # a strip is not made as small as a picture
    (policy,) = [
        meta["content"] for meta in tags.of("meta") if "content" in meta and "default-src" in str(meta["content"])
    ]
    assert "media-src data:" in str(policy)


def test_a_clip_that_is_gone_leaves_its_strip(write: Write, tmp_path: Path) -> None:
    page = write(preview(tmp_path, 0, clip="previews/gone.mp4"), DONE)
    assert not Tags(page).of("video") and len(Tags(page).of("img")) == 1

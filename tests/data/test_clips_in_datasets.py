"""Clips as items: scanned, planned in windows, and trained on beside pictures."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from lorapod.data import Geometry, MediaCache, Severity, load_items, plan_dataset, plan_datasets, scan
from lorapod.errors import DatasetError
from lorapod.recipe.choices import ClipWindows
from lorapod.recipe.schema import DatasetSection

VIDEO = Geometry(16, frame_step=4, fps=16.0)
PICTURES = Geometry(16)


def film(
    path: Path, frames: int = 48, rate: int = 24, size: tuple[int, int] = (96, 64), caption: str = "moves"
) -> Path:
    """A clip whose red grows with time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = Fraction(1, rate)
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), (255 * i // max(frames - 1, 1), 60, len(path.name)), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if caption:
        path.with_suffix(".txt").write_text(caption)
    return path


def picture(path: Path) -> Path:
    Image.new("RGB", (96, 64), (7, len(path.name), 9)).save(path)
    path.with_suffix(".txt").write_text("stands")
    return path


def section(path: Path, **fields: Any) -> DatasetSection:
    return DatasetSection(**{"path": path, "resolutions": [64], "frames": [5, 17], "validation_share": 0, **fields})


def test_a_clip_is_an_item_with_its_length_rate_and_caption(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4")
    picture(tmp_path / "b.png")
    found = scan(tmp_path)
    clip, still = found.items
    assert (clip.path.name, clip.width, clip.height, clip.frames) == ("a.mp4", 96, 64, 48)
    assert clip.seconds == pytest.approx(2.0, abs=0.05)
    assert clip.fps == pytest.approx(24, abs=0.5)
    assert (clip.caption, clip.is_clip) == ("moves", True)
    assert (still.frames, still.seconds, still.is_clip) == (1, 0.0, False)
    assert found.problems == []


def test_a_clip_is_not_opened_by_a_second_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "set" / "a.mp4")
    cache = MediaCache(tmp_path / "media.sqlite")
    first = scan(tmp_path / "set", cache=cache)
    monkeypatch.setattr("lorapod.data.clips.probe_clip", None)
    assert scan(tmp_path / "set", cache=cache) == first


def test_pictures_and_clips_are_planned_together_and_come_as_frames(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4")
    picture(tmp_path / "b.png")
    plan = plan_dataset(section(tmp_path), VIDEO)
    assert plan.problems == []
    clip, still = plan.train
    assert clip.window is not None
    assert (clip.window.start, clip.window.frames, clip.window.fps) == (0.0, 17, 16.0)
    assert (clip.placement.bucket.frames, still.placement.bucket.frames, still.window) == (17, 1, None)
    pixels = list(load_items(plan.train))
    bucket = clip.placement.bucket
    assert pixels[0].shape == (17, bucket.height, bucket.width, 3)
    assert pixels[1].shape == (1, bucket.height, bucket.width, 3)
    red = pixels[0][..., 0].mean(axis=(1, 2))
    assert np.all(np.diff(red) > -1)  # it is compressed
    assert red[-1] == pytest.approx(255 * 24 / 47, abs=12)  # one second on, of two


def test_windows_are_items_of_their_own_and_are_held_out_together(tmp_path: Path) -> None:
    for i in range(4):
        film(tmp_path / f"{i}.mp4", frames=50 + i)
    each = section(tmp_path, clip_windows=ClipWindows.EVERY, frames=[5], validation_share=0.25)
    plan = plan_datasets([each], VIDEO, 1)
    assert len({item.item.path for item in plan.validation}) == 1
    assert not {item.item.path for item in plan.validation} & {item.item.path for item in plan.train}
    starts = [item.window.start for item in plan.train if item.window and item.item.path.name == "2.mp4"]
    assert len(starts) >= 6 or plan.validation[0].item.path.name == "2.mp4"
    assert starts == sorted(set(starts))


def test_a_clip_shorter_than_the_least_frames_is_named_with_numbers(tmp_path: Path) -> None:
    film(tmp_path / "short.mp4", frames=12)
    picture(tmp_path / "b.png")
    with pytest.raises(DatasetError, match=r"short\.mp4: Its 0\.50 seconds are too short for 33 frames at 16 a second"):
        plan_datasets([section(tmp_path, frames=[33])], VIDEO, 1)
    plan = plan_datasets([section(tmp_path, frames=[33], skip_unusable=True)], VIDEO, 1)
    assert [each.item.path.name for each in plan.train] == ["b.png"]
    assert [each.path.name for each in plan.unused] == ["short.mp4"]
    assert "Add 5 to `frames`" in plan.unusable[0].remedy


def test_a_base_model_of_pictures_refuses_clips_by_name(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4")
    picture(tmp_path / "b.png")
    with pytest.raises(DatasetError, match=r"a\.mp4: It is a clip, and this base model trains on pictures only"):
        plan_datasets([section(tmp_path)], PICTURES, 1)
    plan = plan_datasets([section(tmp_path, skip_unusable=True)], PICTURES, 1)
    assert [each.item.path.name for each in plan.train] == ["b.png"]


def test_frames_that_the_base_model_cannot_take_are_refused_with_the_nearest(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4")
    with pytest.raises(DatasetError, match="Write 13 or 17 into `frames`"):
        plan_datasets([section(tmp_path, frames=[16])], VIDEO, 1)
    picture(tmp_path / "b.png")
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "a.txt").unlink()
    assert len(plan_datasets([section(tmp_path, frames=[16])], VIDEO, 1).train) == 1


def test_a_damaged_clip_is_an_error_with_its_name(tmp_path: Path) -> None:
    whole = film(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "none.mp4").write_bytes(b"")
    (tmp_path / "text.webm").write_text("hello")
    found = scan(tmp_path)
    assert [item.path.name for item in found.items] == ["a.mp4"]
    assert {p.path.name for p in found.problems if p.severity is Severity.ERROR} == {
        "cut.mp4",
        "none.mp4",
        "text.webm",
    }

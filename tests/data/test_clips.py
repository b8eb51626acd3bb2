from __future__ import annotations

import os
import random
import resource
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data.clips_made import make_clip, number_of, turn
from lorapod.data.buckets import Bucket, place
from lorapod.data.clips import clip_frames, load_clip, probe_clip
from lorapod.data.windows import Window
from lorapod.errors import DatasetError

SMALL = Bucket(80, 48)
MUTATIONS = int(os.environ.get("LORAPOD_FUZZ", "120"))


def numbers(path: Path, window: Window, bucket: Bucket = SMALL) -> list[int]:
    info = probe_clip(path)
    frames = load_clip(path, place(info.width, info.height, [bucket]), window)
    assert frames.shape == (window.frames, bucket.height, bucket.width, 3) and frames.dtype == np.uint8
    return [number_of(frame) for frame in frames]


def test_what_is_in_a_clip(tmp_path: Path) -> None:
    info = probe_clip(make_clip(tmp_path / "a.mp4", 90, 30))
    assert (info.width, info.height, info.frames, info.codec, info.rotation) == (160, 96, 90, "h264", 0)
    assert info.seconds == pytest.approx(3.0, abs=0.01) and info.fps == pytest.approx(30, abs=0.1)
    assert not info.variable_rate and not info.has_audio


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_frames_are_taken_by_time_at_another_rate(tmp_path: Path, fps: int) -> None:
    clip = make_clip(tmp_path / "a.mp4", fps * 3, fps)
    window = Window(0.5, 17, 16)
    taken = numbers(clip, window)
    assert all(abs(number - time * fps) <= 0.5 + 1e-6 for number, time in zip(taken, window.times, strict=True))


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mp4", "libx264", {"bf": "3", "g": "250"}),  # frames stored in another order, one key frame
        (".mkv", "libx264", {"g": "10"}),
        (".avi", "mpeg4", {"g": "12"}),
        (".webm", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    ],
)
def test_a_window_far_in_is_what_decoding_everything_gives(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str]
) -> None:
    clip = make_clip(tmp_path / f"a{suffix}", 120, 25, codec=codec, options=options)
    all_numbers = [number_of(frame) for _, frame in clip_frames(clip, probe_clip(clip), 160)]
    assert all_numbers == list(range(120))
    window = Window(3.0, 9, 12.5)
    assert numbers(clip, window) == [round(time * 25) for time in window.times]


def test_a_variable_rate_is_seen_and_its_times_are_kept(tmp_path: Path) -> None:
    stamps = [i * 20 if i < 50 else 1000 + (i - 50) * 100 for i in range(70)]  # 50 frames a second, then 10
    clip = make_clip(tmp_path / "a.mp4", 70, 50, stamps=stamps, unit=Fraction(1, 1000))
    info = probe_clip(clip)
    assert info.variable_rate and info.seconds == pytest.approx(3.0, abs=0.11)
    assert numbers(clip, Window(0.0, 5, 2)) == [0, 25, 50, 55, 60]


def test_a_clip_that_does_not_begin_at_zero_is_counted_from_its_first_frame(tmp_path: Path) -> None:
    stamps = [5000 + i * 40 for i in range(50)]
    clip = make_clip(tmp_path / "a.mkv", 50, 25, stamps=stamps, unit=Fraction(1, 1000))
    assert probe_clip(clip).seconds == pytest.approx(2.0, abs=0.05)
    assert numbers(clip, Window(1.0, 3, 25)) == [25, 26, 27]


@pytest.mark.parametrize(("clockwise", "corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_rotation_is_honoured(tmp_path: Path, clockwise: int, corner: tuple[int, int]) -> None:
    clip = turn(make_clip(tmp_path / "a.mp4", 10, 25), clockwise)
    info = probe_clip(clip)
    assert info.rotation == clockwise
    size = (160, 96) if clockwise == 180 else (96, 160)
    assert (info.width, info.height) == size
    frame = load_clip(clip, place(*size, [Bucket(*size)]), Window(0.0, 1, 25))[0]
    red = frame[corner[0] * 8 - (corner[0] == 0) * -8, corner[1] * 8 - (corner[1] == 0) * -8].astype(int)
    assert red[0] > 180 and red[1] < 90  # what was upper left has gone to that corner
    (_, small), *_ = clip_frames(clip, info, 80)
    assert small.shape[:2] == (size[1] // 2, size[0] // 2)


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", 5, 25, sample_aspect_ratio=Fraction(2, 1))
    assert (probe_clip(clip).width, probe_clip(clip).height) == (320, 96)


def test_colours_come_back(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", 5, 25)
    frame = load_clip(clip, place(160, 96, [Bucket(160, 96)]), Window(0.0, 1, 25))[0]
    assert np.abs(frame[8, 8].astype(int) - (255, 0, 0)).max() < 12
    assert np.abs(frame[80, 8].astype(int) - (40, 40, 40)).max() < 6


def test_odd_sizes_and_one_frame(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mkv", 1, 25, size=(162, 98))
    info = probe_clip(clip)
    assert (info.frames, info.width, info.height) == (1, 162, 98)
    assert numbers(clip, Window(0.0, 1, 16)) == [0]


def test_a_clip_that_became_shorter_is_refused(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", 25, 25)
    with pytest.raises(DatasetError, match=r"a\.mp4") as caught:
        numbers(clip, Window(0.0, 81, 16))
    assert "It ends at 0.96 s" in caught.value.why


def test_a_clip_of_another_size_than_planned_is_refused(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", 5, 25)
    with pytest.raises(DatasetError, match="changed while it was in use"):
        load_clip(clip, place(640, 480, [Bucket(80, 48)]), Window(0.0, 1, 25))


def _no_video(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(b"no clip at all" * 100), "no clip"),
        (lambda p: p.write_bytes(make_clip(p, 50, 25).read_bytes()[:3000]), "damaged"),
        (lambda p: p.unlink(missing_ok=True), "No such file"),
        (_no_video, "no video"),
    ],
)
def test_what_is_no_whole_clip_is_refused_by_name(tmp_path: Path, spoil: Callable[[Path], object], why: str) -> None:
    path = tmp_path / "a.mp4"
    spoil(path)
    with pytest.raises(DatasetError, match=r"a\.mp4") as caught:
        probe_clip(path)
    assert why in caught.value.why and caught.value.remedy


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", 24, 24, size=(3840, 2160), still=True, options={"preset": "ultrafast"})
    placement = place(3840, 2160, [Bucket(128, 72)])
    load_clip(clip, placement, Window(0.0, 2, 24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_clip(clip, placement, Window(0.0, 24, 24)).nbytes < 1e6
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 150  # MiB; the whole clip would be 600 as RGB


def test_many_threads_at_once_give_the_same_frames(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", 60, 30)
    windows = [Window(i / 10, 5, 16) for i in range(12)]
    alone = [numbers(clip, window) for window in windows]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda window: numbers(clip, window), windows)) == alone


def test_no_mutation_of_a_clip_does_worse_than_be_refused(tmp_path: Path) -> None:
    rng = random.Random(3)
    sources = [
        make_clip(tmp_path / "s.mp4", 12, 25, size=(64, 48)),
        make_clip(tmp_path / "s.mkv", 12, 25, size=(64, 48), codec="mpeg4"),
        make_clip(tmp_path / "s.avi", 12, 25, size=(64, 48), codec="mpeg4"),
    ]
    refused = used = 0
    for number in range(MUTATIONS):
        source = sources[number % len(sources)]
        data = bytearray(source.read_bytes())
        for _ in range(rng.choice([1, 3, 20, 200])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        path = tmp_path / f"mutated{source.suffix}"
        path.write_bytes(data)
        try:
            info = probe_clip(path)
            placement = place(info.width, info.height, [Bucket(32, 32)])
            load_clip(path, placement, Window(0.0, 3, 16))
            used += 1
        except DatasetError:
            refused += 1
    assert refused and used

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from data.looks import drawn, in_bars
from data.moving import SIZE, scene, still, write
from lorapod.data import Geometry, Severity, scan
from lorapod.data.checks import Checked, check
from lorapod.data.clips import probe_clip
from lorapod.data.export import Layout, export
from lorapod.data.fix import fix_datasets, split_clips
from lorapod.data.look import look_at_clip
from lorapod.recipe.schema import DatasetSection

GEOMETRY = Geometry(16, frame_step=4, fps=16.0)
BLACK = [Image.new("RGB", SIZE, "black")] * 16


def checked(folder: Path, **keys: object) -> Checked:
    usual = {"resolutions": [128], "frames": [17], "clip_windows": "every", "validation_share": 0}
    return check([DatasetSection.model_validate({"path": folder, **usual, **keys})], GEOMETRY)


def said(found: Checked, name: str) -> list[tuple[Severity, str]]:
    return [(problem.severity, problem.what) for problem in found.problems if problem.path.name == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("clips") / "clips"
    for i in range(3):
        write(place / f"good-{i}.mp4", scene(i, 48))
    flash = scene(4, 48)
    flash[20] = Image.new("RGB", SIZE, "white")
    write(place / "flash.mp4", flash)
    write(place / "cuts.mp4", [*scene(10, 20), *scene(11, 20), *scene(12, 24)])
    write(place / "frozen.mp4", still(13, 40))
    write(place / "pause.mp4", [*scene(14, 20), *[scene(14, 20)[-1]] * 24, *scene(14, 40)[20:]])
    write(place / "fade.mp4", [*BLACK, *scene(15, 40)])
    write(place / "bars.mp4", [in_bars(frame, 0.125) for frame in scene(16, 40)])
    write(place / "short.mp4", scene(17, 10))
    write(place / "slow.mp4", scene(18, 20), fps=8)
    times = [round(1000 * (i / 16 if i < 20 else 20 / 16 + (i - 20) / 30)) for i in range(50)]
    write(place / "varying.mkv", scene(19, 50), fps=30, times=times)
    write(place / "again.mp4", [frame.resize((128, 96)) for frame in scene(0, 48)])
    (place / "cut off.mp4").write_bytes((place / "good-0.mp4").read_bytes()[:900])
    for path in list(place.iterdir()):
        path.with_suffix(".txt").write_text(f"a zorb, {path.stem}")
    yield place


@pytest.fixture(scope="module")
def found(folder: Path) -> Checked:
    return checked(folder)


@pytest.mark.parametrize("name", ["good-0.mp4", "good-1.mp4", "good-2.mp4", "flash.mp4"])
def test_nothing_is_invented_about_a_good_clip(found: Checked, name: str) -> None:
    assert said(found, name) == []


@pytest.mark.parametrize(
    ("name", "severity", "words"),
    [
        ("cuts.mp4", Severity.WARNING, "changes within what is trained on, at 1.25 s, 2.50 s"),
        ("frozen.mp4", Severity.WARNING, "Nothing moves in it"),
        ("pause.mp4", Severity.WARNING, "stands still at 1.2–2."),
        ("fade.mp4", Severity.WARNING, "It is black at 0.0–1.0 s"),
        ("bars.mp4", Severity.WARNING, "black bars: 12% top, 12% bottom"),
        ("short.mp4", Severity.ERROR, "too short for 17 frames"),
        ("slow.mp4", Severity.WARNING, "8 frames a second and the base model 16"),
        ("varying.mkv", Severity.INFO, "frame rate varies"),
        ("again.mp4", Severity.WARNING, "looks the same as good-0.mp4 (1.5 times smaller)"),
        ("cut off.mp4", Severity.ERROR, ""),
    ],
)
def test_what_is_wrong_with_a_clip_is_found(found: Checked, name: str, severity: Severity, words: str) -> None:
    fitting = [one for one, what in said(found, name) if words in what]
    assert fitting == [severity], said(found, name)


def test_a_cut_outside_of_what_is_trained_on_is_only_noted(folder: Path) -> None:
    found = checked(folder, clip_windows="head")
    severity, what = said(found, "cuts.mp4")[0]
    assert severity is Severity.INFO and "outside of what is trained on" in what


def test_bars_are_those_that_every_frame_has(tmp_path: Path) -> None:
    frames = [in_bars(frame, 0.125) if i % 2 else frame for i, frame in enumerate(scene(3, 20))]
    path = write(tmp_path / "a.mp4", frames)
    assert not any(look_at_clip(path, probe_clip(path)).bars)


def test_split_makes_a_clip_of_each_scene_and_keeps_the_rest(folder: Path, found: Checked, tmp_path: Path) -> None:
    made = {each.source.name: each for each in split_clips(found, tmp_path / "split")}
    assert [target.name for target in made["cuts.mp4"].targets] == ["cuts-01.mp4", "cuts-02.mp4", "cuts-03.mp4"]
    assert made["good-0.mp4"].what == ()
    items = {item.path.name: item for item in scan(tmp_path / "split").items}
    assert [items[f"cuts-0{i}.mp4"].frames for i in (1, 2, 3)] == [20, 20, 24]
    assert items["cuts-02.mp4"].caption == "a zorb, cuts"
    again = checked(tmp_path / "split")
    assert not any("scene" in problem.what for problem in again.problems)


def test_fix_trims_bars_and_makes_the_rate_constant(folder: Path, found: Checked, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    made = {each.source.name: each for each in fix_datasets(found, tmp_path / "fixed")}
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert made["varying.mkv"].what[0].startswith("made ")
    assert not probe_clip(tmp_path / "fixed" / "varying.mp4").variable_rate
    again = checked(tmp_path / "fixed")
    assert not any("bars" in problem.what or "rate varies" in problem.what for problem in again.problems)
    assert "cut off.mp4" not in made


def test_a_still_picture_and_a_clip_of_it_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", scene(1, 48))
    drawn(1, SIZE).save(tmp_path / "picture.png")
    for name in ("clip", "picture"):
        (tmp_path / f"{name}.txt").write_text(f"a zorb, {name}")
    assert not any("same" in problem.what for problem in checked(tmp_path).problems)


def test_an_export_to_musubi_tells_the_frame_rate_of_each_folder(found: Checked, tmp_path: Path) -> None:
    _, file = export(found, Layout.MUSUBI, tmp_path / "out")
    said = tomllib.loads(file.read_text())["datasets"]
    rates = {Path(each["video_directory"]).name: each["source_fps"] for each in said}
    assert sorted(rates.values())[0] == 8.0 and 16.0 in rates.values()
    assert all(isinstance(rate, float) for rate in rates.values())
    assert {each["frame_extraction"] for each in said} == {"chunk"}
    slow = next(folder for folder, rate in rates.items() if rate == 8.0)
    assert [path.name for path in (tmp_path / "out" / slow).glob("*.mp4")] == ["slow.mp4"]

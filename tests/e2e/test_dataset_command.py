import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from data.looks import drawn, in_bars, mirrored
from lorapod.cli.dataset import app
from lorapod.errors import DatasetError, RequestError
from lorapod.workspace import Workspace


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for i in range(8):
        drawn(i, (320, 240)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"zorb number {i} on <b>grass</b>")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments], obj=Workspace(tmp_path / "workspace"))

    return invoke


def spoil(folder: Path) -> None:
    mirrored(drawn(3, (320, 240))).save(folder / "copy.png")
    (folder / "copy.txt").write_text("zorb again")
    in_bars(drawn(40, (320, 240)), 0.1).save(folder / "bars.png")
    (folder / "bars.txt").write_text("zorb in bars")


def test_check_of_a_clean_folder_says_one_line(run: Callable[..., Result], dataset: Path) -> None:
    result = run("check", dataset, "--resolution", 256)
    assert (result.exit_code, result.stdout.strip()) == (0, "8 items can be trained on.")


def test_check_names_what_is_doubtful_and_still_ends_well(run: Callable[..., Result], dataset: Path) -> None:
    spoil(dataset)
    result = run("check", dataset, "--resolution", 256)
    assert result.exit_code == 0
    assert "copy.png" in result.stdout and "3.png (mirrored)" in result.stdout
    assert "It has black bars: 10% top, 10% bottom" in result.stdout


def test_check_ends_with_one_where_an_item_cannot_be_used(run: Callable[..., Result], dataset: Path) -> None:
    (dataset / "7.txt").unlink()
    assert run("check", dataset, "--resolution", 256).exit_code == 1
    assert run("check", dataset, "--resolution", 256, "--captions-optional").exit_code == 0


def test_check_fix_and_report_in_one_go(run: Callable[..., Result], dataset: Path, tmp_path: Path) -> None:
    spoil(dataset)
    out, page = tmp_path / "fixed", tmp_path / "report.html"
    result = run("check", dataset, "--resolution", 256, "--fix", out, "--report", page)
    assert result.exit_code == 0, result.output
    assert "bars.png: bars trimmed to 320x190" in result.stdout
    assert "1 changed, 9 copied as they are" in result.stdout
    with Image.open(out / "bars.png") as picture:
        assert picture.size == (320, 190)
    text = page.read_text()
    assert text.count("<article") == 10
    assert "copy, mirrored" in text and "bars" in text
    assert "&lt;b&gt;grass&lt;/b&gt;" in text and "<b>grass" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_check_as_json_is_json_alone_also_with_a_report(
    run: Callable[..., Result], dataset: Path, tmp_path: Path
) -> None:
    spoil(dataset)
    result = run(
        "check", dataset, "--resolution", 256, "--json", "--report", tmp_path / "r.html", "--fix", tmp_path / "f"
    )
    said = json.loads(result.stdout)
    assert said["items"] == 10
    assert {Path(problem["path"]).name for problem in said["problems"]} == {"copy.png", "bars.png"}


def test_fix_into_a_folder_that_holds_anything_is_refused(run: Callable[..., Result], dataset: Path) -> None:
    assert isinstance(run("check", dataset, "--resolution", 256, "--fix", dataset).exception, DatasetError)


def test_a_recipe_is_checked_with_its_base_models_sizes_and_text_limit(
    run: Callable[..., Result], dataset: Path, tmp_path: Path
) -> None:
    (dataset / "2.txt").write_text("zorb " + "over the hill " * 300)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"name = 'zorb'\n[base_model]\nname = 'demo'\n[[datasets]]\npath = '{dataset}'\nresolutions = [96]\n"
        "trigger_word = 'zorb'\n[training]\nsteps = 3\nbatch_size = 1\n"
    )
    result = run("check", recipe)
    assert result.exit_code == 0, result.output
    assert "of which demo reads 504" in result.stdout
    assert "before every item was seen" in result.stdout
    assert isinstance(run("check", recipe, "--resolution", 256).exception, RequestError)
    buckets = run("buckets", recipe, "--draw", tmp_path / "buckets.png")
    assert buckets.exit_code == 0, buckets.output
    with Image.open(tmp_path / "buckets.png") as picture:
        assert picture.width > 400
    assert run("buckets", recipe, "--draw", tmp_path / "buckets.png").exit_code == 0
    own = (dataset / "0.png").read_bytes()
    for option in (("buckets", recipe, "--draw"), ("check", recipe, "--report")):
        assert isinstance(run(*option, dataset / "0.png").exception, RequestError)
    assert (dataset / "0.png").read_bytes() == own


def test_buckets_say_what_is_left_over(run: Callable[..., Result], dataset: Path) -> None:
    result = run("buckets", dataset, "--resolution", 256, "--batch-size", 3)
    assert "Batches of 3 in an epoch: builtin 3, diffusion-pipe 2, musubi 3" in result.stdout
    assert "diffusion-pipe drops 2 of the 8" in result.stdout
    said = json.loads(run("buckets", dataset, "--resolution", 256, "--batch-size", 3, "--json").stdout)
    assert said["batches"] == {"builtin": 3, "diffusion-pipe": 2, "musubi": 3}
    assert [row["items"] for row in said["buckets"]] == [8]


def test_stats_count_sizes_captions_and_the_trigger_word(run: Callable[..., Result], dataset: Path) -> None:
    (dataset / "0.txt").write_text("something else")
    said = json.loads(run("stats", dataset, "--trigger", "zorb", "--json").stdout)["datasets"][0]
    assert (said["pictures"], said["clips"], said["captioned"]) == (8, 0, 8)
    assert said["trigger_share"] == 7 / 8
    assert said["words"]["zorb"] == 7 and "on" not in said["words"]
    text = run("stats", dataset, "--trigger", "zorb").stdout
    assert "8 pictures, 0 clips" in text and "88% of the captions" in text


def test_resize_and_export_make_new_folders(run: Callable[..., Result], dataset: Path, tmp_path: Path) -> None:
    (dataset / "broken.png").touch()
    small = run("resize", dataset, tmp_path / "small", "--longest-side", 100)
    assert small.exit_code == 0 and "8 changed" in small.stdout
    assert "left out" in small.stderr and "broken.png" in small.stderr
    exported = run("export", dataset, tmp_path / "out", "--to", "musubi")
    assert exported.exit_code == 0 and str(tmp_path / "out" / "dataset.toml") in exported.stdout
    assert isinstance(run("export", dataset, tmp_path / "x", "--to", "somewhere").exception, RequestError)
    assert not (tmp_path / "x").exists()


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lorapod.cli.main", "dataset", "check", str(tmp_path / "gone")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "There is no dataset folder" in result.stderr and "Traceback" not in result.stderr

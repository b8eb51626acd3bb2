import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from lorapod.cli.dataset import app
from lorapod.errors import DatasetError, RequestError

run = CliRunner().invoke


def test_buckets_shows_each_bucket_with_its_cost(pictures: Callable[..., Path]) -> None:
    folder = pictures("odd [red]", 3, (300, 200))
    result = run(app, ["buckets", str(folder), "--resolution", "256", "--divisor", "16"])
    assert result.exit_code == 0, result.output
    assert "320x208" in result.output
    assert "[red]-" in result.output
    assert "%" in result.output


def test_check_is_silent_about_a_good_dataset(pictures: Callable[..., Path]) -> None:
    result = run(app, ["check", str(pictures()), "--resolution", "64"])
    assert result.exit_code == 0
    assert result.output.strip() == "6 items can be trained on."


def test_check_lists_the_worst_first_and_fails(pictures: Callable[..., Path]) -> None:
    folder = pictures(count=30)
    for i in range(25):
        (folder / f"pictures-{i}.txt").unlink()
    (folder / "aaa orphan.txt").write_text("x")
    (folder / "aaa raw.nef").touch()
    (folder / "bad\nname.png").touch()
    result = run(app, ["check", str(folder), "--resolution", "64"])
    assert result.exit_code == 1
    order = [result.output.index(text) for text in ("error", "bad\\nname.png", "aaa orphan.txt", "aaa raw.nef")]
    assert order == sorted(order)
    assert "and 5 more" in result.output
    assert "5 items can be trained on" in result.output


def test_check_as_json_is_json_alone(pictures: Callable[..., Path]) -> None:
    folder = pictures()
    (folder / "bad.png").touch()
    (folder / "photo.heic").touch()
    result = run(app, ["check", str(folder), "--resolution", "64", "--json"])
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["items"] == 6
    assert [(p["severity"], Path(p["path"]).name) for p in said["problems"]] == [
        ("error", "bad.png"),
        ("warning", "photo.heic"),
    ]
    assert all(p["what"] and p["remedy"] for p in said["problems"])


def test_a_missing_folder_is_a_dataset_error(tmp_path: Path) -> None:
    assert isinstance(run(app, ["check", str(tmp_path / "gone")]).exception, DatasetError)


def test_check_says_that_long_captions_were_not_measured_without_a_base_model(pictures: Callable[..., Path]) -> None:
    folder = pictures()
    (folder / "pictures-1.txt").write_text("a cat on a mat, " * 40)
    result = run(app, ["check", str(folder), "--resolution", "64"])
    assert "no base model is named" in result.output
    named = run(app, ["check", str(folder), "--resolution", "64", "--model", "sdxl"])
    assert "no base model is named" not in named.output and "reads 75" in " ".join(named.output.split())


def test_a_goal_decides_how_many_items_are_few(pictures: Callable[..., Path]) -> None:
    result = run(app, ["check", str(pictures()), "--resolution", "64", "--goal", "style"])
    assert "6 items: few for a style" in result.output
    refused = run(app, ["check", str(pictures("other")), "--goal", "fame"])
    assert isinstance(refused.exception, RequestError)


def test_a_taken_folder_is_refused_before_anything_is_looked_at(pictures: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    gone = str(tmp_path / "gone")
    for command in (
        ["check", gone, "--fix", str(tmp_path / "taken")],
        ["split", gone, str(tmp_path / "taken")],
        ["resize", gone, str(tmp_path / "taken")],
        ["export", gone, str(tmp_path / "taken"), "--to", "kohya"],
    ):
        error = run(app, command).exception
        assert isinstance(error, DatasetError) and "is not empty" in error.what


def test_an_export_names_what_it_leaves_out_and_where_its_file_is(
    pictures: Callable[..., Path], tmp_path: Path
) -> None:
    result = run(
        app, ["export", str(pictures()), str(tmp_path / "out"), "--to", "kohya", "--caption-extension", ".caption"]
    )
    assert result.exit_code == 0, result.output
    assert "6 copied as they are" in result.output and "dataset.toml" in result.output
    assert len(list((tmp_path / "out").rglob("*.caption"))) == 6

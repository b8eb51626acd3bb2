import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from lorapod.cli.dataset import app
from lorapod.errors import DatasetError

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
        ("info", "photo.heic"),
    ]
    assert all(p["what"] and p["remedy"] for p in said["problems"])


def test_a_missing_folder_is_a_dataset_error(tmp_path: Path) -> None:
    assert isinstance(run(app, ["check", str(tmp_path / "gone")]).exception, DatasetError)

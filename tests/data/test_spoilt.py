from pathlib import Path

import pytest

from data.spoilt import EXPECTED, FINE, spoil
from lorapod.data import Geometry
from lorapod.data.checks import Checked, check, limit_of
from lorapod.data.sheet import write_sheet
from lorapod.recipe.schema import DatasetSection


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    folder = spoil(tmp_path_factory.mktemp("data") / "spoilt")
    section = DatasetSection(path=folder, resolutions=[512], frames=[33], trigger_word="zorb", validation_share=0)
    return check([section], Geometry(16, frame_step=4, fps=16.0), text=limit_of("sdxl", 77, 2, None))


@pytest.mark.parametrize("name", EXPECTED)
def test_what_was_spoilt_is_said_with_what_to_do(found: Checked, name: str) -> None:
    about = [problem for problem in found.problems if problem.path.name == name]
    assert any(EXPECTED[name] in problem.what and problem.remedy for problem in about), about


def test_nothing_is_said_of_what_is_fine(found: Checked) -> None:
    assert [problem for problem in found.problems if problem.path.name in FINE] == []
    whole = [problem.what for problem in found.problems if problem.path == found.scans[0].folder]
    assert whole == ["The trigger word “zorb” is missing in 1 of 25 captions: notrigger.png; it is put before these"]


def test_the_report_names_every_file_that_something_is_said_of(found: Checked, tmp_path: Path) -> None:
    write_sheet(found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"<b>{name}</b>" in page for name in EXPECTED)
    assert page.count("<img") >= len(found.items)
    assert "://" not in page

"""Files that a person asks for are not written over the person's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lorapod.errors import RequestError
from lorapod.files import refuse_to_overwrite, write_drawing


def test_a_drawing_is_drawn_anew_and_a_picture_of_ones_own_is_not(tmp_path: Path):
    drawing, own = tmp_path / "drawing.png", tmp_path / "own.png"
    Image.new("RGB", (8, 8), "red").save(own)
    write_drawing(drawing, Image.new("RGB", (8, 8)))
    refuse_to_overwrite(tmp_path / "new.png", "--draw", ".png", but_own=True)
    refuse_to_overwrite(drawing, "--draw", ".png", but_own=True)
    with pytest.raises(RequestError, match="did not make it"):
        refuse_to_overwrite(own, "--draw", ".png", but_own=True)
    with pytest.raises(RequestError, match="is there already"):
        refuse_to_overwrite(drawing, "--out", ".png")


@pytest.mark.parametrize("name", ["grid.jpg", "grid", ".", "folder"])
def test_a_name_that_is_no_picture_is_refused_before_any_work(tmp_path: Path, name: str):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError) as refused:
        refuse_to_overwrite(tmp_path / name, "--out", ".png")
    assert "--out" in refused.value.remedy and ".png" in str(refused.value)

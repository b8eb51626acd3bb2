"""A folder with a small valid recipe and its pictures' folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

MINIMAL = """\
name = "cat"

[base_model]
name = "demo"

[[datasets]]
path = "pictures"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes `recipe.toml` (the minimal recipe, and more) where a folder `pictures` is; the working folder is that."""
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)

    def write_recipe(more: str = "", text: str = MINIMAL) -> Path:
        Path("recipe.toml").write_text(text + more, encoding="utf-8")
        return Path("recipe.toml")

    return write_recipe

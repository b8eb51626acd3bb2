"""Which version of each external trainer lorapod was made for, and what it needs; data from `pins.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from lorapod.errors import RequestError
from lorapod.recipe import TrainerName


@dataclass(frozen=True)
class Pin:
    """A version of a trainer.

    Attributes:
        marker: A file by which its checkout is told.
        licence: Of the trainer, as its repository says.
        python: Oldest version of Python that it runs on.
        newest_python: Newest version of Python that it is known to run on.
        submodules: Path in the checkout to `OWNER/NAME`, of those that its models need.
        torch: Arguments of pip for torch.
        requirements: Arguments of pip for the rest; names that end in `.txt`, and `.`, are of the checkout.
        smoke: Python that must run in its environment.
    """

    name: str
    repository: str
    commit: str
    marker: str
    licence: str
    python: tuple[int, int]
    newest_python: tuple[int, int]
    submodules: dict[str, str]
    torch: tuple[str, ...]
    requirements: tuple[str, ...]
    smoke: tuple[str, ...]


@cache
def _pins() -> dict[str, Pin]:
    raw = tomllib.loads((resources.files(__package__) / "pins.toml").read_text(encoding="utf-8"))
    return {
        name: Pin(
            name=name,
            repository=table["repository"],
            commit=table["commit"],
            marker=table["marker"],
            licence=table["licence"],
            python=(table["python"][0], table["python"][1]),
            newest_python=(table["newest_python"][0], table["newest_python"][1]),
            submodules=table.get("submodules", {}),
            torch=tuple(table["torch"]),
            requirements=tuple(table["requirements"]),
            smoke=tuple(table["smoke"]),
        )
        for name, table in raw.items()
    }


def pin_of(name: TrainerName) -> Pin:
    """The pinned version of a trainer.

    Raises:
        RequestError: It is not installed by lorapod.
    """
    found = _pins().get(name.value)
    if found is None:
        known = ", ".join(_pins())
        raise RequestError(f"{name.value} is nothing to install", f"lorapod installs {known}.", "Name one of these.")
    return found


def installable() -> list[TrainerName]:
    """Trainers that lorapod installs."""
    return [TrainerName(name) for name in _pins()]

"""A folder as people type it or drop it into a terminal, which puts quotes and backslashes around what is odd."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lorapod.errors import RequestError
from lorapod.workspace import Workspace


def typed_folder(text: str, workspace: Workspace) -> Path:
    """The folder that is meant: as it stands, unquoted, without backslashes, of a file:// address, or in the workspace.

    Raises:
        RequestError: There is no such folder.
    """
    for reading in _readings(text.strip()):
        path = Path(reading).expanduser()
        for candidate in (path, workspace.root / path):
            with suppress(OSError, ValueError):
                if candidate.is_dir():
                    return candidate.absolute()
    with suppress(OSError, ValueError):
        if any(Path(reading).expanduser().is_file() for reading in _readings(text.strip())):
            raise RequestError(f"{text.strip()} is a file", "", "Give the folder that it is in.")
    raise RequestError(f"There is no folder {text.strip()}", "", "Drop the folder into the terminal, or type its path.")


def _readings(text: str) -> list[str]:
    found = [text] if text else []
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        found.append(text[1:-1])
    with suppress(ValueError):
        words = shlex.split(text)
        found += [" ".join(words)] if words else []
    bare = text.strip("\"'")
    if bare.startswith("file://"):
        found.append(unquote(urlsplit(bare).path))
    return found

"""Where tables are printed: as wide as the terminal, and as wide as they are where a program reads them."""

from __future__ import annotations

import os

from rich.console import Console

_FOR_PROGRAMS = 1000
"""Columns: wide enough that no cell is cut or put on two lines."""


def table_console() -> Console:
    """A console for tables. Without a terminal, and without a width in `$COLUMNS`, a row stays on one line."""
    console = Console(highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _FOR_PROGRAMS
    return console

"""A person at a pseudo-terminal: keys go in, and the screen is read as a terminal emulator draws it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

import pyte

ENTER, ESCAPE, CTRL_C, CTRL_U, DOWN, UP = "\r", "\x1b", "\x03", "\x15", "\x1b[B", "\x1b[A"


class Terminal:
    """`lorapod ARGUMENTS` on a terminal of its own.

    Attributes:
        raw: Everything that was written to it.
        pressed: Keys so far.
    """

    def __init__(
        self,
        workspace: Path,
        *arguments: str,
        columns: int = 80,
        lines: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=2000)
        self.stream = pyte.Stream(self.screen)
        self.raw = ""
        self.pressed: list[str] = []
        size = struct.pack("HHHH", lines, columns, 0, 0)
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, size)
            for name in (
                "COLUMNS",
                "LINES",
                "NO_COLOR",
                "HF_TOKEN",
                "GEMINI_API_KEY",
                "GOOGLE_API_KEY",
                "OPENAI_API_KEY",
            ):
                os.environ.pop(name, None)
            os.environ.update(
                {"OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "LORAPOD_RUNTIME": str(workspace / "rt")}
            )
            os.environ.update(environment or {})
            # The environment is given, as readline puts COLUMNS behind Python's back where pytest has loaded it.
            command = [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(workspace), *arguments]
            os.execve(sys.executable, command, dict(os.environ))
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, size)

    def read(self, seconds: float = 0.05) -> bool:
        """Takes what was written; False where the program is gone."""
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                text = os.read(self.fd, 1 << 16).decode("utf-8", "replace")
            except OSError:
                return False
            if not text:
                return False
            self.raw += text
            self.stream.feed(text)
            if "\x1b[6n" in text:  # it asks where the cursor is, as prompt_toolkit does
                os.write(self.fd, f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R".encode())
        return True

    def press(self, *keys: str) -> None:
        for key in keys:
            self.pressed.append(key)
            os.write(self.fd, key.encode())
            time.sleep(0.03)

    def shown(self) -> str:
        """The screen as a person sees it."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def everything(self) -> str:
        """What was scrolled away, then the screen."""
        above = ["".join(row[x].data for x in range(self.screen.columns)).rstrip() for row in self.screen.history.top]
        return "\n".join([*above, self.shown()])

    def wait(self, words: str, seconds: float = 40) -> str:
        """Waits until the screen shows these words, and nothing more is drawn for a moment."""
        deadline = time.monotonic() + seconds
        while words not in self.shown():
            alive = self.read()
            if words in self.shown():
                break
            assert alive, f"it ended before {words!r}:\n{self.everything()[-3000:]}"
            assert time.monotonic() < deadline, f"{words!r} was not shown:\n{self.everything()[-3000:]}"
        quiet = time.monotonic() + 0.3
        while time.monotonic() < quiet:
            before = len(self.raw)
            if not self.read():
                break
            quiet = time.monotonic() + 0.3 if len(self.raw) > before else quiet
        return self.shown()

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.kill(self.pid, signal.SIGWINCH)

    def end(self, seconds: float = 60) -> int:
        """Waits for its end; the exit code."""
        deadline = time.monotonic() + seconds
        while self.read():
            assert time.monotonic() < deadline, f"it does not end:\n{self.shown()}"
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.fd)

    @property
    def colours(self) -> list[str]:
        """Sequences that set a colour."""
        return [
            code for code in re.findall(r"\x1b\[([0-9;]*)m", self.raw) if re.search(r"(^|;)(3[0-8]|4[0-8]|9\d)", code)
        ]

"""Stands in for `accelerate launch`: starts the script as a child, and hides the child's status."""

from __future__ import annotations

import subprocess
import sys


def main() -> int:
    words = sys.argv[1:]
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    command = [sys.executable, *words[script:]]
    ended = subprocess.run(command, check=False)
    if ended.returncode:
        sys.stderr.write("Traceback (most recent call last):\n")
        sys.stderr.write(
            '  File "launch.py", line 1179, in simple_launcher\n    raise subprocess.CalledProcessError()\n'
        )
        sys.stderr.write(f"subprocess.CalledProcessError: Command {command[:2]} returned {ended.returncode}.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What holds only while this container runs: which services are up, their configuration and logs; and tokens, which are kept
in the workspace.

    RUNTIME/services.json      what runs here, with links; mode 600
    RUNTIME/boot.lock          held by the boot that runs
    RUNTIME/logs/NAME.log      what a service printed
    WORKSPACE/.lorapod/NAME    a token or a host key, mode 600

RUNTIME is `/run/lorapod`, or a folder of this user's among the temporary ones: on the container's own disk, so that a full
or slow volume stops no service.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import string
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from lorapod.errors import DiskError
from lorapod.files import disk_error, write_text_whole

_LETTERS = string.ascii_letters + string.digits
_LETTERS_OF_A_TOKEN = 22
"""131 bits, and a link that fits a line of 80."""
_LEAST_TOKEN = 16


def runtime_folder() -> Path:
    """The folder of this container's services, made if it is not there, closed to other users.

    Raises:
        DiskError: None can be made.
    """
    trouble: OSError | None = None
    for folder in _candidates():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue  # somebody else made it first: not ours to trust
            folder.chmod(0o700)
            (folder / "logs").mkdir(exist_ok=True)
            probe = folder / ".probe"
            probe.write_text("x")
            probe.unlink()
        except OSError as error:
            trouble = error
            continue
        return folder
    raise disk_error(trouble or PermissionError(13, "no folder of our own"), _candidates()[-1]) from trouble


def _candidates() -> list[Path]:
    given = os.environ.get("LORAPOD_RUNTIME")
    if given:
        return [Path(given)]
    return [Path("/run/lorapod"), Path(tempfile.gettempdir()) / f"lorapod-{os.geteuid()}", Path("/dev/shm/lorapod")]


@dataclass(frozen=True)
class Running:
    """A service as it was started.

    Attributes:
        link: A ready link, with the token in it; or the command that connects.
        asks_for: What it asks for, in words.
        created: Unix seconds when its process began, by which a later process of the same number is told apart.
    """

    name: str
    title: str
    port: int
    link: str
    asks_for: str
    pid: int
    created: float

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 2 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def write_running(folder: Path, running: Sequence[Running]) -> None:
    """Notes what runs; links hold tokens, so only this user may read it."""
    write_text_whole(
        folder / "services.json", json.dumps([asdict(one) for one in running], indent=1) + "\n", mode=0o600
    )


def read_running() -> list[Running]:
    """The services that this container's boot started, whether or not they are still alive."""
    for folder in _candidates():
        with suppress(OSError, ValueError, TypeError):
            if folder.stat().st_uid == os.geteuid():
                return [Running(**fields) for fields in json.loads((folder / "services.json").read_bytes())]
    return []


@dataclass(frozen=True)
class Secret:
    """A token.

    Attributes:
        given: Whether the person or the provider set it, rather than lorapod.
        kept: The file that it is kept in; None where it is only in memory.
        open_to: In words, who else can read that file; empty if nobody.
    """

    value: str
    given: bool = False
    kept: Path | None = None
    open_to: str = ""


def token(name: str, given: str, private: Path, runtime: Path) -> Secret:
    """The token of a service: what was given, else the one kept, else a new one that is kept.

    Args:
        private: The workspace's own folder; a token there lasts as long as the workspace.
        runtime: Where it is kept while the workspace cannot be written.
    """
    if given.strip():
        return Secret(given.strip(), given=True)
    for folder in (private, runtime):
        with suppress(OSError):
            value = (folder / name).read_text(encoding="utf-8", errors="replace").strip()
            if len(value) >= _LEAST_TOKEN and value.isascii() and value.isalnum():  # a torn file is made anew
                return Secret(value, kept=folder / name, open_to=_open_to(folder / name))
    value = "".join(secrets.choice(_LETTERS) for _ in range(_LETTERS_OF_A_TOKEN))
    for folder in (private, runtime):
        with suppress(DiskError, OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_text_whole(folder / name, value + "\n", mode=0o600)
            return Secret(value, kept=folder / name, open_to=_open_to(folder / name))
    return Secret(value)


def _open_to(path: Path) -> str:
    """Makes a file ours alone; network volumes may not heed that."""
    with suppress(OSError):
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            return "everybody who can mount this volume"
    return ""

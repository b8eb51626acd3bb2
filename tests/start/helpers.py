"""Sessions on machines that are made up, and folders to train on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lorapod.machine import Gpus
from lorapod.machine.gpus import Gpu
from lorapod.models.catalogue import catalogue
from lorapod.start.data import found_in
from lorapod.start.facts import Facts
from lorapod.start.session import Session
from lorapod.start.steps_captions import STEPS
from lorapod.workspace import Workspace

GIB = 1 << 30
NO_GPU = Gpus()


def gpu(gigabytes: float, name: str = "NVIDIA GeForce RTX 4090") -> Gpus:
    return Gpus((Gpu(name, memory_total=int(gigabytes * GIB), capability=(8, 9)),), driver="570.86.15")


def folder_of(path: Path, count: int = 3, captions: str = "", clips: int = 0) -> Path:
    """Pictures, and files that are named like clips; `captions` may hold {}."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (64, 64), (40 * i % 255, 90, 30)).save(path / f"{i:02}.png")
        if captions:
            (path / f"{i:02}.txt").write_text(captions.format(i))
    for i in range(clips):
        (path / f"clip-{i}.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    return path


def session_on(
    root: Path,
    gpus: Gpus = NO_GPU,
    *,
    environment: dict[str, str] | None = None,
    right_keys: tuple[str, ...] = ("right",),
    here: dict[str, list[str]] | None = None,
) -> Session:
    """A session in a workspace at `root`, on a machine with these GPUs."""
    from lorapod.errors import RequestError

    workspace = Workspace(root)
    facts = Facts(
        workspace,
        gpus,
        catalogue(),
        here={"demo": ["builtin"]} | (here or {}),
        trainers={"builtin": True, "diffusion-pipe": False, "musubi": False},
        environment=environment or {},
        found=found_in(workspace),
        disk_free=500 * 10**9,
    )

    def test_key(name: str, value: str, environment: dict[str, str], repo: str) -> str:
        if value not in right_keys:
            raise RequestError(f"{name} is not known", "It was refused.", "Copy all of it.")
        return "yours"

    return Session(facts, STEPS, test_key)


def asked(session: Session) -> list[str]:
    """Takes every default, and says which questions were asked on the way."""
    keys = []
    while (step := session.current) is not None:
        keys.append(step.key)
        session.answer(step.question(session).default)
    return keys

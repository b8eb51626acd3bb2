"""Pickle checkpoints (.pt, .pth, .bin, .ckpt): looked at, opened with weights-only loading, written as safetensors.

A pickle can run any code when it is opened. So what it asks for is read first, without opening it, and anything but tensors
and plain containers is refused by name; then a process of its own (`lorapod.models.unpickle`) opens it with torch's
weights-only loading, which refuses the same once more.
"""

from __future__ import annotations

import json
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from lorapod.errors import BaseModelError, MissingPackageError
from lorapod.files import written_whole

_HARMLESS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "torch.serialization _get_layout",
}
_HARMLESS_MODULES = ("torch",)
"""Of these, names that end in `Storage`, and types as `bfloat16`, only say how numbers are stored."""
_TYPES = {"bfloat16", "float16", "float32", "float64", "half", "int8", "uint8", "int16", "int32", "int64", "bool"}
_NAMELESS = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}
"""What names things in a way that cannot be read off; torch writes protocol 2, which has `GLOBAL` in their place."""


def refuse_code(path: Path) -> None:
    """Reads what a pickle would call, without opening it.

    Raises:
        BaseModelError: It would call anything but what makes tensors, or it cannot be read.
    """
    wanted = sorted(name for name in _globals(path) if not _harmless(name))
    if wanted:
        raise BaseModelError(
            f"{path.name} is refused: it holds more than weights",
            f"Opening it would call {', '.join(name.replace(' ', '.') for name in wanted[:3])}.",
            "Look for the same weights as .safetensors; never open this file with a tool that trusts it.",
        )


def _harmless(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    if name in _HARMLESS:
        return True
    return module in _HARMLESS_MODULES and (
        attribute in _TYPES or (attribute.endswith("Storage") and attribute.isidentifier())
    )


def _globals(path: Path) -> Iterator[str]:
    """`module name` of all that the pickle names."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = [n for n in archive.namelist() if n.endswith(".pkl")]
            if len(inner) != 1:
                raise _unreadable(path, f"it holds {len(inner)} pickles in place of one")
            content = archive.read(inner[0])
    except zipfile.BadZipFile as error:
        raise _unreadable(path, "it is cut off, or of the format that torch wrote before version 1.6") from error
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                yield str(argument)
            elif opcode.name in _NAMELESS:
                raise _unreadable(path, f"its pickle has {opcode.name}, which torch does not write")
    except (ValueError, IndexError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> BaseModelError:
    return BaseModelError(
        f"{path.name} cannot be read as a torch checkpoint", f"In {path}: {why}.", "Use a .safetensors file instead."
    )


def open_weights(path: Path, target: Path | None) -> None:
    """Opens a pickle with weights-only loading in a process of its own, and writes it as safetensors if `target` is given.

    Raises:
        BaseModelError: It holds anything but weights, or cannot be read.
        MissingPackageError: torch is not installed.
        DiskError: The disk is full.
    """
    refuse_code(path)
    if find_spec("torch") is None:
        raise MissingPackageError(
            f"{path.name} is a pickle, and opening it safely needs torch",
            "torch is not installed; weights-only loading is part of it.",
            "Install it with `pip install lorapod[engine]`, then run the same command again; nothing is fetched twice.",
        )
    if target is None:
        _run(path, None)
        return
    with written_whole(target) as temporary:
        _run(path, temporary)


def _run(path: Path, target: Path | None) -> None:
    argv = [sys.executable, "-m", "lorapod.models.unpickle", str(path), *([str(target)] if target else [])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    try:
        answer = json.loads(done.stdout.strip().rpartition("\n")[2])
        why, errno_ = str(answer["why"]), answer.get("errno")
    except (ValueError, KeyError, TypeError):
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        why, errno_ = f"the process that opened it ended with {done.returncode}: {last}", None
    if isinstance(errno_, int):
        raise OSError(errno_, why, str(target))
    raise BaseModelError(f"{path.name} cannot be opened as weights", why, "Look for the same weights as .safetensors.")

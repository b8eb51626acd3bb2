"""Checkpoints: all state needed to go on bit for bit, in one safetensors file that appears whole or not at all.

Tensors are the adapter's, its average's and the optimizer's; the metadata holds the rest as JSON: step, optimizer
settings, losses so far, and the digest of the recipe. Random numbers follow from seed and step (`engine.noise`), the place
in the data from the step, the learning rate from the step: none of them needs to be kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lorapod.engine.adapters import adapter_tensors, load_adapter_tensors
from lorapod.engine.averages import Average
from lorapod.engine.storage import save_tensors
from lorapod.errors import CheckpointError
from lorapod.files import written_whole

_FORMAT = "lorapod-checkpoint-1"


@dataclass(frozen=True)
class Place:
    """Where training stands: `step` optimizer steps are done.

    Attributes:
        finished: Adapters of experts whose training is over, by the expert's suffix.
    """

    step: int
    digest: str
    finished: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.safetensors"


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints, oldest first. Temporary files of a write that was killed are not among them."""
    return sorted(folder.glob("step-*.safetensors"))


def save_checkpoint(
    folder: Path, place: Place, denoiser: nn.Module, optimizer: torch.optim.Optimizer, average: Average, keep: int
) -> Path:
    """Writes a checkpoint and removes all but the newest `keep`.

    Raises:
        DiskError: No space; older checkpoints are then still there.
    """
    tensors = {
        f"adapter.{name}": value.detach().cpu().contiguous() for name, value in adapter_tensors(denoiser).items()
    }
    tensors |= {f"average.{name}": value.detach().cpu().contiguous() for name, value in average.values.items()}
    for suffix, adapter in place.finished.items():
        tensors |= {f"finished.{suffix}.{name}": value.contiguous() for name, value in adapter.items()}
    state = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain.setdefault(str(index), {})[name] = value
    rest = {
        "format": _FORMAT,
        "step": place.step,
        "digest": place.digest,
        "optimizer": plain,
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in _tensor_free(state["param_groups"], tensors)],
    }
    path = checkpoint_path(folder, place.step)
    with written_whole(path) as temporary:
        save_tensors(tensors, temporary, metadata={"lorapod": json.dumps(rest)})
    for old in checkpoints_in(folder)[:-keep]:
        old.unlink()
    return path


def _tensor_free(groups: list[dict[str, Any]], tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The groups with their tensor settings moved into `tensors`."""
    plain = []
    for index, group in enumerate(groups):
        kept = {}
        for name, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group.{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                kept[name] = value
        plain.append(kept)
    return plain


def read_place(path: Path) -> Place:
    """Step and recipe of a checkpoint, without its tensors.

    Raises:
        CheckpointError: Damaged, or not a checkpoint.
    """
    rest = _open(path)[0]
    return Place(int(rest["step"]), str(rest["digest"]))


def load_checkpoint(
    path: Path, digest: str, denoiser: nn.Module, optimizer: torch.optim.Optimizer, average: Average
) -> Place:
    """Puts adapter, its average and the optimizer back as they were.

    Raises:
        CheckpointError: Damaged, or of another recipe.
        AdapterError: Layers or shapes differ.
    """
    rest, tensors = _open(path)
    if rest["digest"] != digest:
        raise CheckpointError(
            f"The checkpoint {path.name} belongs to another recipe",
            "Base model, data, adapter, optimizer or another setting that shapes the result has changed since.",
            "Go back to the recipe in the run folder, or start a new run (`adapter.continue_from` takes its LoRA along).",
        )
    adapter = {k.removeprefix("adapter."): v for k, v in tensors.items() if k.startswith("adapter.")}
    load_adapter_tensors(denoiser, adapter, path)
    average.restore({k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")})
    state = optimizer.state_dict()
    finished: dict[str, dict[str, Tensor]] = {}
    restored: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in rest["optimizer"].items()}
    groups = [dict(saved) for saved in rest["groups"]]
    for key, value in tensors.items():
        kind, _, tail = key.partition(".")
        if kind == "optimizer":
            index, _, name = tail.partition(".")
            restored.setdefault(int(index), {})[name] = value
        elif kind == "group":
            index, _, name = tail.partition(".")
            groups[int(index)][name] = value
        elif kind == "finished":
            suffix, _, name = tail.partition(".")
            finished.setdefault(suffix, {})[name] = value
    for group, live in zip(groups, state["param_groups"], strict=True):
        group["params"] = live["params"]
        group["betas"] = tuple(group["betas"]) if "betas" in group else None
        if group["betas"] is None:
            del group["betas"]
    optimizer.load_state_dict({"state": restored, "param_groups": groups})
    return Place(int(rest["step"]), digest, finished)


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads((file.metadata() or {})["lorapod"])
            if rest.get("format") != _FORMAT:
                raise KeyError("format")
            return rest, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint that lorapod can read",
            f"It is damaged or something else ({error}).",
            "Remove it from the run's checkpoints folder; the one before it is used then.",
        ) from error

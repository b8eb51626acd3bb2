"""What is off, each with its remedy: `lorapod doctor` shows all of it, `lorapod status` the faults and warnings."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from lorapod.machine import Finding, Severity, gpu_findings, host_findings
from lorapod.machine.torch_build import TorchAnswer
from lorapod.overview.gather import Overview
from lorapod.workspace import DATASET_FOLDERS


def examine(overview: Overview, answer: TorchAnswer | None = None) -> list[Finding]:
    """Everything that is off, the gravest first.

    Args:
        answer: What torch itself said, where it was asked.
    """
    found = gpu_findings(overview.gpus, overview.torch) + host_findings(overview.host, overview.disk)
    faulty = any(one.severity is Severity.FAULT for one in found)
    found += _answer(overview, answer, already=faulty)
    found += _workspace(overview)
    found += _secrets(overview)
    found += _programs(overview)
    found += [Finding(Severity.FAULT, "model", error.what, error.why, error.remedy) for error in overview.trouble]
    found += _models(overview)
    found += _runs(overview)
    order = list(Severity)
    return sorted(found, key=lambda one: order.index(one.severity))


def _answer(overview: Overview, answer: TorchAnswer | None, already: bool) -> Iterator[Finding]:
    """A GPU on which torch cannot compute, although nothing is known to be off with it."""
    if answer is None or answer.works or not overview.gpus.found or already:
        return
    yield Finding(
        Severity.FAULT, "torch", "torch cannot compute on the GPU", f"It says: {answer.error or 'nothing'}.",
        "If the GPU is in use by nobody (`nvidia-smi`), restart the machine or take another pod.",
    )  # fmt: skip


def _workspace(overview: Overview) -> Iterator[Finding]:
    root = overview.workspace.root
    if root.exists() and not root.is_dir():
        yield Finding(
            Severity.FAULT, "workspace", f"The workspace {root} is not a folder", "", "Choose another with --workspace."
        )
        return
    for name in (*DATASET_FOLDERS, "training_outputs", "models"):
        path = root / name
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            yield Finding(
                Severity.FAULT, "workspace", f"{path} is not a folder", "A file or broken link is in its place.",
                "Rename it; lorapod leaves it as it is.",
            )  # fmt: skip


def _secrets(overview: Overview) -> Iterator[Finding]:
    for path in (overview.workspace.root / ".env", overview.workspace.private / "jupyter.token"):
        with suppress(OSError):
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                unread = " Until it is closed, no key in it is used." if path.name == ".env" else ""
                yield Finding(
                    Severity.WARNING, "keys", f"{path} can be read by other users", f"It holds secrets.{unread}",
                    f"Close it: `chmod 600 {path}`.",
                )  # fmt: skip
    if not overview.keys.get("HF_TOKEN"):
        yield Finding(
            Severity.NOTE, "keys", "HF_TOKEN is not set", "FLUX.1-dev and other base models behind a licence need it.",
            "Get one at huggingface.co/settings/tokens and set it as HF_TOKEN; the others can be fetched without.",
        )  # fmt: skip


def _programs(overview: Overview) -> Iterator[Finding]:
    builtin = next((one for one in overview.trainers if one.name == "builtin"), None)
    if builtin is not None and not builtin.installed and overview.torch is not None:
        yield Finding(
            Severity.FAULT, "trainer", "The built-in trainer is not whole", "Packages of the engine are missing.",
            "Install them: `pip install 'lorapod[engine]'`.",
        )  # fmt: skip
    for service in overview.services:
        if not service.alive:
            yield Finding(
                Severity.FAULT, "service", f"{service.title} does not run any more", "",
                "Restart the pod, or run `lorapod pod boot` again.",
            )  # fmt: skip
    if os.environ.get("RUNPOD_POD_ID") and not overview.services:
        yield Finding(
            Severity.NOTE, "service", "No service of lorapod runs on this pod", "It was not started with lorapod's image.",
            "Use the pod's own JupyterLab, or run `lorapod pod boot`.",
        )  # fmt: skip


def _models(overview: Overview) -> Iterator[Finding]:
    for model in overview.models:
        if not model.whole:
            yield Finding(
                Severity.FAULT, "model", f"The base model {model.name} is not whole", "Files of it are gone.",
                f"Fetch what is missing: `lorapod models pull {model.name}`.",
            )  # fmt: skip


def _runs(overview: Overview) -> Iterator[Finding]:
    for run in overview.runs:
        if run.status in ("interrupted", "failed"):
            happened = "was interrupted" if run.status == "interrupted" else "failed"
            where = f"at step {run.step} of {run.total}" if run.total else "before the first step"
            yield Finding(
                Severity.NOTE, "run", f"The run {run.id} ({run.name}) {happened} {where}", "",
                f"See why with `lorapod runs show {run.id}`; go on with `lorapod train --resume {run.id}`.",
            )  # fmt: skip

"""`lorapod status`: one screen of everything that matters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from lorapod.machine import Finding
    from lorapod.overview import Overview

_GB = 1_000_000_000
_GIB = 1 << 30
"""Memory is sold by this, and called GB."""
_LABEL = 11
_COLOURS = {"fault": "bold red", "warning": "bold yellow", "note": "cyan"}

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def status(context: typer.Context, as_json: Json = False) -> None:
    """Show machine, workspace, keys, base models, runs and services on one screen, and what is off."""
    from rich.console import Console

    from lorapod.machine import Severity
    from lorapod.overview import examine, gather

    overview = gather(context.obj)
    findings = [one for one in examine(overview) if one.severity is not Severity.NOTE]
    if as_json:
        typer.echo(json.dumps(as_program(overview, findings), indent=2))
        return
    console = Console(highlight=False, soft_wrap=False)
    show(overview, console)
    for one in findings:
        console.print()
        show_finding(one, console, short=True)


def as_program(overview: Overview, findings: Sequence[Finding]) -> dict[str, Any]:
    """The overview and the findings as JSON holds them."""
    from dataclasses import asdict

    return overview.to_json() | {"findings": [asdict(one) for one in findings]}


def show(overview: Overview, console: Console) -> None:
    """The facts, a label and a line each; links are never broken, so that they can be clicked."""
    from rich.text import Text

    for label, text, link in rows(overview):
        head = Text(f"{label:<{_LABEL}}", style="bold")
        lines = [Text(text)] if link else Text(text).wrap(console, max(20, console.width - _LABEL))
        if link and len(text) > console.width - _LABEL:  # on a line of its own it can still be clicked
            console.print(head)
            head, lines = Text(), [Text(text)]
        for number, line in enumerate(lines):
            console.print(Text.assemble(" " * _LABEL if number else head, line), soft_wrap=True)


def rows(overview: Overview) -> Iterator[tuple[str, str, bool]]:
    """Label, text, and whether it is a link."""
    from lorapod.runs import step_text

    host, disk, gpus = overview.host, overview.disk, overview.gpus
    where = f", pod {host.pod}" if host.pod else (", in a container" if host.container else "")
    yield "lorapod", f"{overview.version}{where}", False
    yield "workspace", str(overview.workspace.root), True
    yield "", f"on a {disk.keeping.value}, {disk.free / _GB:.0f} of {disk.total / _GB:.0f} GB free", False
    free, total = (f"{value / _GIB:.0f}" for value in (host.memory_free, host.memory_total))
    yield "machine", f"{host.cpus:g} processors, {free} of {total} GB of memory free", False
    for number, gpu in enumerate(gpus.found):
        memory = "its memory is shared with the machine"
        if gpu.memory_total is not None and gpu.memory_free is not None:
            memory = f"{gpu.memory_free / _GIB:.0f} of {gpu.memory_total / _GIB:.0f} GB free"
        yield "" if number else "GPU", ", ".join(filter(None, [gpu.name, gpu.architecture, memory])), False
    if not gpus.found:
        yield "GPU", "none", False
    torch = f"torch {overview.torch.shown}" if overview.torch else "no torch"
    cuda = f" (CUDA up to {gpus.cuda[0]}.{gpus.cuda[1]})" if gpus.cuda else ""
    yield "", (f"driver {gpus.driver}{cuda}, " if gpus.driver else "") + torch, False
    yield "keys", _listed([(name, there) for name, there in overview.keys.items()], "set", "not set"), False
    models = [f"{one.name} ({f'{one.size / _GB:.1f} GB' if one.whole else 'not whole'})" for one in overview.models]
    yield "models", ", ".join(models) or "none fetched yet; `lorapod models list` shows which there are", False
    yield "trainers", _listed([(one.name, one.installed) for one in overview.trainers], "ready", "not installed"), False
    ready = [one.name for one in overview.captioners if not one.lacks]
    lacking = [f"{one.name} needs {one.lacks}" for one in overview.captioners if one.lacks]
    yield "captions", "; ".join(filter(None, [", ".join(ready), *lacking])), False
    for number, run in enumerate(overview.runs):
        yield (
            "" if number else "runs",
            f"{run.id} {run.name}, {run.base_model}: {run.status}, {step_text(run.step, run.total)}",
            False,
        )
    if not overview.runs:
        yield "runs", "none yet", False
    for service in overview.services:
        if service.alive:
            yield service.title, service.link, True


def _listed(entries: list[tuple[str, bool]], yes: str, no: str) -> str:
    have, lack = [name for name, there in entries if there], [name for name, there in entries if not there]
    parts = [f"{', '.join(have)} {yes}"] * bool(have) + [f"{', '.join(lack)} {no}"] * bool(lack)
    return "; ".join(parts)


def show_finding(finding: Finding, console: Console, short: bool = False) -> None:
    """What is off, why, and what to do; `short` leaves out why."""
    from rich.text import Text

    label = Text(f"{finding.severity.value:<{_LABEL}}", style=_COLOURS[finding.severity.value])
    for text in (finding.what, "" if short else finding.why, finding.remedy):
        for line in Text(text).wrap(console, max(20, console.width - _LABEL)) if text else []:
            console.print(label + line, soft_wrap=True)
            label = Text(" " * _LABEL)

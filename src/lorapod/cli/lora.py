"""`lorapod lora`: look into a LoRA file, or convert it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from lorapod.recipe.schema import LoraFormat

if TYPE_CHECKING:
    from lorapod.lora_file import LoraInfo

app = typer.Typer(
    help="Look into LoRA files and convert them.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)

_BAR_CELLS = 30
_MOST_BLOCKS = 48


@app.callback()
def _group() -> None:
    """Look into LoRA files and convert them."""


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file (.safetensors), from any trainer.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, for programs.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="List every adapted layer too.")] = False,
) -> None:
    """Show what a LoRA file is for, how it was trained, and how much it changes each block."""
    from lorapod.lora_file import inspect as inspect_file  # numpy is slow to import and not needed for --help

    info = inspect_file(file)
    if as_json:
        typer.echo(json.dumps(info.to_json(), ensure_ascii=False, indent=2))
        return
    console = Console()
    console.print(_facts(info))
    if training := _training(info):
        console.print(training)
    console.print(_blocks(info))
    if keys:
        console.print(_layers(info))
    for warning in info.warnings:
        console.print(f"[yellow]![/] {escape(warning)}")


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A LoRA file (.safetensors), from any trainer.", show_default=False)],
    to: Annotated[LoraFormat, typer.Option("--to", help="The key layout to write.")] = LoraFormat.COMFYUI,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to write. Default: beside the file, the layout in its name."),
    ] = None,
) -> None:
    """Write a LoRA file in another program's key layout; what it does to the base model stays the same."""
    from lorapod.errors import RequestError
    from lorapod.lora_convert import convert as convert_file  # numpy is slow to import and not needed for --help

    target = out or file.with_name(f"{file.stem}-{to.value}.safetensors")
    if target.exists():
        raise RequestError(f"{target} exists already", "", "Name another file with --out, or move it away.")
    lora = convert_file(file, target, to)
    layers = len(lora.layers)
    typer.echo(f"{target}: {layers} layers of {lora.family}, in the layout {to.value}")


def _facts(info: LoraInfo) -> Table:
    rows = {
        "Base model": info.base_model,
        "Family": info.family or "unknown (no metadata, and the layers tell nothing)",
        "Trigger": info.trigger,
        "Rank": _spread([float(rank) for rank in info.ranks]),
        "Alpha": _spread(info.alphas) + ("" if info.ranks == info.alphas else "  (strength is alpha / rank)"),
        "Layers": str(len(info.modules)),
        "Key layout": info.format,
        "Types": ", ".join(f"{count} × {dtype}" for dtype, count in info.dtypes.items()),
        "Size": decimal(info.size),
        "SHA-256": info.sha256,
        "Base model hash": info.base_model_hash,
        "Made with": f"lorapod {info.metadata['lorapod.version']}" if "lorapod.version" in info.metadata else None,
    }
    return _pairs(info.metadata.get("modelspec.title") or info.path.name, rows)


def _training(info: LoraInfo) -> Table | None:
    get = info.metadata.get
    rows = {
        "Steps": f"{info.steps:,}" if info.steps is not None else None,
        "Pictures": get("ss_num_train_images"),
        "Resolution": get("modelspec.resolution") or get("ss_resolution"),
        "Batch": get("ss_total_batch_size"),
        "Optimizer": get("ss_optimizer"),
        "Learning rate": get("ss_learning_rate"),
        "Schedule": get("ss_lr_scheduler"),
        "Seed": get("ss_seed"),
        "Notes": get("ss_training_comment") or get("modelspec.description"),
        "Recipe": "kept in the file (--json shows it)" if info.recipe else None,
    }
    return _pairs("How it was trained", rows) if any(rows.values()) else None


def _blocks(info: LoraInfo) -> Table:
    norms = info.block_norms
    strongest = max(norms.values(), default=0.0)
    table = _table("Change by block")
    table.show_header = False
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column()
    for block, norm in list(norms.items())[:_MOST_BLOCKS]:
        cells = round(_BAR_CELLS * norm / strongest) if strongest else 0
        table.add_row(escape(block), f"{norm:.4g}", "█" * cells, style=None if norm else "dim")
    if len(norms) > _MOST_BLOCKS:
        table.add_row(f"and {len(norms) - _MOST_BLOCKS} more", "", "(--json shows all)")
    return table


def _layers(info: LoraInfo) -> Table:
    table = _table("Layers")
    table.add_column("layer", style="dim", overflow="fold")
    table.add_column("rank", justify="right")
    table.add_column("alpha", justify="right")
    table.add_column("norm", justify="right")
    for module in info.modules:
        norm = f"{module.norm:.4g}" if module.norm is not None else module.problem or ""
        table.add_row(escape(module.name), str(module.rank), f"{module.alpha:g}", norm)
    return table


def _pairs(title: str, rows: dict[str, str | None]) -> Table:
    table = _table(title)
    table.show_header = False
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    return table


def _table(title: str) -> Table:
    return Table(title=f"\n{escape(title)}", title_justify="left", title_style="bold", box=None, pad_edge=False)


def _spread(values: list[float]) -> str:
    if len(values) > 1:
        return f"{values[0]:g} to {values[-1]:g}"
    return f"{values[0]:g}" if values else "none"

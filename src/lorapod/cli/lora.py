"""`lorapod lora`: look into LoRA files, and make others of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from lorapod.cli.wide import table_console
from lorapod.recipe.choices import LoraFormat

if TYPE_CHECKING:
    from lorapod.lora_file import LoraInfo
    from lorapod.workspace import Workspace

app = typer.Typer(
    help="Look into LoRA files, convert, shrink, merge and compare them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def _known_family(name: str | None) -> str | None:
    from lorapod.models.families import family_facts

    if name is not None and name not in family_facts():
        raise typer.BadParameter(f"there are {', '.join(sorted(family_facts()))}")
    return name


FamilyOption = Annotated[
    str | None,
    typer.Option(
        "--family",
        callback=_known_family,
        help="The base model's architecture, as in `flux`, where a file does not tell.",
    ),
]

_BAR_CELLS = 30
_MOST_BLOCKS = 48
_LEAST_ALIKE = 12


@app.callback()
def _group() -> None:
    """Look into LoRA files, convert, shrink, merge and compare them."""


@app.command()
def inspect(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A LoRA file (.safetensors), from any trainer, or a run (id, name or folder).",
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, for programs.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="List every adapted layer too.")] = False,
) -> None:
    """Show what a LoRA file is for, how it was trained, and how much it changes each block."""
    from lorapod.lora_file import inspect as inspect_file  # numpy is slow to import and not needed for --help

    info = inspect_file(_newest_of_run(file, context.obj))
    if as_json:
        typer.echo(json.dumps(info.to_json(), ensure_ascii=False, indent=2))
        return
    console = table_console()
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
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A LoRA file (.safetensors), from any trainer.", show_default=False)
    ],
    to: Annotated[LoraFormat, typer.Option("--to", help="The key layout to write.")] = LoraFormat.COMFYUI,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to write. Default: beside the file, the layout in its name."),
    ] = None,
    without_text_encoders: Annotated[
        bool, typer.Option("--without-text-encoders", help="Leave layers of text encoders out.")
    ] = False,
    family: FamilyOption = None,
) -> None:
    """Write a LoRA file in another program's key layout; what it does to the base model stays the same."""
    from lorapod.lora_convert import convert as convert_file  # numpy is slow to import and not needed for --help

    target = out or file.with_name(f"{file.stem}-{to.value}.safetensors")
    _refuse_to_overwrite(target)
    lora = convert_file(file, target, to, family, text_encoders=not without_text_encoders)
    layers = len(lora.layers) + len(lora.others)
    typer.echo(f"{target}: {layers} layers of {lora.family}, in the layout {to.value}")


@app.command()
def resize(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A LoRA file (.safetensors), from any trainer.", show_default=False)
    ],
    rank: Annotated[int, typer.Option("--rank", min=1, help="The largest rank to keep.", show_default=False)],
    to: Annotated[LoraFormat, typer.Option("--to", help="The key layout to write.")] = LoraFormat.COMFYUI,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write. Default: beside the file, the rank in its name.")
    ] = None,
    family: FamilyOption = None,
) -> None:
    """Write a LoRA file at a lower rank, as near to the original as that rank allows."""
    from lorapod import lora_convert, lora_math

    target = out or file.with_name(f"{file.stem}-rank{rank}.safetensors")
    _refuse_to_overwrite(target)
    smaller, kept = lora_math.resize(lora_convert.read(file, family), rank)
    lora_convert.write(smaller, target, to)
    highest = max((layer.rank for layer in smaller.layers), default=0)
    unchanged = " (its own, no layer has a higher one)" if highest < rank else ""
    typer.echo(f"{target}: rank {highest}{unchanged}, {kept:.1%} of the change kept")


@app.command()
def merge(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES", help="LoRA files of one base model.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write.", show_default=False)],
    strength: Annotated[
        list[float] | None, typer.Option("--strength", "-s", help="Strength of each file, in their order. Default: 1.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Reduce to this rank. Default: the sum of their ranks, exact.")
    ] = None,
    to: Annotated[LoraFormat, typer.Option("--to", help="The key layout to write.")] = LoraFormat.COMFYUI,
    family: FamilyOption = None,
) -> None:
    """Write one LoRA file that does what several do together."""
    from lorapod import lora_convert, lora_math
    from lorapod.errors import RequestError

    strengths = strength or [1.0] * len(files)
    if len(strengths) != len(files):
        raise RequestError(
            f"{len(files)} files, but {len(strengths)} strengths",
            "",
            "Give --strength once for each file, or leave it out.",
        )
    _refuse_to_overwrite(out)
    together, kept = lora_math.merge([lora_convert.read(file, family) for file in files], strengths), 1.0
    if rank is not None:
        together, kept = lora_math.resize(together, rank)
    lora_convert.write(together, out, to)
    typer.echo(f"{out}: {len(together.layers)} layers of {together.family}, {kept:.1%} of the change kept")


@app.command()
def compare(
    context: typer.Context,
    one: Annotated[Path, typer.Argument(metavar="ONE", help="A LoRA file, or a run.", show_default=False)],
    other: Annotated[
        Path, typer.Argument(metavar="OTHER", help="Another, of the same base model.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print every layer as JSON, for programs.")] = False,
    family: FamilyOption = None,
) -> None:
    """Show how alike the changes are that two LoRA files make, layer by layer."""
    from dataclasses import asdict

    from lorapod import lora_convert, lora_math

    one, other = (_newest_of_run(each, context.obj) for each in (one, other))
    first, second = lora_convert.read(one, family), lora_convert.read(other, family)
    rows = lora_math.compare(first, second)
    if as_json:
        typer.echo(json.dumps({"cosine": lora_math.overall(rows), "layers": [asdict(row) for row in rows]}, indent=2))
        return
    alone = [len(lora.layers) - len(rows) for lora in (first, second)]
    table = _pairs(
        f"{one.name} and {other.name}",
        {
            "Cosine": f"{lora_math.overall(rows):.4f}  (1 the same direction, 0 nothing in common)",
            "Layers in both": str(len(rows)),
            "Only in one": f"{alone[0]} and {alone[1]}",
        },
    )
    table_of_layers = _table("Least alike")
    for column in ("layer", "cosine", "norms"):
        table_of_layers.add_column(column, style="dim" if column == "layer" else None)
    changed = [row for row in rows if any(row.norms)]  # what both leave alone is not unlike
    for row in sorted(changed, key=lambda row: row.cosine)[:_LEAST_ALIKE]:
        table_of_layers.add_row(escape(row.module), f"{row.cosine:.4f}", f"{row.norms[0]:.4g}  {row.norms[1]:.4g}")
    console = table_console()
    console.print(table)
    console.print(table_of_layers)


def _newest_of_run(named: Path, workspace: Workspace | None) -> Path:
    """The file, or the newest LoRA of the run that is called so."""
    from lorapod.errors import RunError
    from lorapod.runs import find_run
    from lorapod.runs.sampling import newest_lora

    if named.is_file() or named.suffix == ".safetensors" or workspace is None:
        return named
    try:
        run = find_run(str(named), workspace)
    except RunError:
        return named  # what is said of a file that is not there fits better
    return newest_lora(run)


def _refuse_to_overwrite(target: Path) -> None:
    if target.exists():
        from lorapod.errors import RequestError

        raise RequestError(f"{target} exists already", "", "Name another file with --out, or move it away.")


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

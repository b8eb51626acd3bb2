"""`lorapod recipe`: write, show and check recipes, and render them for other trainers."""

from __future__ import annotations

import difflib
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lorapod.errors import RecipeError, RequestError
from lorapod.workspace import Workspace, find_workspace

app = typer.Typer(
    help="Write, show and check recipes.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)

RecipeFile = Annotated[Path, typer.Argument(metavar="FILE", help="The recipe's TOML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one value, as training.steps=500 or datasets.0.repeats=2; may be given several times.",
        show_default=False,
    ),
]


@app.command("new")
def new_command(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", help="Base model: a name, or a folder in diffusers layout.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of pictures with their captions.")],
    trainer: Annotated[str, typer.Option("--trainer", help="What trains.")] = "builtin",
    name: Annotated[str | None, typer.Option("--name", help="Name of the LoRA; else the data folder's.")] = None,
    goal: Annotated[
        str | None,
        typer.Option(
            "--goal",
            help="character, style, concept or motion: how long to train follows from it and from the number of items.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; else the recipe is printed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if there is one.")] = False,
) -> None:
    """Write a short, commented recipe to start from."""
    from lorapod import recipe as recipes
    from lorapod.files import write_text_whole

    if not data.expanduser().is_dir():
        raise RecipeError(f"There is no folder {data}", remedy="Give the folder of your pictures with --data.")
    if out is not None and out.is_dir():
        raise RequestError(f"{out} is a folder", remedy="Give the file to write, as recipe.toml.")
    if out is not None and out.exists() and not force:
        raise RequestError(
            f"{out} is there already", "It was left as it is.", "Give another file, or --force to overwrite it."
        )
    if goal is not None and goal not in list(recipes.Goal):
        raise RequestError(f"There is no goal {goal!r}", "", f"Choose one of {', '.join(recipes.Goal)}.")
    known = model in recipes.presets.names() or recipes.presets.is_added(model, _workspace(context))
    text = recipes.new(
        model if known or not Path(model).expanduser().is_dir() else _as_seen_from(Path(model), None).as_posix(),
        _as_seen_from(data, out),
        trainer,
        name,
        _workspace(context),
        recipes.Goal(goal) if goal else None,
        _items_in(data.expanduser()) if goal else 0,
    )
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text_whole(out, text)
    typer.echo(f"Wrote {out}. Next: look through it, then `lorapod train {shlex.quote(str(out))}`.")


def _items_in(folder: Path) -> int:
    """How many pictures and clips the folder holds.

    Raises:
        RequestError: It cannot be looked into.
    """
    from lorapod.data.walk import Kind, walk

    try:
        folders, _ = walk(folder, recursive=False)
    except OSError as error:
        raise RequestError(
            f"{folder} cannot be looked into", error.strerror or "", "Check that you may read it."
        ) from error
    return sum(len(each.paths(Kind.PICTURE, Kind.CLIP)) for each in folders)


def _workspace(context: typer.Context) -> Workspace | None:
    return context.obj if isinstance(context.obj, Workspace) else None


def _as_seen_from(folder: Path, recipe_file: Path | None) -> Path:
    """`folder` relative to the recipe's file where it lies beside or below it, so that both can move; else absolute."""
    absolute = folder.expanduser().resolve()
    if recipe_file is None:
        return absolute
    home = recipe_file.expanduser().resolve().parent
    return absolute.relative_to(home) if absolute.is_relative_to(home) else absolute


@app.command("show")
def show_command(context: typer.Context, file: RecipeFile, overrides: Overrides = None) -> None:
    """Print the recipe with every value, as it would be trained."""
    from lorapod import recipe as recipes

    text = recipes.dumps(recipes.load(file, overrides or (), workspace=_workspace(context)))
    if not sys.stdout.isatty():
        typer.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.syntax import Syntax

    highlighted = Syntax("", "toml", theme="ansi_dark", background_color="default").highlight(text)
    Console().print(highlighted, soft_wrap=True, end="")


@app.command("check")
def check_command(context: typer.Context, file: RecipeFile, overrides: Overrides = None) -> None:
    """Check the recipe: every problem with its line, or that it is valid and what it still needs on this machine.

    No picture is opened; `lorapod dataset check FILE` does that.
    """
    from lorapod import recipe as recipes
    from lorapod.runs.control import check_alone

    workspace = _workspace(context) or find_workspace()
    recipe = recipes.load(file, overrides or (), workspace=workspace)
    missing = check_alone(recipe, workspace)
    count = len(recipe.datasets)
    datasets = f"{count} dataset{'' if count == 1 else 's'}"
    training = recipe.training
    length = f"{training.steps} steps" if training.steps is not None else f"{training.epochs} epochs"
    typer.echo(f"OK: {file} ({recipe.base_model.name}, {datasets}, {length}, trainer {recipe.trainer})")
    if missing:
        typer.echo(f"Not ready on this machine: {missing}")


@app.command("render")
def render_command(
    context: typer.Context,
    file: RecipeFile,
    out: Annotated[Path, typer.Option("--out", help="New folder for the trainer's files and commands.")],
    trainer: Annotated[
        str | None, typer.Option("--trainer", help="The external trainer. [default: the recipe's]", show_default=False)
    ] = None,
    assume_files: Annotated[
        bool,
        typer.Option(
            "--assume-files", help="Neither look for the base model, the trainer and the data, nor touch them."
        ),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Write what an external trainer would be given: its files, and each command as NN-STAGE.command.json."""
    from lorapod import recipe as recipes
    from lorapod.trainers.rendered import render_to

    chosen = [f"trainer={trainer}"] if trainer else []
    recipe = recipes.load(
        file, [*(overrides or ()), *chosen], check_paths=not assume_files, workspace=_workspace(context)
    )
    written, notes = render_to(recipe, out, context.obj, assume_files=assume_files)
    for path in written:
        typer.echo(path)
    for note in notes:
        typer.echo(f"Note: {note}", err=True)


@app.command("keys")
def keys_command(
    word: Annotated[
        str,
        typer.Argument(
            metavar="WORD", help="Part of a key's name, as rate or adapter; all keys without.", show_default=False
        ),
    ] = "",
) -> None:
    """Explain the keys of a recipe: what each takes, what it is by default, and what it does."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from lorapod import recipe as recipes

    found = recipes.explained(word)
    if not found:
        near = difflib.get_close_matches(word, [each.key.rpartition(".")[2] for each in recipes.explained()], n=3)
        meant = f"Did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
        raise RequestError(f"No key has {word!r} in its name", meant, "`lorapod recipe keys` lists all.")
    console = Console(highlight=False)
    for each in found:
        console.print(Text.assemble((each.key, "bold"), f"  {each.takes}; default: {each.default}"))
        console.print(Padding(Text(each.what), (0, 0, 1, 4)))


@app.command("timesteps")
def timesteps_command(
    context: typer.Context,
    file: RecipeFile,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="Draw it as a picture too.", show_default=False)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Show how often each noise level is trained at: 0 is a clean picture, 1 pure noise.

    Low levels teach details, high ones composition. Where the base model's shift depends on the size of the picture, each
    resolution of the recipe is shown.
    """
    from lorapod import recipe as recipes
    from lorapod.cli.recipe_timesteps import curves_of, draw, histogram
    from lorapod.files import refuse_to_overwrite, write_drawing

    if out is not None:
        refuse_to_overwrite(out, "--out", ".png", but_own=True)
    workspace = context.obj
    recipe = recipes.load(file, overrides or [], check_paths=False, workspace=workspace)
    curves = curves_of(recipe, workspace)
    for name, levels in curves.items():
        typer.echo(histogram(name, levels))
    if out is not None:
        write_drawing(out, draw(curves))
        typer.echo(f"Wrote {out}")


@app.command("import")
def import_command(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="The configuration, and its dataset file or the script with its command line where they are files of "
            "their own.",
            show_default=False,
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="diffusion-pipe, musubi, ai-toolkit, kohya or template. [default: by what is in it]",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Base model, where the files do not tell.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write. [default: NAME.toml]", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what became of each key as JSON.")] = False,
) -> None:
    """Make a recipe out of another trainer's configuration, and say what became of each key."""
    from lorapod.cli.recipe_import import import_recipe

    import_recipe(files, format, base, out, as_json, _workspace(context))

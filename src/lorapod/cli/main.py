"""`lorapod`: the commands, and how errors are shown. Commands are imported when they are run, so that help is quick."""

from __future__ import annotations

import difflib
import itertools
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from lorapod import __version__
from lorapod.errors import LorapodError
from lorapod.settings import adopt_aliases
from lorapod.workspace import find_workspace

COMMANDS: dict[str, tuple[str, str]] = {
    "start": ("lorapod.cli.start:start", "Train a LoRA, guided from pictures to the finished file."),
    "demo": ("lorapod.cli.demo:demo", "Train a LoRA on the packaged tiny model, on any CPU, in about two minutes."),
    "train": ("lorapod.cli.train:train", "Train a LoRA from a recipe, or go on with a run."),
    "recipe": ("lorapod.cli.recipe:app", "Make, show and check recipes; import and render other trainers' files."),
    "models": ("lorapod.cli.models:app", "List, fetch, verify and remove base models."),
    "trainers": ("lorapod.cli.trainers:app", "Install, check and remove external trainers."),
    "dataset": ("lorapod.cli.dataset:app", "Look at a dataset before it is trained on."),
    "caption": ("lorapod.cli.caption:app", "Write, check and review the captions of pictures and clips."),
    "runs": ("lorapod.cli.runs:app", "List, watch and stop runs."),
    "sample": ("lorapod.cli.sample:sample", "Draw a grid of prompts by strengths with a trained LoRA."),
    "status": ("lorapod.cli.status:status", "Show machine, workspace, runs and services on one screen."),
    "doctor": ("lorapod.cli.doctor:doctor", "Look for what is off with this machine, each with its remedy."),
    "pod": ("lorapod.cli.pod:app", "Boot a rented machine's container."),
    "lora": ("lorapod.cli.lora:app", "Look into LoRA files, convert, shrink, merge and compare them."),
}
"""Name to (module:attribute, short help); the attribute is a Typer application or a plain function."""


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        target = getattr(import_module(module), attribute)
        if not isinstance(target, typer.Typer):
            application = typer.Typer(add_completion=False, rich_markup_mode=None)
            application.command(cmd_name)(target)
            target = application
        command = get_command(target)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS and (near := difflib.get_close_matches(args[0], COMMANDS, n=1)):
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{near[0]}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"lorapod {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    workspace: Annotated[
        Path | None,
        typer.Option(help="Folder of everything of yours. [default: $NETWORK_VOLUME, /workspace/lorapod or ~/lorapod]"),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train LoRAs for image and video diffusion models: a folder of pictures in, a file for ComfyUI out."""
    adopt_aliases(os.environ)
    context.obj = find_workspace(workspace)


def show_error(error: LorapodError) -> None:
    """What, why and what to do, on standard error."""
    typer.secho(f"error: {error.what}", fg="red", bold=True, err=True)
    for part in (error.why, error.remedy):
        if part:
            typer.echo(part, err=True)


def _general_first(words: list[str]) -> list[str]:
    """The words of the command line with the options of all commands before the command, wherever they were written."""
    general, rest, left = [], [], iter(words)
    for word in left:
        if word == "--workspace":
            general += [word, *itertools.islice(left, 1)]
        elif word == "--debug" or word.startswith("--workspace="):
            general.append(word)
        elif word == "--":
            rest += [word, *left]
        else:
            rest.append(word)
    return general + rest


def run() -> None:
    """Entry point of the command `lorapod`."""
    debug = "--debug" in sys.argv
    try:
        app(_general_first(sys.argv[1:]), prog_name="lorapod")
    except LorapodError as error:
        if debug:
            raise
        show_error(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        typer.secho(f"error: lorapod has a bug: {type(error).__name__}: {error}", fg="red", bold=True, err=True)
        typer.echo("Run the same command with --debug to see where, and report it.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    run()

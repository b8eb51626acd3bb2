"""`lorapod caption`: write captions for the pictures and clips of a folder, and take them back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from lorapod.cli.dataset_asked import Recursive, cache_of, workspace_of
from lorapod.errors import RequestError

if TYPE_CHECKING:
    from lorapod.captioning.items import Redo
    from lorapod.captioning.registry import Options
    from lorapod.captioning.wording import Wish
    from lorapod.data.scan import Item
    from lorapod.workspace import Workspace


class PathFirst(TyperGroup):
    """`lorapod caption PATH` is `lorapod caption write PATH`; a folder of a command's name is given as `./write`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["write", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=PathFirst,
    help="Write captions for pictures and clips; what a person wrote is never overwritten. `lorapod caption PATH` is "
    "short for `lorapod caption write PATH`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Folder = Annotated[
    Path,
    typer.Argument(metavar="PATH", help="A dataset's folder, also by its name in the workspace.", show_default=False),
]
PerLine = Annotated[
    bool, typer.Option("--per-line", help="Each line of a caption file is a caption of its own (--variants).")
]


@app.command("write")
def write_command(
    context: typer.Context,
    path: Folder,
    trigger: Annotated[str, typer.Option(help="Trigger word, put first.", show_default=False)] = "",
    class_word: Annotated[
        str, typer.Option("--class", metavar="WORD", help="What the trigger word is, as in woman.", show_default=False)
    ] = "",
    captioner: Annotated[
        str,
        typer.Option(
            help="joycaption, gemini, openai, qwen-vl, tagger, template, or one that a package adds. Default: by what is "
            "there (endpoint, keys, GPU).",
            show_default=False,
        ),
    ] = "",
    model: Annotated[
        str, typer.Option(help="The captioner's model. Default: its own choice.", show_default=False)
    ] = "",
    endpoint: Annotated[
        str,
        typer.Option(
            metavar="URL", help="OpenAI-compatible service, up to /v1. Default: $OPENAI_BASE_URL.", show_default=False
        ),
    ] = "",
    goal: Annotated[
        str, typer.Option(help="What is trained: character, style, concept or motion.", show_default=False)
    ] = "",
    base: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Base model that is trained; decides on tags or prose.", show_default=False),
    ] = "",
    prompt: Annotated[str, typer.Option(help="Ask this instead; the template's pattern.", show_default=False)] = "",
    place: Annotated[
        str, typer.Option(help="Where the trigger word goes: first, subject (in the class word's place) or none.")
    ] = "first",
    length: Annotated[str, typer.Option(help="short, medium or long, within what the base model reads.")] = "medium",
    form: Annotated[str, typer.Option(help="prose or tags. Default: by the base model.", show_default=False)] = "",
    variants: Annotated[
        str,
        typer.Option(
            metavar="KINDS",
            help="Several captions of each item, a line each: lengths, prose or tags, as long,short,tags. The recipe's "
            "`caption_per_line` trains with all of them.",
            show_default=False,
        ),
    ] = "",
    absorb: Annotated[
        str,
        typer.Option(help="What the trigger word is to take in besides; captions leave it out.", show_default=False),
    ] = "",
    notes: Annotated[str, typer.Option(help="What the model should know besides.", show_default=False)] = "",
    joy_type: Annotated[
        str,
        typer.Option(
            "--joy-type", help="JoyCaption's type of caption, as straightforward or danbooru.", show_default=False
        ),
    ] = "",
    joy_option: Annotated[
        list[str] | None,
        typer.Option(
            "--joy-option",
            metavar="OPTION",
            help="One of JoyCaption's extra options, as lighting or no-text; several may be given.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, max=64, help="Frames of a clip that are sent as pictures.")] = 8,
    send_video: Annotated[
        bool, typer.Option("--send-video", help="Send clips as they are, where the service takes them.")
    ] = False,
    batch: Annotated[
        int, typer.Option(min=0, help="Pictures that a model on this machine takes at a time; 0: as many as fit.")
    ] = 0,
    price: Annotated[
        str, typer.Option(metavar="IN,OUT", help="Dollars a million tokens, for the estimate.", show_default=False)
    ] = "",
    recursive: Recursive = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Caption at most so many items.")] = None,
    budget: Annotated[
        float | None, typer.Option(min=0.0, metavar="DOLLARS", help="Stop before more than this is spent.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the prompt, the cost and three captions; write nothing.")
    ] = False,
    redo: Annotated[
        list[str] | None,
        typer.Option(
            "--redo",
            metavar="WHICH",
            help="all: again where lorapod wrote the caption; failed: again what failed or was refused; or the name of an "
            "item; several times for several.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before pictures are sent to a service.")] = False,
) -> None:
    """Caption what has no caption yet.

    Each caption is on disk as soon as it is there. Ctrl-C once waits for the requests that are out, twice does not; the
    same command goes on with what is missing. Exit code 1 where an item ends without a caption.
    """
    from rich.console import Console

    from lorapod.captioning.cleaning import Judge, unsound
    from lorapod.captioning.items import media_folders, plan_captions
    from lorapod.captioning.registry import Options, choose, create, sends_to
    from lorapod.captioning.wishes import variants_of, wish_of
    from lorapod.cli.caption_job import CaptionJob
    from lorapod.data.walk import Kind as FileKind
    from lorapod.settings import environment_of

    workspace = workspace_of(context)
    folder = find_folder(path, workspace)
    which = _redo(redo)
    wish = wish_of(
        workspace,
        trigger=trigger,
        class_word=class_word,
        goal=goal,
        base=base,
        place=place,
        length=length,
        form=form,
        absorb=absorb,
        notes=notes,
        prompt=prompt,
    )
    if joy_type or joy_option:
        from lorapod.captioning.joycaption_style import style_of

        style = style_of(joy_type or "descriptive", length, joy_option or (), class_word)
        wish = replace(wish, joycaption=style, unit="tags" if style.is_tags else wish.unit)
    options = Options(
        model=model,
        endpoint=endpoint,
        pattern=prompt,
        trigger=trigger,
        class_word=class_word,
        price=_price(price),
        frames=frames,
        clips_as_video=send_video,
        models=workspace.models,
        batch=batch,
        environment=environment_of(workspace.root),
    )
    folders = media_folders(folder, recursive)
    kinds = frozenset(kind for kind in ("picture", "clip") if any(each.files[FileKind(kind)] for each in folders))
    chosen = choose(captioner, cast(Any, kinds), options)
    judges = [Judge(each) for each in variants_of(wish, variants, chosen.name)]
    made = create(chosen.name, options)
    plan = plan_captions(
        folder,
        recursive=recursive,
        redo=which,
        kinds=made.kinds,
        captioner=chosen.name,
        unsound=lambda subject, text: unsound(judges, text),
    )
    console = Console(highlight=False)
    job = CaptionJob(plan, made, judges, cache_of(context), limit, budget, which != "missing", console)
    job.say(f"Captioner: {chosen.name}, {made.model} ({chosen.why})")
    job.say_plan(folder)
    if not plan.ask:
        asyncio.run(made.close())
        raise typer.Exit(job.end_without_asking())
    outcome = asyncio.run(job.run(dry_run=dry_run, who=sends_to(chosen.name, options), yes=yes))
    if outcome is not None:
        raise typer.Exit(job.end(outcome))


@app.command("undo")
def undo_command(context: typer.Context, path: Folder, recursive: Recursive = False) -> None:
    """Put back what stood there before the newest run wrote; again for the run before. What you edited since stays."""
    from lorapod.captioning.items import media_folders
    from lorapod.captioning.ledger import undo_newest
    from lorapod.data.names import shown

    folder = find_folder(path, workspace_of(context))
    undone = undo_newest([each.path for each in media_folders(folder, recursive)])
    if undone is None:
        raise RequestError(
            f"There is nothing to undo in {shown(folder)}",
            "lorapod wrote no captions there that were not undone already.",
            "Give --recursive for those of sub-folders." if not recursive else "",
        )
    parts = [f"{len(undone.removed)} captions removed, where there were none before"] if undone.removed else []
    parts += [f"{len(undone.restored)} put back"] if undone.restored else []
    typer.echo(f"Run {undone.run}: {', '.join(parts) or 'nothing changed'}.")
    if undone.kept:
        names = ", ".join(shown(each.name) for each in undone.kept[:10]) + (" …" if len(undone.kept) > 10 else "")
        typer.echo(f"{len(undone.kept)} stay, as they were changed since: {names}")


@app.command("check")
def check_command(
    context: typer.Context,
    path: Folder,
    trigger: Annotated[str, typer.Option(help="Trigger word.", show_default=False)] = "",
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="Base model; says how many tokens are read.", show_default=False)
    ] = "",
    recursive: Recursive = False,
    per_line: PerLine = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Look at captions as words: leftovers of models, contradictions, near copies, token counts, what is always said.

    Exit code 1 where an item has no caption, or one that is none.
    """
    from lorapod.captioning.wishes import wish_of
    from lorapod.cli.caption_check import check

    workspace = workspace_of(context)
    wish = wish_of(workspace, trigger=trigger, base=base)
    check(
        find_folder(path, workspace), wish, cache_of(context), recursive=recursive, per_line=per_line, as_json=as_json
    )


@app.command("review")
def review_command(
    context: typer.Context,
    path: Folder,
    trigger: Annotated[str, typer.Option(help="Trigger word.", show_default=False)] = "",
    captioner: Annotated[str, typer.Option(help="Who redoes captions; none without it.", show_default=False)] = "",
    model: Annotated[str, typer.Option(help="The captioner's model.", show_default=False)] = "",
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="OpenAI-compatible service, up to /v1.", show_default=False)
    ] = "",
    recursive: Recursive = False,
    per_line: PerLine = False,
) -> None:
    """Go through captions one by one beside their pictures, the suspicious ones first: keep, edit, redo, undo."""
    from lorapod.captioning.wishes import wish_of
    from lorapod.cli.caption_check import look_at
    from lorapod.cli.caption_review import review_in_terminal

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RequestError(
            "A review needs a terminal", "", "`lorapod caption check PATH --json` tells a program what is suspicious."
        )
    workspace = workspace_of(context)
    folder, wish = find_folder(path, workspace), wish_of(workspace, trigger=trigger)
    found, looked = look_at(folder, wish, cache_of(context), recursive=recursive, per_line=per_line)
    recaption = None
    if captioner or endpoint:
        from lorapod.captioning.registry import Options
        from lorapod.settings import environment_of

        options = Options(
            model=model,
            endpoint=endpoint,
            trigger=trigger,
            models=workspace.models,
            environment=environment_of(workspace.root),
        )
        recaption = recaptioner(captioner or "openai", options, wish)
    review_in_terminal(found.items, looked, recaption)


def recaptioner(name: str, options: Options, wish: Wish) -> Callable[[Item, str], str]:
    """Asks a captioner about one item, with a note; a caption that is no good is asked for again, three times in all."""
    from lorapod.captioning.cleaning import Judge
    from lorapod.captioning.items import NEW_CAPTION_EXTENSION, Subject
    from lorapod.captioning.judging import Accepted, AskAgain
    from lorapod.captioning.registry import create
    from lorapod.captioning.wishes import suited
    from lorapod.data.media_cache import FileId
    from lorapod.errors import LorapodError

    def again(item: Item, note: str) -> str:
        judge = Judge(suited(replace(wish, notes=" ".join(filter(None, (wish.notes, note)))), name))
        made = create(name, options)
        subject = Subject(
            item.path,
            "clip" if item.is_clip else "picture",
            item.caption_path or item.path.with_suffix(NEW_CAPTION_EXTENSION),
            FileId(item.path, 0, 0, 0),
            item.width,
            item.height,
            item.seconds,
            item.fps,
        )

        async def ask() -> str:
            request, reason = judge.ask(subject), ""
            try:
                for repeats in range(3):
                    verdict = judge(request, await made.caption(request), repeats)
                    if isinstance(verdict, Accepted):
                        return verdict.text
                    if not isinstance(verdict, AskAgain):
                        break
                    request, reason = verdict.ask, verdict.reason
                raise LorapodError("No good caption came", f"{reason}.", "Try another note, or edit it.")
            finally:
                await made.close()

        return asyncio.run(ask())

    return again


def find_folder(path: Path, workspace: Workspace) -> Path:
    """The folder at a path, else the workspace's of that name."""
    inside = workspace.root / path
    return inside if not path.exists() and not path.is_absolute() and inside.is_dir() else path


def _redo(given: list[str] | None) -> Redo:
    if not given:
        return "missing"
    words = {"all", "failed"} & set(given)
    if not words:
        return given
    if len(given) > 1:
        raise RequestError("--redo says several things", f"It says {' and '.join(given)}.", "Give one of them.")
    return "all" if given[0] == "all" else "failed"


def _price(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        into, out = (float(part) for part in text.split(","))
    except ValueError as error:
        raise RequestError(
            f"The price {text!r} cannot be read", "", "Give dollars a million tokens, in and out: --price 0.75,3.75"
        ) from error
    return into, out

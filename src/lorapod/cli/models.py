"""`lorapod models`: the catalogue of base models, getting their files, and the space that they take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorapod.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lorapod.models import Entry

app = typer.Typer(
    help="Base models: list, fetch, verify and remove them.",
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A base model, as `lorapod models list` shows it.")]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="TRAINER",
        help="The trainer whose files are meant: builtin, diffusion-pipe, musubi, or all. "
        "[default: builtin where it can train the model, else the first that can]",
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def space_command(context: typer.Context) -> None:
    """Base models: list, fetch, verify and remove them. Without a command: what is on disk, and what could go."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from lorapod.models.plan import size_text
    from lorapod.models.upkeep import space

    workspace: Workspace = context.obj
    found = space(workspace)
    console = Console(highlight=False)
    if found.models:
        console.print(_space_table(found.models))
    else:
        console.print("No base model was fetched yet. `lorapod models list` shows which there are.")
    for name, size in found.by_hand:
        console.print(f"{name}: {size_text(size)}, put there by somebody else; lorapod leaves it alone.", markup=False)
    could_go = found.unused + found.unfinished
    if could_go:
        console.print(
            f"{size_text(found.unused)} that no base model uses and {size_text(found.unfinished)} of unfinished downloads "
            "could go: lorapod models remove --unused",
            markup=False,
            soft_wrap=True,
        )
    for name, size in found.caches:
        console.print(f"{name}: {size_text(size)}", markup=False, soft_wrap=True)
    console.print(f"{size_text(found.free)} are free in {workspace.models}", markup=False, soft_wrap=True)


def _space_table(uses: Any) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from lorapod.models.plan import size_text

    table = Table("base model", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("files", "size", "free if removed"):
        table.add_column(column, justify="right")
    table.add_column("shares files with", overflow="fold")
    for use in uses:
        table.add_row(
            use.model, str(use.files), size_text(use.size), size_text(use.alone), ", ".join(use.shared_with) or "-"
        )
    return table


@app.command("list")
def list_command(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List the base models that lorapod knows, and which are on disk."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from lorapod.cli.wide import table_console
    from lorapod.models import entries

    workspace: Workspace = context.obj
    rows = [_facts(entry, workspace) for entry in entries(workspace).values()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    console = table_console()
    table = Table("name", "trains", "GPU, GB", "business", "access", "with", "here", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(
            row["name"],
            "edits" if row["control"] == "needed" else {"picture": "pictures", "clip": "clips"}[row["modality"]],
            _gpu_text(row),
            {True: "yes", False: "no", None: "?"}[row["commercial_use"]],
            {True: "ask", False: "free", None: "?"}[row["gated"]],
            " ".join(each[0] for each in row["trainers"]) or "-",
            "yes" if row["on_disk"] else "-",
        )
    console.print(table)
    console.print(
        "GPU: memory from which on the built-in trainer can, and from which on it rounds no weights (estimates)\n"
        "business: whether the licence allows commercial use; access: whether it must be asked for\n"
        "with: trainers that can, b builtin, d diffusion-pipe, m musubi\n"
        "`lorapod models show NAME` says more.",
        markup=False,
        soft_wrap=True,
    )
    console.print("Fetch one with: lorapod models pull NAME", markup=False)


def _facts(entry: Entry, workspace: Workspace) -> dict[str, Any]:
    from lorapod.models.upkeep import trainers_on_disk

    return {
        "name": entry.name,
        "title": entry.title,
        "family": entry.family,
        "modality": entry.modality,
        "control": entry.control,
        **_gpu(entry),
        "parameters": entry.parameters,
        "licence": entry.licence,
        "commercial_use": entry.commercial_use,
        "gated": entry.gated,
        "page": entry.page,
        "own": entry.own,
        "trainers": ["builtin"] if entry.packaged else list(entry.trainers),
        "on_disk": trainers_on_disk(entry, workspace),
    }


@app.command("show")
def show_command(
    context: typer.Context,
    name: Name,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show what is known of a base model: licence, files, trainers, sizes that it takes, memory."""
    from rich.console import Console
    from rich.markup import escape

    workspace: Workspace = context.obj
    entry = _entry(name, workspace)
    facts = _facts(entry, workspace)
    if as_json:
        typer.echo(
            json.dumps(facts | json.loads(entry.model_dump_json(exclude_none=True)), indent=2, ensure_ascii=False)
        )
        return
    console = Console(highlight=False)
    for label, value in _lines(entry, facts):
        console.print(f"[bold]{label:<16}[/bold]{escape(value)}", soft_wrap=True)
    width = max(len(f"{spec.layout.value}/{spec.part}") for spec in entry.files) if entry.files else 0
    for spec in entry.files:
        size = f"{spec.gigabytes:g} GB" if spec.gigabytes else "?"
        what = spec.path or (f"{len(spec.include)} patterns" if len(spec.include) > 1 else "".join(spec.include))
        doubt = f"  (not verified: {spec.unverified})" if spec.unverified else ""
        console.print(
            f"  {f'{spec.layout.value}/{spec.part}':<{width}} {size:>8}  {spec.source} {what}".rstrip() + doubt,
            markup=False,
            soft_wrap=True,
        )


def _lines(entry: Entry, facts: dict[str, Any]) -> list[tuple[str, str]]:
    geometry = entry.geometry
    commercial = {True: "commercial use allowed", False: "no commercial use", None: "commercial use: read the licence"}
    lines = [
        ("Base model", f"{entry.title} ({entry.name}{', your own' if entry.own else ''})"),
        ("Family", f"{entry.family}, trains on {entry.modality}s"),
        ("Licence", f"{entry.licence}; {commercial[entry.commercial_use]}{'; gated' if entry.gated else ''}"),
    ]
    if facts["control"]:
        needs = {"needed": "each item needs one or more", "taken": "an item may have some"}
        lines.append(("Edits", f"control pictures: {needs[facts['control']]} (`datasets.control`)"))
    if entry.page:
        lines.append(("Page", entry.page))
    if entry.parameters:
        lines.append(("Weights", f"{entry.parameters / 1e9:.2f} billion"))
    if geometry:
        frames = f", {geometry.frame_step}n+1 frames" if geometry.frame_step else ""
        fps = f" at {geometry.fps:g} a second" if geometry.fps else ""
        lines.append(("Sizes", f"sides divisible by {geometry.divisor}{frames}{fps}"))
    if entry.text_tokens:
        lines.append(("Captions", f"up to {entry.text_tokens} tokens"))
    lines += [("Memory", f"{m.gigabytes:g} GB: {m.conditions} ({m.source})") for m in entry.memory]
    lines += [("Estimate", text) for text in _estimates(entry)]
    lines += [(f"{trainer}", "; ".join(filter(None, _support(entry, trainer)))) for trainer in entry.trainers]
    if entry.note:
        lines.append(("Note", entry.note))
    lines.append(("On disk", f"for {', '.join(facts['on_disk'])}" if facts["on_disk"] else "no"))
    return lines


def _estimates(entry: Entry) -> Iterator[str]:
    """What the built-in trainer does to fit the preset on GPUs of usual sizes; nothing where the size is not known."""
    from lorapod.models.memory import gpu_sizes

    for gigabytes, means in gpu_sizes(entry):
        yield f"from {gigabytes} GB: {means.words or 'as it is'} ({means.peak / 1e9:.0f} GB)"


def _gpu(entry: Entry) -> dict[str, int | None]:
    """Memory in GB of the smallest usual GPU on which it trains, and of that on which its weights are not rounded."""
    from lorapod.models.memory import gpu_sizes

    sizes = gpu_sizes(entry) if "builtin" in entry.trainers else []
    return {
        "gpu_from": next((size for size, _ in sizes), None),
        "gpu_exact_from": next((size for size, means in sizes if not means.price), None),
    }


def _gpu_text(facts: dict[str, Any]) -> str:
    least, exact = facts["gpu_from"], facts["gpu_exact_from"]
    if least is None:
        return "-"
    return str(least) if exact in (least, None) else f"{least}-{exact}"


def _support(entry: Entry, trainer: str) -> list[str]:
    specs = entry.files_for(trainer)
    known = sum(spec.gigabytes or 0 for spec in specs)
    size = (
        f"about {known:.1f} GB"
        if all(s.gigabytes for s in specs)
        else f"more than {known:.1f} GB"
        if known
        else "size not known before it is asked for"
    )
    return [size, entry.trainers[trainer].note]


@app.command("pull")
def pull_command(
    context: typer.Context,
    name: Name,
    trainer: For = None,
    connections: Annotated[int, typer.Option(min=1, max=16, help="Connections for one file.")] = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and fetch nothing.")] = False,
) -> None:
    """Fetch a base model: what is there is kept, what was broken off goes on, everything is checked.

    A gated model needs HF_TOKEN, a file of Civitai may need CIVITAI_TOKEN.
    """
    from rich.console import Console

    from lorapod.cli.models_progress import PullView
    from lorapod.errors import BaseModelError
    from lorapod.models.fetch import Options, pull
    from lorapod.models.hub import Sources
    from lorapod.models.plan import make_plan, size_text
    from lorapod.models.store import Store

    workspace: Workspace = context.obj
    console = Console(highlight=False)
    entry = _entry(name, workspace)
    if entry.packaged:
        raise BaseModelError(f"{name} comes with lorapod", "There is nothing to fetch.", "Train with it as it is.")
    wanted = _trainer(entry, trainer)
    if dry_run:
        plan = make_plan(entry, wanted, Store(workspace), Sources(entry))
        console.print(_plan_table(plan))
        console.print(f"{size_text(plan.missing)} of {size_text(plan.total)} are to be fetched.", markup=False)
        return
    _say_licence(entry, console)
    with PullView(console) as view:
        try:
            pull(entry, wanted, workspace, view, Options(connections=connections))
        except KeyboardInterrupt:
            view.note(f"Stopped. What has arrived is kept: lorapod models pull {name} goes on.")
            raise typer.Exit(130) from None
    _say_done(entry, wanted, workspace, console)


def _trainer(entry: Entry, given: str | None) -> str | None:
    """The trainer whose files are pulled; None for all files."""
    if given == "all" or not entry.trainers:
        return None
    return given or ("builtin" if "builtin" in entry.trainers else next(iter(entry.trainers)))


def _say_licence(entry: Entry, console: Console) -> None:
    use = {True: "commercial use is allowed", False: "not for commercial use", None: "read it before commercial use"}
    page = f" {entry.page}" if entry.page else ""
    console.print(
        f"Licence of {entry.title}: {entry.licence}; {use[entry.commercial_use]}.{page}", markup=False, soft_wrap=True
    )


def _say_done(entry: Entry, trainer: str | None, workspace: Workspace, console: Console) -> None:
    from lorapod.models.upkeep import trainers_on_disk

    ready = ", ".join(trainers_on_disk(entry, workspace))
    console.print(f"{entry.name} is here and checked{f', ready for {ready}' if ready else ''}.", markup=False)
    console.print(f"It is in {workspace.models / entry.name}", markup=False, soft_wrap=True)
    if "builtin" in entry.trainers and trainer in (None, "builtin"):
        console.print(f'In a recipe: [base_model] name = "{entry.name}"', markup=False)


def _plan_table(plan: Any) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from lorapod.models.plan import size_text

    table = Table("file", "from", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("size", "to fetch"):
        table.add_column(column, justify="right")
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    for planned in plan.files:
        remote = planned.remote
        table.add_row(
            f"{remote.spec.layout.value}/{remote.target}",
            remote.spec.source,
            size_text(remote.size),
            size_text(planned.missing) if planned.missing else "is there",
        )
    return table


@app.command("verify")
def verify_command(context: typer.Context, name: Name) -> None:
    """Read every file of a base model and compare it with its source's record. Exit code 1 if one is damaged."""
    from rich.console import Console

    from lorapod.cli.models_progress import VerifyView
    from lorapod.models.store import Store
    from lorapod.models.upkeep import verify

    workspace: Workspace = context.obj
    console = Console(highlight=False)
    entry = _entry(name, workspace)
    record = Store(workspace).record(name)
    bad = removed = 0
    with VerifyView(console, sum(f.size for f in record.files if not f.local)) as view:
        for verdict in verify(entry, workspace, view.advance):
            if verdict.problem:
                bad += 1
                removed += verdict.removed
                view.say(f"damaged: {verdict.what}: {verdict.problem}")
    if not bad:
        console.print(f"All {len(record.files)} files of {name} are right.", markup=False)
        return
    gone = f" {removed} of them were removed." if removed else ""
    console.print(f"{bad} of {len(record.files)} files of {name} are not right.{gone}", markup=False)
    console.print(f"Fetch them again with: lorapod models pull {name}", markup=False)
    raise typer.Exit(1)


@app.command("remove")
def remove_command(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A base model.", show_default=False)] = None,
    unused: Annotated[
        bool, typer.Option("--unused", help="Remove files that no base model uses, and unfinished downloads.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what lorapod fetched of a base model; files that another one uses stay."""
    from lorapod.errors import RequestError
    from lorapod.models import entries
    from lorapod.models.add import forget
    from lorapod.models.plan import size_text
    from lorapod.models.store import Store
    from lorapod.models.upkeep import clean, plan_removal, remove, space

    workspace: Workspace = context.obj
    if (name is None) == (not unused):
        raise RequestError("What to remove is not clear", "", "Give the NAME of a base model, or --unused.")
    if name is None:
        found = space(workspace)
        _confirm(f"Remove {size_text(found.unused + found.unfinished)} that nothing uses?", yes)
        typer.echo(f"{size_text(clean(workspace))} are free again.")
        return
    entry = entries(workspace).get(name)
    if entry is not None and entry.own and not Store(workspace).record(name).files:
        _confirm(f"Forget {name}? Nothing of it is on disk.", yes)
    else:
        removal = plan_removal(name, workspace)
        shared = f", {removal.kept} files stay for other base models" if removal.kept else ""
        own = f", {len(removal.own)} files of your own stay where they are" if removal.own else ""
        _confirm(f"Remove {name}: {len(removal.keys)} files, {size_text(removal.bytes)} become free{shared}{own}?", yes)
        remove(removal, workspace)
    if entry is not None and entry.own:
        forget(name, workspace)
    typer.echo(f"{name} is removed.")


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True)


@app.command("add")
def add_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you want to call it.")],
    family: Annotated[
        str, typer.Option(help="Its family, as in `flux`; a wrong one lists those that there are.", show_default=False)
    ],
    base: Annotated[
        str | None,
        typer.Option(help="The base model of the catalogue that it is a fine-tune of; gives what a single file lacks."),
    ] = None,
    hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="A hub repository; add @REVISION for another than main.")
    ] = None,
    file: Annotated[str | None, typer.Option(help="With --hub: a single file of the repository.")] = None,
    civitai: Annotated[int | None, typer.Option(metavar="VERSION", help="A model version of Civitai.")] = None,
    url: Annotated[str | None, typer.Option(help="The https address of a file.")] = None,
    local: Annotated[
        Path | None,
        typer.Option("--local", help="A .safetensors file or a diffusers folder on this disk; used in place."),
    ] = None,
) -> None:
    """Add a base model of your own: a fine-tune of a known family. Its source is looked at, nothing is fetched yet."""
    from rich.console import Console

    from lorapod.models.add import Source, add
    from lorapod.models.fetch import pull
    from lorapod.models.upkeep import trainers_on_disk

    workspace: Workspace = context.obj
    console = Console(highlight=False)
    entry = add(name, family, Source(hub, file, civitai, url, local), workspace, base)
    console.print(
        f"{name} is in the catalogue: {workspace.models / 'entries' / f'{name}.toml'}", markup=False, soft_wrap=True
    )
    if all(spec.local is not None for spec in entry.files):
        pull(entry, None, workspace)  # makes links only
        _say_done(entry, None, workspace, console)
    elif trainers_on_disk(entry, workspace):
        _say_done(entry, None, workspace, console)  # what it has not is here with its base
    else:
        what = "Fetch the rest" if entry.files[0].local else "Fetch it"
        console.print(f"{what} with: lorapod models pull {name}", markup=False)
    if not entry.trainers:
        console.print(
            "No trainer can use it as it is: a single file needs --base for its text encoder and VAE.", markup=False
        )


def _entry(name: str, workspace: Workspace) -> Entry:
    from lorapod.models import entries
    from lorapod.models.base_model import unknown

    known = entries(workspace)
    if name not in known:
        raise unknown(name, known)
    return known[name]

"""`lorapod start`: a guided session from a folder of pictures to a LoRA, for somebody who has never seen a terminal."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorapod.errors import DatasetError, LorapodError, RequestError
from lorapod.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console

    from lorapod.cli.start_ask import Asker
    from lorapod.recipe import Recipe
    from lorapod.start.answers import Answers
    from lorapod.start.session import Session
    from lorapod.start.work import Job

_AGAIN = "lorapod start"


def start(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Base model.", show_default=False)] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of pictures or clips, several times for several; `demo` for the demo's own.",
            show_default=False,
        ),
    ] = None,
    trigger: Annotated[str | None, typer.Option(help="Trigger word; `-` for none.", show_default=False)] = None,
    goal: Annotated[str | None, typer.Option(help="character, style, concept or motion.", show_default=False)] = None,
    captioner: Annotated[
        str | None,
        typer.Option(
            help="What writes missing captions; `keep`: train on those that have one, `trigger`: the trigger word alone.",
            show_default=False,
        ),
    ] = None,
    trainer: Annotated[str | None, typer.Option(help="What trains.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the LoRA.", show_default=False)] = None,
    size: Annotated[
        int | None, typer.Option(min=64, max=4096, help="Side in pixels to train at.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How long to train.", show_default=False)] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Answers in a TOML file, as start.toml; options go over it.", show_default=False
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Take what is proposed for everything else, and ask nothing.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Numbered questions, a line each: for screen readers and simple terminals.")
    ] = False,
) -> None:
    """Train a LoRA, guided: base model, pictures, captions, review, and training, with every question's answer proposed.

    Ctrl-C stops at any question; the next `lorapod start` goes on there. Without a terminal it never waits for an answer.
    """
    from rich.console import Console

    from lorapod.cli.start_again import take_up
    from lorapod.cli.start_ask import asker, has_terminal, is_dumb
    from lorapod.cli.start_shown import welcome
    from lorapod.start.facts import look
    from lorapod.start.keys import try_key
    from lorapod.start.session import Session
    from lorapod.start.steps_captions import STEPS

    workspace: Workspace = context.obj
    scripted = yes or not has_terminal()
    if scripted and not yes and answers is None:
        raise RequestError(
            "There is no terminal to ask questions on",
            "`lorapod start` never waits for answers that nobody can give.",
            "Give --yes to take what is proposed, or --answers FILE; options answer single questions.",
        )
    given = _given(answers, model, data, trigger, goal, captioner, trainer, name, size, steps)
    console = Console(highlight=False, force_terminal=False if plain else None)
    session = Session(look(workspace), STEPS, try_key, is_kept=not scripted)
    ask = asker(plain)
    bars = console.is_terminal and not plain and not is_dumb()
    if scripted:
        _take(session, given)
        session.fill()
        _train(session, ask, console, bars=bars, may_ask=False)
        return
    try:
        welcome(session, ask)
        if take_up(session, ask, console):
            return
        workspace.make_dataset_folders()
        _ask_all(session, ask, given)
        _train(session, ask, console, bars=bars, may_ask=True)
    except (KeyboardInterrupt, EOFError):
        console.print()
        console.print(f"Stopped. What you answered is kept: [bold]{_AGAIN}[/bold] goes on from here.", soft_wrap=True)
        raise typer.Exit(130) from None


def _given(file: Path | None, *options: Any) -> Answers:
    """The answers of the file, with options over them."""
    from lorapod.start.answers import Answers, read_answers

    found = read_answers(file) if file is not None else Answers()
    model, data, trigger, goal, captioner, trainer, name, size, steps = options
    said = {
        "model": model,
        "data": [Path(each) for each in data] if data else None,
        "trigger": trigger,
        "goal": goal,
        "captioner": captioner,
        "trainer": trainer,
        "name": name,
        "size": size,
        "steps": steps,
    }
    return found.model_copy(update={key: value for key, value in said.items() if value is not None})


def _take(session: Session, given: Answers) -> None:
    """Takes the given answers; a base model is needed for the others, so that the proposed one counts where none is."""
    from lorapod.start.recommend import base_model_for

    if given.model is None and given.model_fields_set and session.answers.model is None:
        session.answers.model = base_model_for(session.facts)
    session.take(given)


def _ask_all(session: Session, ask: Asker, given: Answers) -> None:
    """Every question, until the summary is accepted."""
    _take(session, given)
    while True:
        _ask_open(session, ask)
        if _accepts_summary(session, ask):
            return


def _ask_open(session: Session, ask: Asker) -> None:
    """Asks what is not answered yet."""
    from lorapod.cli.start_ask import BackError
    from lorapod.cli.start_shown import say_worst
    from lorapod.start.steps_captions import KeyStep

    while (step := session.current) is not None:
        question = step.question(session)
        try:
            session.answer(ask.ask(question))
        except BackError:
            if not session.back():
                ask.say("This is the first question.", "dim")
            continue
        except LorapodError as error:
            ask.say(f"{error.what}.", "red")
            ask.say(f"{error.why} {error.remedy}".strip())
            continue
        if step.key == "data":
            try:
                say_worst(session, ask)
            except DatasetError as error:
                ask.say(f"{error.what}.", "red")
                ask.say(f"{error.why} {error.remedy}".strip())
                session.back()
                session.answers.data = None  # it is not to be proposed again
                session.keep()
        if isinstance(step, KeyStep):
            _offer_to_keep(session, ask, step.name_for(session))


def _offer_to_keep(session: Session, ask: Asker, name: str) -> None:
    from lorapod.cli.start_ask import BackError
    from lorapod.start.keys import keep_key
    from lorapod.start.session import Choice, Question

    file = session.facts.workspace.root / ".env"
    choices = (Choice("yes", "yes, for the next time"), Choice("no", "no, for this session alone"))
    try:
        answer = ask.ask(
            Question("The key is right. Keep it?", f"It goes to {file}, which only you can read.", choices, "yes")
        )
    except BackError:
        answer = "no"
    if answer == "yes":
        keep_key(session.facts.workspace, name, session.facts.environment[name])


def _accepts_summary(session: Session, ask: Asker) -> bool:
    """Whether training is to begin; else a question is open again."""
    from lorapod.cli.start_ask import BackError
    from lorapod.cli.start_shown import summary

    while True:
        summary(session, ask)
        try:
            given = ask.line("Enter begins. A number changes that line, b goes back, q stops here.").strip().lower()
            if given in ("b", "back"):
                raise BackError
            if given in ("", "y", "yes"):
                return True
            if given in ("q", "quit", "exit"):
                raise KeyboardInterrupt
            if not given.isdigit():
                raise RequestError(f"{given!r} is none of these", "", "Press Enter to begin, or give a line's number.")
            session.change(int(given))
        except BackError:
            session.back()
        except RequestError as error:
            ask.say(f"{error.what}. {error.remedy}", "red")
            continue
        return False


def _train(session: Session, ask: Asker, console: Console, *, bars: bool, may_ask: bool) -> None:
    """Everything before training side by side, then the run, which is followed to its end."""
    from lorapod.cli.progress import finish, watch
    from lorapod.cli.start_shown import say_worst, summary_lines
    from lorapod.runs import start_run, write_comparison
    from lorapod.start.facts import process_environment
    from lorapod.start.recipe_file import checked_recipe, write_recipe
    from lorapod.start.work import jobs_of

    if not may_ask:
        for line in summary_lines(session):
            console.print(line, markup=False, soft_wrap=True)
    if session.unusable is None:  # the session was taken up, or is a script's
        say_worst(session, ask)
    path = write_recipe(session)
    recipe: Recipe = checked_recipe(session, path)
    process_environment(session.facts)
    jobs = jobs_of(session)
    changed = _work(session, jobs, ask, console, bars=bars, may_ask=may_ask)
    if changed:
        path = write_recipe(session)
        recipe = checked_recipe(session, path)
    again = f"lorapod train {shlex.quote(str(path))}"
    console.print(f"Recipe: {path}", markup=False, soft_wrap=True)
    run = start_run(recipe, session.facts.workspace)
    session.keep(run.id)
    console.print(f"Run {run.id} of {run.name}: {run.path}", markup=False, soft_wrap=True)
    try:
        status = watch(run, console)
        finish(run, status, console, write_comparison(run))
    finally:
        console.print(f"The same again: {again}", markup=False, soft_wrap=True)


def _work(session: Session, jobs: list[Job], ask: Asker, console: Console, *, bars: bool, may_ask: bool) -> bool:
    """Does the jobs; reviews captions as soon as they are there. Whether an answer changed with it."""
    from lorapod.cli.start_shown import follow
    from lorapod.start.work import stop_all

    captions = next((job for job in jobs if job.title == "Captions"), None)
    changed = False
    for job in jobs:
        job.start()
    try:
        if captions is not None:
            follow(jobs, console, lambda: captions.is_over, bars=bars)
            session.forget_contents()
            for note in captions.notes[:10]:
                ask.say(f"Without a caption: {note}.", "yellow")
        if captions is None or captions.error is None:
            changed = _review(session, ask, may_ask=may_ask)
        if jobs:
            follow(jobs, console, lambda: all(job.is_over for job in jobs), bars=bars)
    except BaseException:
        stop_all(jobs)
        raise
    for job in jobs:
        for note in job.notes if job is not captions else ():
            console.print(note, markup=False, soft_wrap=True)
    failed = [job.error for job in jobs if job.error is not None]
    for error in failed[1:]:
        console.print(f"Besides: {error}", markup=False, soft_wrap=True)
    if failed:
        raise failed[0]
    return changed


def _review(session: Session, ask: Asker, *, may_ask: bool) -> bool:
    """Shows captions before anything is trained on them; whether an answer changed.

    Raises:
        RequestError: Captions are missing that were to be written, and nobody can be asked what to do.
    """
    from lorapod.cli.start_ask import BackError
    from lorapod.cli.start_shown import say_captions
    from lorapod.start.answers import KEEP, TRIGGER_ALONE
    from lorapod.start.session import Choice, Question

    bare, changed = session.bare, False
    count = f"{len(bare)} items still have" if len(bare) > 1 else "1 item still has"
    if bare and session.answers.captioner not in (KEEP, TRIGGER_ALONE):
        if not may_ask:
            raise RequestError(
                f"{count} no caption", f"The first of them: {bare[0].name}.",
                "Write them, or run again with --captioner keep to leave them out.",
            )  # fmt: skip
        choices = (
            Choice(KEEP, "leave them out"),
            Choice(TRIGGER_ALONE, "train them with the trigger word alone"),
            Choice("stop", "stop here, so that you can write them"),
        )
        answer = ask.ask(Question(f"{count} no caption.", "", choices, KEEP))
        if answer == "stop":
            raise KeyboardInterrupt
        session.answers.captioner, changed = answer, True
        session.keep()
    if say_captions(session, ask) and may_ask:
        try:
            given = ask.line("Enter goes on. e stops here, so that you can edit the .txt files; then run it again.")
        except BackError:
            given = "e"
        if given.strip().lower() in ("e", "edit", "q"):
            raise KeyboardInterrupt
    return changed

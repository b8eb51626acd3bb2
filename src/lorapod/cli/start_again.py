"""What `lorapod start` offers first where it was begun before: to go on with the questions, or with the training itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorapod.errors import RunError

if TYPE_CHECKING:
    from rich.console import Console

    from lorapod.cli.start_ask import Asker
    from lorapod.start.session import Choice, Session


def take_up(session: Session, ask: Asker, console: Console) -> bool:
    """Offers to go on where the last session ended; whether that was a training, which then is over.

    Raises:
        typer.Exit: The training went on, and did not come to its end.
    """
    from lorapod.start.answers import kept_in
    from lorapod.start.session import Choice

    kept = kept_in(session.facts.workspace)
    if kept is None or not kept.done:
        return False
    if kept.run:
        return _take_up_run(session, kept.run, ask, console)
    if _chosen(ask, "You began a session before.", Choice("on", "go on where you stopped"), "begin anew"):
        session.go_on(kept)
    return False


def _take_up_run(session: Session, reference: str, ask: Asker, console: Console) -> bool:
    from lorapod.cli.progress import finish, watch
    from lorapod.runs import find_run, resume_run, state_of, write_comparison
    from lorapod.start.facts import process_environment
    from lorapod.start.session import Choice

    try:
        run = find_run(reference, session.facts.workspace)
    except RunError:
        return False  # its folder is gone, and with it what could be gone on with
    state = state_of(run)
    if state.status == "done":
        return False
    where = f"step {state.step}" + (f" of {state.total}" if state.total else "")
    if state.status == "running":
        text, go_on = f"Your training of {run.name} still goes on, at {where}.", Choice("on", "watch it")
    else:
        text = f"Your training of {run.name} ended early, at {where}."
        go_on = Choice("on", "go on with it, from its newest checkpoint")
    if not _chosen(ask, text, go_on, "begin another one; this one stays as it is"):
        return False
    process_environment(session.facts)
    if state.status != "running":
        run = resume_run(run, session.facts.workspace)
    status = watch(run, console)
    finish(run, status, console, write_comparison(run))
    return True


def _chosen(ask: Asker, text: str, go_on: Choice, anew: str) -> bool:
    """Whether it is to be gone on with; else something new begins."""
    from lorapod.cli.start_ask import BackError
    from lorapod.start.session import Choice, Question

    try:
        return ask.ask(Question(text, "", (go_on, Choice("anew", anew)), "on")) == "on"
    except BackError:
        return True

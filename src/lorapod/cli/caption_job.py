"""A run of `lorapod caption write`: what it costs, whether it may begin, examples, and how it ended."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lorapod.captioning.base import Captioner
    from lorapod.captioning.cleaning import Judge
    from lorapod.captioning.items import Left, Plan, Subject
    from lorapod.captioning.runner import Runner
    from lorapod.captioning.tally import Outcome
    from lorapod.data import MediaCache

_ESTIMATED_FROM = 32
"""Items that are looked at for the estimate of the cost, spread evenly."""

_EXAMPLES = 3


@dataclass
class CaptionJob:
    """One run of `lorapod caption write`, from its plan on.

    Args:
        limit: Most items that are captioned.
        budget: Dollars that must not be passed.
        again_declined: Ask again for what the same model refused before.
    """

    plan: Plan
    captioner: Captioner
    judges: list[Judge]
    cache: MediaCache
    limit: int | None
    budget: float | None
    again_declined: bool
    console: Console

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def say_plan(self, folder: Path) -> None:
        plan = self.plan
        parts = [f"{len(plan.ask)} to caption"]
        parts += [f"{len(plan.ours)} captioned already"] if plan.ours else []
        parts += [f"{len(plan.by_hand)} with captions of your own, which stay"] if plan.by_hand else []
        parts += [f"{len(plan.skipped)} not asked for"] if plan.skipped else []
        parts += [f"{len(plan.left)} that cannot be captioned"] if plan.left else []
        self.say(f"{folder}: {', '.join(parts)}.")
        if plan.damaged:
            self.say(f"{plan.damaged} lines of the ledger are damaged; the captions they were about count as your own.")
        self.name_them(f"{len(plan.again)} of them failed the last time:", plan.again)

    def name_them(self, title: str, named: list[Left]) -> None:
        from lorapod.cli.caption_view import print_named

        print_named(self.console, title, named)

    async def run(self, *, dry_run: bool, who: str | None, yes: bool) -> Outcome | None:
        """The captioning; None where nothing was to be written."""
        from lorapod.captioning.runner import Runner
        from lorapod.cli.caption_view import CaptionView

        try:
            looked = await self._looked_at(_ESTIMATED_FROM)
            count = min(len(self.plan.ask), self.limit or len(self.plan.ask))
            is_paid = self._say_cost(looked, count)
            if not _may_send(who, count, is_paid, yes=yes):
                self.say("Nothing was sent.")
                return None
            if dry_run:
                await self._show(looked)
                return None
            with CaptionView(_progress_console()) as view:
                runner = Runner(
                    self.plan,
                    self.captioner,
                    self.judges,
                    limit=self.limit,
                    budget=self.budget,
                    again_declined=self.again_declined,
                    watch=view,
                    cache=self.cache,
                )
                _heed_ctrl_c(runner, view.say)
                return await runner.run()
        finally:
            await self.captioner.close()

    async def _looked_at(self, count: int) -> list[Subject]:
        from lorapod.captioning.items import Subject, look_at

        some = evenly(self.plan.ask[: self.limit] if self.limit else self.plan.ask, count)
        looked = await asyncio.to_thread(look_at, some, self.cache)
        return [each for each in looked if isinstance(each, Subject)]

    def _say_cost(self, looked: Sequence[Subject], count: int) -> bool:
        """Says what it is likely to cost; whether it costs anything, or may."""
        from lorapod.cli.caption_view import money

        costs = [self.captioner.estimate(judge.ask(each)) for each in looked for judge in self.judges]
        if not costs or all(cost.dollars == 0 for cost in costs):
            return False
        known = [cost.dollars for cost in costs if cost.dollars is not None]
        into, out = (
            sum(getattr(cost, side) for cost in costs) / len(looked) for side in ("input_tokens", "output_tokens")
        )
        tokens = f"about {into * count:,.0f} tokens in and {out * count:,.0f} out"
        if len(known) < len(costs):
            self.say(f"Cost: {tokens}; the price of {self.captioner.model} is not known (--price IN,OUT tells it).")
        else:
            self.say(f"Cost: about {money(sum(known) / len(looked) * count)} for {count} items; {tokens}.")
        return True

    async def _show(self, looked: Sequence[Subject]) -> None:
        """The prompt, and captions of three items that are really asked for."""
        from lorapod.captioning.base import BusyError, DeclinedError, ItemError
        from lorapod.captioning.judging import Accepted
        from lorapod.cli.caption_view import money

        examples = evenly(looked, _EXAMPLES)
        if self.captioner.name != "template":
            for prompt in dict.fromkeys(judge.ask(each).prompt for judge in self.judges for each in examples):
                self.say(f"Prompt: {prompt}")
        spent = 0.0
        for each, judge in ((each, judge) for each in examples for judge in self.judges):
            ask = judge.ask(each)
            try:
                answer = await self.captioner.caption(ask)
            except (BusyError, DeclinedError, ItemError) as error:
                self.say(f"  {each.path.name}: {error.what}. {error.why}")
                continue
            spent += answer.dollars or 0.0
            verdict = judge(ask, answer, 0)
            self.say(f"  {each.path.name}: {verdict.text if isinstance(verdict, Accepted) else verdict.reason}")
        self.say("Nothing was written." + (f" The examples cost {money(spent)}." if spent else ""))

    def end_without_asking(self) -> int:
        """The last lines where there was nothing to ask; the exit code."""
        self.name_them("Without a caption:", self.plan.left)
        self.say("Nothing to do.")
        return 1 if self.plan.left else 0

    def end(self, outcome: Outcome) -> int:
        """The last lines of a run; the exit code. Raises what ended it early."""
        from lorapod.cli.caption_view import money

        tally = outcome.tally
        parts = [f"{tally.written} captions written"]
        parts += [f"{len(outcome.kept)} left to you, as you wrote them meanwhile"] if outcome.kept else []
        parts += [f"{len(outcome.failed)} failed"] if outcome.failed else []
        parts += [f"{len(outcome.declined)} not asked again"] if outcome.declined else []
        parts += [f"{outcome.unfinished} not come to"] if outcome.unfinished else []
        self.say(f"{', '.join(parts)}." + (f" {money(tally.dollars)} spent." if tally.dollars else ""))
        for warning in getattr(self.captioner, "warnings", ()):  # of models on this machine
            self.say(warning)
        self.name_them("Without a caption:", [*self.plan.left, *outcome.failed])
        self.name_them("Refused before (--redo failed asks again; another --model may answer):", outcome.declined)
        if outcome.error is not None:
            raise outcome.error
        if outcome.stopped:
            why = "Stopped" if outcome.stopped == "stop" else f"The budget of {money(self.budget or 0)} is used up"
            self.say(f"{why}. The same command goes on with what is missing.")
        if tally.written and len(self.judges) > 1:
            self.say("Each line is a caption of its own: set `caption_per_line = true` in the recipe's dataset.")
        if tally.written:
            self.say("`lorapod caption undo` takes the captions of this run back.")
        if outcome.stopped == "stop":
            return 130
        return 1 if outcome.failed or outcome.declined or self.plan.left else 0


def evenly(things: Sequence[Any], count: int) -> list[Any]:
    """`count` of them at most, from the first to the last."""
    if len(things) <= count:
        return list(things)
    return [things[round(i * (len(things) - 1) / max(1, count - 1))] for i in range(count)]


def _progress_console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _heed_ctrl_c(runner: Runner, say: Any) -> None:
    """Ctrl-C, or a request to end, stops the run cleanly; a second one at once."""

    def on_signal() -> None:
        out = runner.throttle.active
        if not runner.outcome.stopped and out:
            say(f"Stopping when the {out} requests that are out have been answered. Ctrl-C again does not wait.")
        runner.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)


def _may_send(who: str | None, count: int, is_paid: bool, *, yes: bool) -> bool:
    """Whether pictures may leave this machine: asked on a terminal, said elsewhere."""
    if who is None:
        return True
    what = f"{count} items are sent to {who}"
    if yes or not sys.stdin.isatty():
        typer.echo(f"{what}.")
        return True
    return typer.confirm(f"{what}{', which costs money' if is_paid else ''}. Go on?", default=True)

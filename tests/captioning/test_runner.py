"""The runner against a service with faults: every item ends captioned or named, once, and no hand's work is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from captioning.helpers import captioned, colour_of, make_pictures, run, said_of, service
from fakes.openai_server import FakeOpenAI
from lorapod.captioning.base import Answer, Ask, BusyError, Cost, ItemError, Kind
from lorapod.captioning.cleaning import Judge
from lorapod.captioning.items import plan_captions
from lorapod.captioning.ledger import Ledger, State
from lorapod.captioning.runner import Runner
from lorapod.captioning.wording import Wish
from lorapod.errors import LorapodError, RequestError

FIFTH = {"429": 0.04, "503": 0.03, "500": 0.02, "cut": 0.02, "reset": 0.02, "slow": 0.02, "refusal": 0.02,
         "length": 0.01, "empty": 0.01, "bad json": 0.01}  # fmt: skip


def test_two_thousand_items_with_a_fifth_of_faults(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 2000)
    (folder / "item-0007.txt").write_text("by my own hand\n")
    with FakeOpenAI(seconds=0.005, chance=FIFTH, retry_after="0.02") as fake:
        fake.keep_requests = False
        fake.always = {colour_of(11): "filter", colour_of(12): "refusal", colour_of(13): "500"}
        outcome = run(folder, service(fake.url))
    texts = captioned(folder)
    failed = {left.path.stem: left.reason for left in outcome.failed}
    assert outcome.error is None and outcome.unfinished == 0
    assert len(outcome.written) == len(set(outcome.written)) == len(texts) - 1
    assert texts.keys() | failed.keys() == {f"item-{i:04d}" for i in range(2000)}
    assert not texts.keys() & failed.keys()
    assert {"item-0011", "item-0012", "item-0013"} <= failed.keys()
    assert "declined" in failed["item-0011"] and "refused" in failed["item-0012"] and "8 times" in failed["item-0013"]
    assert texts.pop("item-0007") == "by my own hand\n"
    assert texts == {f"item-{i:04d}": said_of(i) for i in range(2000) if f"item-{i:04d}" in texts}
    assert max(fake.answered.values()) == 1, "an item was captioned twice"
    assert sum(fake.faults[name] for name in FIFTH) > 300
    assert not list(folder.rglob("*.part"))


def test_the_next_run_names_what_failed_and_asks_for_that_alone(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 12)
    with FakeOpenAI(always={colour_of(3): "500", colour_of(4): "filter"}) as fake:
        first = run(folder, service(fake.url))
        assert {left.path.stem for left in first.failed} == {"item-0003", "item-0004"}
        fake.always = {}
        fake.requests.clear()
        plan = plan_captions(folder)
        assert {left.path.stem for left in plan.again} == {"item-0003", "item-0004"}
        second = run(plan, service(fake.url))
        assert [path.stem for path in second.written] == ["item-0003"]
        assert [left.path.stem for left in second.declined] == ["item-0004"]
        assert len(fake.requests) == 1
        third = run(folder, service(fake.url), again_declined=True)
        assert [path.stem for path in third.written] == ["item-0004"]
    assert len(captioned(folder)) == 12
    assert plan_captions(folder).again == []


def test_redo_never_touches_a_hand_edit(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 4)
    (folder / "item-0000.txt").write_text("mine")
    with FakeOpenAI() as fake:
        run(folder, service(fake.url))
        (folder / "item-0001.txt").write_text("edited")
        outcome = run(folder, service(fake.url), redo="all", words=Judge(Wish(trigger="ohwx")))
        assert [path.stem for path in outcome.written] == ["item-0002", "item-0003"]
        outcome = run(folder, service(fake.url), redo=["item-0001", "item-0002.png"], words=Judge(Wish(trigger="zorb")))
    assert [path.stem for path in outcome.written] == ["item-0002"]
    texts = captioned(folder)
    assert (texts["item-0000"], texts["item-0001"]) == ("mine", "edited")
    assert texts["item-0002"].startswith("zorb, a plain") and texts["item-0003"].startswith("ohwx, a plain")
    with pytest.raises(RequestError, match="no item 'item-9'"):
        plan_captions(folder, redo=["item-9"])


def test_a_caption_written_by_hand_during_the_run_is_kept(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 2)
    plan = plan_captions(folder)
    (folder / "item-0001.txt").write_text("mine")
    with FakeOpenAI() as fake:
        outcome = run(plan, service(fake.url))
    assert [path.stem for path in outcome.kept] == ["item-0001"]
    assert (folder / "item-0001.txt").read_text() == "mine"


def test_what_cannot_be_captioned_is_named(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 1)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n1234")
    (folder / "raw.heic").write_bytes(b"1234")
    Image.new("RGB", (8, 8)).save(folder / "item-0000.jpg")
    (folder / "blank.png").write_bytes((folder / "item-0000.png").read_bytes())
    (folder / "blank.txt").write_text(" \n")
    with FakeOpenAI() as fake:
        plan = plan_captions(folder)
        outcome = run(plan, service(fake.url))
    named = {left.path.name: left.reason for left in [*plan.left, *outcome.failed]}
    assert named.keys() == {"broken.png", "raw.heic", "item-0000.png"}
    assert "no picture" in named["broken.png"] and "share its caption file" in named["item-0000.png"]
    assert captioned(folder)["blank"] == said_of(0)


def test_the_service_decides_how_many_are_out(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 120)
    with FakeOpenAI(seconds=0.02, stands=3, retry_after=None) as fake:
        outcome = run(folder, service(fake.url))
    assert len(outcome.written) == 120
    assert fake.faults["429"] < 120, "the rate did not come down"
    assert outcome.tally.at_once <= 6


def test_a_pause_that_the_service_asks_for_is_kept_by_all(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 30)
    with FakeOpenAI(seconds=0.01, retry_after="0.6") as fake:
        fake.next_faults.extend(["", "", "", "", "429"])
        run(folder, service(fake.url))
        gaps = [late - early for early, late in zip(fake.times, fake.times[1:], strict=False)]
    assert max(gaps) >= 0.5
    assert len(captioned(folder)) == 30


def test_the_budget_stops_before_it_is_passed(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 60)
    with FakeOpenAI(seconds=0.01, cost=0.01) as fake:
        outcome = run(folder, service(fake.url, price=(1.0, 1.0)), budget=0.255)
        assert outcome.stopped == "budget" and outcome.unfinished == 35
        assert len(captioned(folder)) == 25 and outcome.tally.dollars == pytest.approx(0.25)
        assert len(fake.requests) == 25
        rest = run(folder, service(fake.url, price=(1.0, 1.0)), budget=1.0)
    assert len(rest.written) == 35 and rest.stopped == ""


def test_the_budget_holds_where_answers_cost_more_than_estimated(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 40)
    with FakeOpenAI(seconds=0.01, cost=0.05) as fake:
        outcome = run(folder, service(fake.url), budget=0.5)  # loopback is thought to be free, but says otherwise
    assert outcome.stopped == "budget"
    assert outcome.tally.dollars <= 0.5 + 15 * 0.05


def test_limit_and_what_is_left_for_the_next_run(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 6)
    with FakeOpenAI() as fake:
        assert len(run(folder, service(fake.url), limit=2).written) == 2
        assert len(run(folder, service(fake.url)).written) == 4
    assert set(fake.answered.values()) == {1}


@pytest.mark.parametrize(
    ("fault", "what"),
    [("429 quota", "wants money"), ("402", "wants money"), ("500", "in a row failed in the same way")],
)
def test_what_is_no_items_fault_stops_the_run(tmp_path: Path, fault: str, what: str) -> None:
    folder = make_pictures(tmp_path / "set", 200)
    with FakeOpenAI(chance={fault: 1.0}) as fake:
        fake.keep_requests = False
        outcome = run(folder, service(fake.url))
    assert outcome.error is not None and what in outcome.error.what
    assert outcome.stopped == "error" and outcome.unfinished > 100
    assert captioned(folder) == {}


class Scripted:
    """A captioner of the test's own."""

    name, model, at_once = "scripted", "v1", 4
    kinds: frozenset[Kind] = frozenset({"picture"})

    def __init__(self, say: object) -> None:
        self.say, self.asks = say, []  # type: ignore[var-annotated]

    def estimate(self, ask: Ask) -> Cost:
        return Cost(0, 0, 0.0)

    async def caption(self, ask: Ask) -> Answer:
        self.asks.append(ask)
        if isinstance(self.say, Exception):
            raise self.say
        return Answer(str(self.say), dollars=0.0)

    async def close(self) -> None:
        pass


def test_a_bug_of_a_captioner_ends_the_run_and_is_no_items_fault(tmp_path: Path) -> None:
    outcome = run(make_pictures(tmp_path / "set", 3), Scripted(ZeroDivisionError("x")))
    assert outcome.error is not None and isinstance(outcome.error.__cause__, ZeroDivisionError)
    assert outcome.failed == []


def test_a_quota_of_the_day_ends_the_run(tmp_path: Path) -> None:
    outcome = run(make_pictures(tmp_path / "set", 3), Scripted(BusyError("Quota", seconds=7200, slow_down=True)))
    assert outcome.error is not None and "2.0 hours" in outcome.error.what


def test_a_caption_is_one_line(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 1)
    run(folder, Scripted("one\n\n two\u2028three"))
    assert captioned(folder)["item-0000"] == "one two three\n"


def test_items_of_the_wrong_kind_are_named_and_many_of_them_do_not_stop_a_run(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 3)
    (folder / "clip.mp4").write_bytes(b"no clip")
    plan = plan_captions(folder, kinds=frozenset({"picture"}), captioner="scripted")
    assert [left.reason for left in plan.left] == ["scripted does not look at clips"]
    outcome = run(plan, Scripted(ItemError("It is too long")))
    assert len(outcome.failed) == 3 and outcome.error is None


def test_stop_waits_for_what_is_out_and_a_second_one_does_not(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 50)

    async def stopped_after(seconds: float, *, presses: int, url: str) -> tuple[int, float]:
        captioner, words = service(url), Judge()
        runner = Runner(plan_captions(folder), captioner, [words])
        task = asyncio.create_task(runner.run())
        await asyncio.sleep(seconds)
        for _ in range(presses):
            runner.stop()
        begun = time.monotonic()
        outcome = await task
        await captioner.close()
        assert outcome.stopped == "stop" and outcome.error is None and outcome.unfinished > 0
        return len(outcome.written), time.monotonic() - begun

    with FakeOpenAI(seconds=1.0) as fake:
        written, took = asyncio.run(stopped_after(0.5, presses=1, url=fake.url))
        assert written == 4 and took < 2
        assert len(captioned(folder)) == 4
        written, took = asyncio.run(stopped_after(0.5, presses=2, url=fake.url))
        assert written == 0 and took < 0.5


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 1)

    async def both(url: str) -> None:
        words = Judge()
        runners = [Runner(plan_captions(folder), service(url), [words]) for _ in range(2)]
        done = await asyncio.gather(*(runner.run() for runner in runners), return_exceptions=True)
        assert sum(isinstance(each, LorapodError) for each in done) == 1

    with FakeOpenAI(seconds=0.1) as fake:
        asyncio.run(both(fake.url))


KILLS = int(os.environ.get("LORAPOD_KILLS", "5"))


def test_a_kill_at_any_moment_loses_at_most_what_was_out(tmp_path: Path) -> None:
    """SIGKILL at random moments, again and again, then a run to the end: the same set as without."""
    count = max(120, 30 * KILLS)
    folder, rng = make_pictures(tmp_path / "set", count), random.Random(7)
    argv = [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(tmp_path / "w"), "caption", str(folder)]
    with FakeOpenAI(seconds=0.1, chance={"429": 0.1, "cut": 0.05}) as fake:
        fake.keep_requests = False
        argv += ["--endpoint", fake.url, "--trigger", "ohwx"]
        for _ in range(KILLS):
            before = len(captioned(folder))
            process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 30
            while len(captioned(folder)) <= before and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            process.wait()
            texts = captioned(folder)
            assert all(text == f"ohwx, {said_of(int(name[-4:]))}" for name, text in texts.items()), "half a caption"
            ledger = Ledger(folder)
            assert all(ledger.state(folder / f"{name}.txt") is State.OURS for name in texts)
        last = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert last.returncode == 0, last.stdout + last.stderr
        again = len([name for name, times in fake.answered.items() if times > 1])
        assert again <= 16 * KILLS, "more was asked again than was out"
    assert captioned(folder) == {f"item-{i:04d}": f"ohwx, {said_of(i)}" for i in range(count)}
    assert not list(folder.rglob("*.part")), "a kill's leavings lie about"

"""Captions a second against a service that takes 50 ms, 16 at a time, to the ideal of 16 / 0.05 = 320 a second; the time
includes opening, encoding and sending each picture, and putting each caption and its ledger line on disk, synced.

    python benchmarks/captions.py [--items 2000] [--size 256] [--seconds 0.05]

The service runs in a process of its own. Two cases: the service of the tests over HTTP, which is itself Python and shares
the machine's cores, so that few cores set the bound; and a captioner that only waits, which shows the runner alone.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from PIL import Image

from captioning.helpers import captioned, colour_of
from fakes.openai_server import FakeOpenAI
from lorapod.captioning.base import Answer, Ask, Captioner, Cost, Kind
from lorapod.captioning.cleaning import Judge
from lorapod.captioning.items import plan_captions
from lorapod.captioning.openai import OpenAICaptioner
from lorapod.captioning.runner import Runner

AT_ONCE = 16


class Waiting:
    """Answers after so many seconds without looking."""

    name, model, at_once = "waiting", "none", AT_ONCE
    kinds: frozenset[Kind] = frozenset({"picture"})

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def estimate(self, ask: Ask) -> Cost:
        return Cost(0, 0, 0.0)

    async def caption(self, ask: Ask) -> Answer:
        await asyncio.sleep(self.seconds)
        return Answer("a plain square", dollars=0.0)

    async def close(self) -> None:
        pass


def serve(seconds: float, pipe: Connection) -> None:
    with FakeOpenAI(seconds=seconds) as fake:
        fake.keep_requests = False
        pipe.send(fake.url)
        pipe.recv()
        pipe.send(fake.most_out)


def make(folder: Path, items: int, size: int) -> Path:
    folder.mkdir()
    for i in range(items):
        Image.new("RGB", (size, size), colour_of(i)).save(folder / f"{i}.jpg")
    return folder


def timed(folder: Path, captioner: Captioner) -> float:
    async def whole() -> float:
        words, plan = Judge(), plan_captions(folder)
        begun = time.perf_counter()
        outcome = await Runner(plan, captioner, [words]).run()
        took = time.perf_counter() - begun
        await captioner.close()
        assert not outcome.failed and outcome.error is None
        return took

    return asyncio.run(whole())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=0.05)
    given = parser.parse_args()
    ideal = given.items * given.seconds / AT_ONCE
    wait = f"{given.seconds * 1000:.0f} ms"
    print(f"{given.items} pictures of {given.size} pixels, {AT_ONCE} at a time, {wait}: ideal {ideal:.2f} s")
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as root:
        took = timed(make(Path(root) / "alone", given.items, given.size), Waiting(given.seconds))
        print(f"runner alone    {took:6.2f} s  {given.items / took:6.1f} a second  {ideal / took:6.1%} of ideal")
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(given.seconds, there), daemon=True)
        process.start()
        folder = make(Path(root) / "http", given.items, given.size)
        took = timed(folder, OpenAICaptioner(here.recv(), "fake-vl"))
        here.send(None)
        print(f"over HTTP       {took:6.2f} s  {given.items / took:6.1f} a second  {ideal / took:6.1%} of ideal")
        print(f"most requests out at a time: {here.recv()}; captions on disk: {len(captioned(folder))}")


if __name__ == "__main__":
    main()

"""Several processes of one training, on the CPU with gloo: the same result, one voice, and an end for all when one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lorapod import recipe as recipes
from lorapod.engine import launch
from lorapod.engine.batches import Batch
from lorapod.engine.launch import count_for
from lorapod.engine.output import emit, emit_error
from lorapod.engine.ranks import Ranks
from lorapod.engine.status import STOPPED
from lorapod.errors import RequestError, TrainingError
from lorapod.events import PREFIX, from_line
from lorapod.recipe import Recipe

SHARDED = ("training.gpus=2", "training.shard_base=true", "training.gradient_checkpointing=full")


class Bench:
    """A dataset of two shapes, and runs of the real engine process."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.numbers = folder, iter(range(100))
        (folder / "pictures").mkdir()
        for i in range(7):
            size = (64, 64) if i < 4 else (96, 48)
            Image.new("RGB", size, (30 * i, 120, 200 - 20 * i)).save(folder / "pictures" / f"{i}.png")
            (folder / "pictures" / f"{i}.txt").write_text(f"zorb number {i}", encoding="utf-8")
        (folder / "recipe.toml").write_text(
            f"name = 'zorb'\n[base_model]\nname = '{model}'\n[[datasets]]\npath = 'pictures'\nresolutions = [64]\n"
            "validation_share = 0.3\n[training]\nsteps = 6\nprecision = 'fp32'\nbatch_size = 2\n[optimizer]\n"
            "learning_rate = 0.02\n[adapter]\nrank = 4\n[evaluation]\nevery = 3\nquantiles = 2\n[previews]\n"
            "prompts = ['zorb']\nwidth = 64\nheight = 64\nsteps = 1\nat_start = false\n[saving]\nprecision = 'fp32'\n"
            "checkpoint_every = 3\n",
            encoding="utf-8",
        )

    def run(self, *changes: str) -> Path:
        run = self.folder / f"run-{next(self.numbers)}"
        run.mkdir()
        recipe = recipes.load(self.folder / "recipe.toml", list(changes))
        (run / "recipe.toml").write_text(recipes.dumps(recipe), encoding="utf-8")
        return run

    def start(self, run: Path, *more: str, stage: str = "train") -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "lorapod.engine", stage, str(run), "--workspace", str(self.folder), *more]
        environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def train(self, *changes: str) -> tuple[Path, list[dict]]:
        run = self.run(*changes)
        return run, self.ended(self.start(run))

    def ended(self, process: subprocess.Popen[str], code: int = 0) -> list[dict]:
        """The events of a process that ends with `code`, and leaves none of its own behind."""
        children = psutil.Process(process.pid).children(recursive=True)
        said, errors = process.communicate(timeout=120)
        assert process.returncode == code, f"{process.returncode}\n{said[-2000:]}\n{errors[-3000:]}"
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        return events_of(said)


def events_of(text: str) -> list[dict]:
    lines = [line.removeprefix(PREFIX) for line in text.split("\n") if line.startswith(PREFIX)]
    return [event for event in map(from_line, lines) if event]


@pytest.fixture(scope="module")
def bench(tiny_z_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("ranks"), tiny_z_image)


def evaluations(events: list[dict]) -> list[float]:
    return [event["loss"] for event in events if event["type"] == "eval"]


def steps(events: list[dict]) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events if event["type"] == "step"}


def lora(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "lora" / "zorb.safetensors")


def assert_the_same(one: Path, other: Path) -> None:
    ours, theirs = lora(one), lora(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def shared(bench: Bench) -> tuple[Path, list[dict]]:
    """With nothing in the cache yet."""
    return bench.train("training.gpus=2")


@pytest.fixture(scope="module")
def alone(bench: Bench, shared: tuple[Path, list[dict]]) -> tuple[Path, list[dict]]:
    """After that one: what was cached by both is all there."""
    before = cached(bench)
    run, events = bench.train("training.gpus=1")
    assert cached(bench) == before and len(before) > 7
    return run, events


def cached(bench: Bench) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (bench.folder / "cache").rglob("*.safetensors")}


def test_two_processes_make_the_same_lora_along_the_same_losses(
    alone: tuple[Path, list[dict]], shared: tuple[Path, list[dict]]
) -> None:
    assert steps(shared[1]).keys() <= set(range(1, 7)) and 6 in steps(shared[1])
    for step in steps(shared[1]).keys() & steps(alone[1]).keys() & {1}:
        assert steps(shared[1])[step] == pytest.approx(steps(alone[1])[step], rel=1e-5)
    assert evaluations(shared[1]) == pytest.approx(evaluations(alone[1]), rel=1e-4)
    assert len(evaluations(shared[1])) == 3
    assert_the_same(shared[0], alone[0])


def test_one_of_them_speaks_draws_and_writes(alone: tuple[Path, list[dict]], shared: tuple[Path, list[dict]]) -> None:
    def told(events: list[dict]) -> list[tuple]:
        kinds = ("stage", "eval", "checkpoint", "lora", "preview")
        return [(e["type"], e.get("name"), e.get("step"), e.get("path")) for e in events if e["type"] in kinds]

    assert told(shared[1]) == told(alone[1])
    files = [sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) for run, _ in (shared, alone)]
    assert files[0] == files[1]


def test_a_base_model_split_over_processes_makes_the_same_lora(bench: Bench, alone: tuple[Path, list[dict]]) -> None:
    """Previews too, which all draw together, and the losses of held-out items that do not divide evenly."""
    run, events = bench.train(*SHARDED)
    assert evaluations(events) == pytest.approx(evaluations(alone[1]), rel=1e-4)
    assert_the_same(run, alone[0])
    for name in [str(path.relative_to(run)) for path in (run / "previews").glob("*.png")]:
        ours, theirs = (np.asarray(Image.open(folder / name), dtype=float) for folder in (run, alone[0]))
        assert abs(ours - theirs).max() <= 2 and theirs.std() > 0


def test_processes_stay_in_step_where_they_have_different_things_to_do(bench: Bench) -> None:
    """Three batches of one for two, of which some are to be preserved, which takes a second look at the base model."""
    others = bench.folder / "others"
    others.mkdir()
    for i in range(3):
        Image.new("RGB", (96, 48), (0, 60 * i, 90)).save(others / f"{i}.png")
        (others / f"{i}.txt").write_text(f"a thing {i}", encoding="utf-8")
    uneven = ("training.batch_size=1", "training.accumulation=3", "training.steps=3", "evaluation.every=0")
    runs = {}
    for changes in (("training.gpus=1",), SHARDED):
        run = runs[changes] = bench.run(*uneven, *changes)
        preserved = f"[[datasets]]\npath = '{others}'\nresolutions = [64]\nregularisation = 'preserve'\n"
        text = (run / "recipe.toml").read_text(encoding="utf-8")
        (run / "recipe.toml").write_text(text.replace("[adapter]", f"{preserved}\n[adapter]"), encoding="utf-8")
        bench.ended(bench.start(run))
    assert_the_same(*runs.values())


def test_ranks_that_gathered_different_things_end_with_an_error() -> None:
    """What they computed since is of weights that were mixed up."""

    class First(Ranks):
        def _together(self, values: torch.Tensor, operation: object) -> torch.Tensor:
            return values * 2 if self.same else values * 2 + 1

    for same in (True, False):
        rank = First(0, 2, in_step=True)
        rank.same = same
        rank.combine([torch.nn.Parameter(torch.zeros(1))], [torch.ones(())], stop=False)
        if same:
            assert not rank.agreed_to_stop(lambda: False)
        else:
            with pytest.raises(TrainingError, match="out of step"):
                rank.agreed_to_stop(lambda: False)


def batch_of(size: int) -> Batch:
    return Batch(
        torch.arange(size)[:, None], torch.zeros(size, 1), torch.zeros(size), [{}] * size, [{}] * size,
        weights=tuple(float(i) for i in range(size)), preserved=(size - 1,), captions=tuple(map(str, range(size))),
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 3])
def test_the_parts_of_all_ranks_are_the_step(count: int) -> None:
    """Batches with an item for each rank are split, smaller ones dealt out whole; shares add up to one a batch."""
    for number, size in enumerate([6, 5, 1, 1, 2, 1]):
        seen, shares = [], 0.0
        for rank in range(count):
            part, share = Ranks(rank, count).part_of(batch_of(size), number)
            shares += share
            if part is not None:
                places = part.latents[:, 0].tolist()
                assert share == pytest.approx(len(places) / size)
                assert part.captions == tuple(map(str, places)) and part.weights == tuple(map(float, places))
                assert [places[i] for i in part.preserved] == [place for place in places if place == size - 1]
                seen += places
        assert sorted(seen) == list(range(size)) and shares == pytest.approx(1)


@pytest.mark.parametrize("to", [("training.gpus=1",), ("training.gpus=2",), SHARDED], ids=["one", "two", "shards"])
def test_a_checkpoint_moves_between_numbers_of_processes(
    bench: Bench, alone: tuple[Path, list[dict]], shared: tuple[Path, list[dict]], to: tuple[str, ...]
) -> None:
    """From two to one and from one to two, in the midst of the same training; and to two that split the base model."""
    before = (shared if len(to) == 1 and to[0].endswith("1") else alone)[0]
    run = bench.run(*to)
    (run / "checkpoints").mkdir()
    (kept,) = (before / "checkpoints").glob("*3.safetensors")
    (run / "checkpoints" / kept.name).write_bytes(kept.read_bytes())
    events = bench.ended(bench.start(run, "--resume"))
    assert any("Going on from step 3 of 6" in event.get("message", "") for event in events)
    assert_the_same(run, alone[0])


@pytest.mark.parametrize("how", [("training.gpus=2",), SHARDED], ids=["whole", "in shards"])
def test_all_stop_after_the_same_step_with_a_checkpoint(bench: Bench, how: tuple[str, ...]) -> None:
    """Asked as the supervisor asks: the whole process group is told."""
    process = bench.start(bench.run(*how, "training.steps=100000", "saving.checkpoint_every=100000"))
    assert process.stdout is not None
    head = ""
    for line in process.stdout:
        head += line
        if '"type":"step"' in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    events = events_of(head) + bench.ended(process, 130)
    (kept,) = [event["step"] for event in events if event["type"] == "checkpoint"]
    assert kept >= max(steps(events)) and not [event for event in events if event["type"] == "error"]


@pytest.fixture
def going(bench: Bench) -> Iterator[Callable[..., tuple[subprocess.Popen[str], list[psutil.Process]]]]:
    """A training of two processes in its midst, and the two."""
    started = []

    def start(*changes: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        process = bench.start(bench.run("training.gpus=2", "training.steps=100000", *changes))
        started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if '"type":"step"' in line:
                break
        ranks = psutil.Process(process.pid).children()
        assert len(ranks) == 2
        return process, sorted(ranks, key=lambda rank: rank.environ()["RANK"])

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_is_named(
    bench: Bench, going: Callable[..., tuple[subprocess.Popen[str], list[psutil.Process]]], victim: int
) -> None:
    process, ranks = going()
    ranks[victim].kill()
    began = time.monotonic()
    errors = [event["message"] for event in bench.ended(process, 1) if event["type"] == "error"]
    assert time.monotonic() - began < 20
    assert errors == [f"Process {victim + 1} of 2 of this training was ended from outside (SIGKILL)"]


def test_a_loss_that_is_no_number_on_one_ends_all(bench: Bench) -> None:
    """The loss of a step is that of all of them, whichever had it."""
    folder, before = bench.folder / "broken", cached(bench)
    folder.mkdir()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(folder / "0.png")
    (folder / "0.txt").write_text("zorb", encoding="utf-8")
    run = bench.run("training.gpus=2", "datasets.0.validation_share=0", f"datasets.0.path={folder}")
    bench.ended(bench.start(run, stage="cache"))
    for path in set(cached(bench)) - set(before):
        entry = load_file(path)
        if "mean" in entry:
            save_file({**entry, "mean": entry["mean"] * float("nan")}, path)
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    head, dataset, rest = text.partition("[[datasets]]")
    own, adapter, rest = rest.partition("[adapter]")
    others = own.replace(str(folder), str(bench.folder / "pictures"))
    (run / "recipe.toml").write_text(f"{head}{dataset}{own}{dataset}{others}{adapter}{rest}", encoding="utf-8")
    errors = [event for event in bench.ended(bench.start(run), 1) if event["type"] == "error"]
    assert len(errors) == 1 and "The loss became nan at step" in errors[0]["message"], errors
    assert not list(run.glob("lora/*.safetensors"))


def recipe(**training: object) -> Recipe:
    return Recipe.model_validate(
        {"name": "zorb", "base_model": {"name": "x"}, "datasets": [{"path": "."}], "training": {"steps": 1, **training}}
    )


@pytest.mark.parametrize(
    ("training", "gpus", "count"),
    [
        ({}, 4, 1),  # one item a step cannot be split
        ({"batch_size": 4}, 0, 1), ({"batch_size": 4}, 3, 2), ({"batch_size": 4}, 4, 4), ({"batch_size": 6}, 4, 3),
        ({"accumulation": 8}, 3, 2), ({"batch_size": 2, "accumulation": 8}, 8, 8),
        ({"batch_size": 5, "gpus": 2}, 4, 2), ({"batch_size": 2, "gpus": 2}, 0, 2), ({"batch_size": 8, "gpus": 1}, 8, 1),
    ],
)  # fmt: skip
def test_auto_takes_what_divides_a_step_and_a_number_is_kept_to(
    training: dict[str, object], gpus: int, count: int
) -> None:
    assert count_for(recipe(**training), [str(i) for i in range(gpus)]) == count


def test_more_than_there_are_or_can_be_used_is_refused() -> None:
    with pytest.raises(RequestError, match="asks for 4 GPUs, and this machine has 2"):
        count_for(recipe(gpus=4, batch_size=8), ["0", "1"])
    with pytest.raises(RequestError, match="cannot be split over 3"):
        count_for(recipe(gpus=3, batch_size=2), ["0", "1", "2"])


def test_a_killed_launcher_leaves_no_process_behind(
    going: Callable[..., tuple[subprocess.Popen[str], list[psutil.Process]]],
) -> None:
    """Two that went on would write into a run that somebody resumed meanwhile."""
    process, ranks = going()
    try:
        process.kill()
        _, alive = psutil.wait_procs(ranks, timeout=10)
        assert not [rank for rank in alive if rank.status() != psutil.STATUS_ZOMBIE]
    finally:
        for rank in ranks:
            if rank.is_running():
                rank.kill()


Launched = Callable[[str], tuple[int, str]]


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Launched]:
    """Launches two ranks that are a shell script in place of the engine; gives the exit code and what was said."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(script: str) -> tuple[int, str]:
        program = tmp_path / "rank.sh"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return launch.launch(2, [str(tmp_path)]), capfd.readouterr().out

    monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.3)
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_rank_that_still_writes_after_a_stop_is_waited_for(launched: Launched, tmp_path: Path) -> None:
    """Rank 0 writes the checkpoint, however long that takes, while the others are done at once."""
    code, said = launched(f"[ $RANK = 1 ] && exit {STOPPED}; sleep 1.5; touch {tmp_path}/written; exit {STOPPED}")
    assert (tmp_path / "written").exists()
    assert (code, said) == (STOPPED, "")


def test_a_second_signal_ends_a_rank_that_does_not_heed_it(launched: Launched) -> None:
    began = time.monotonic()
    asks = f"kill -INT $PPID; sleep 0.2; kill -INT $PPID; exit {STOPPED}"
    code, said = launched(f"[ $RANK = 1 ] && {{ {asks}; }}; exec sleep 30")
    assert time.monotonic() - began < 10 and (code, said) == (STOPPED, "")


def test_a_stop_before_the_ranks_can_heed_it_is_a_stop(launched: Launched) -> None:
    """In their first moments, while Python still starts, a signal ends them as it ends any process."""
    assert launched("kill -INT $PPID; sleep 0.2; kill -INT $$; sleep 30") == (STOPPED, "")
    assert launched("kill -TERM $PPID; sleep 0.2; kill -TERM $$; sleep 30") == (STOPPED, "")


def test_ranks_ended_from_outside_are_no_stop(launched: Launched) -> None:
    code, said = launched("[ $RANK = 1 ] && kill -TERM $$; exec sleep 30")
    assert code == 1 and "Process 2 of 2" in said and "SIGTERM" in said


@pytest.mark.parametrize("leaked", [{"RANK": "1", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "16"}, {"RANK": "0"}])
def test_other_programs_variables_make_no_ranks(leaked: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rented clusters set RANK and WORLD_SIZE for their own programs."""
    for name, value in leaked.items():
        monkeypatch.setenv(name, value)
    assert Ranks.joined() == Ranks(0, 1)


def test_it_speaks_where_other_programs_say_rank(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    emit("info", message="here")
    emit_error(RequestError("No", "", ""))
    assert [event["message"] for event in events_of(capfd.readouterr().out)] == ["here", "No"]


def test_torchrun_starts_them_too(bench: Bench, alone: tuple[Path, list[dict]]) -> None:
    run = bench.run("training.gpus=1")
    argv = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lorapod.engine", "train"]
    done = subprocess.run(
        [sys.executable, *argv, str(run), "--workspace", str(bench.folder)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(evaluations(events_of(done.stdout))) == 3
    assert_the_same(run, alone[0])


def test_captions_that_are_cut_are_named_whichever_rank_read_them(
    bench: Bench, shared: tuple[Path, list[dict]]
) -> None:
    """Captions are encoded by both, a part each."""
    folder = bench.folder / "long"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (30 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i} " + "word " * 2000, encoding="utf-8")
    run = bench.run("training.gpus=2", "training.steps=1")
    text = (run / "recipe.toml").read_text(encoding="utf-8").replace(f"{bench.folder / 'pictures'}", f"{folder}")
    (run / "recipe.toml").write_text(text, encoding="utf-8")
    events = bench.ended(bench.start(run, stage="cache"))
    cut = {e["message"].split("tokens: ")[1][:9] for e in events if e["type"] == "warning" and "longer" in e["message"]}
    assert cut == {f"picture {i}" for i in range(4)}

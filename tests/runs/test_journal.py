"""Events on disk, what they add up to, and the store that repeats them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorapod import recipe as recipes
from lorapod.cli.main import app
from lorapod.errors import RunError
from lorapod.events import event
from lorapod.runs import RunFolder, find_run, list_runs, read_events, state_of
from lorapod.runs.folder import create_run
from lorapod.runs.journal import Journal
from lorapod.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def make_run(workspace: Workspace, recipe_file: Callable[..., Path]) -> Callable[[], RunFolder]:
    return lambda: create_run(recipes.load(recipe_file()), workspace)


def step(number: int, loss: float) -> dict:
    return event("step", step=number, total=10, epoch=1, loss=loss, lr=1e-4, seconds=0.5)


def test_a_torn_last_line_loses_nothing_but_itself(make_run: Callable[[], RunFolder]) -> None:
    run = make_run()
    first = Journal(run)
    first.add(step(1, 0.5))
    first.close()
    with run.events.open("ab") as file:
        file.write(b'{"t": 1, "type": "st')
    second = Journal(run)
    second.add(step(2, 0.4))
    second.close()
    assert [e["step"] for e in read_events(run)] == [1, 2]


def test_steps_seen_again_after_a_resume_count_once(make_run: Callable[[], RunFolder]) -> None:
    run = make_run()
    journal = Journal(run)
    for item in (step(1, 0.5), step(2, 0.4), event("eval", step=2, loss=0.9, dataset="a")):
        journal.add(item)
    journal.add(event("end", status="stopped", seconds=2))
    for item in (
        event("stage", name="train", index=1, count=1),
        step(2, 0.3),
        event("eval", step=2, loss=0.8, dataset="a"),
    ):
        journal.add(item)
    journal.close()
    state = state_of(run)
    assert state.step == 2 and state.loss == 0.3 and state.evals == {"a": [(2, 0.8)]}
    assert state.seconds_left == pytest.approx(8 * 0.5)


def test_a_run_is_found_by_id_name_or_folder(make_run: Callable[[], RunFolder], workspace: Workspace) -> None:
    run = make_run()
    for reference in (run.id, run.id[:4], run.name, str(run.path), run.path.name, None):
        assert find_run(reference, workspace) == run
    with pytest.raises(RunError) as caught:
        find_run("nothing", workspace)
    assert run.id in caught.value.why


def test_the_store_is_made_anew_when_it_is_lost_or_damaged(
    make_run: Callable[[], RunFolder], workspace: Workspace
) -> None:
    runs = [make_run(), make_run()]
    expected = {run.id for run in runs}
    assert {row.id for row in list_runs(workspace)} == expected
    for spoil in (b"", b"this is no database at all" * 100):
        workspace.store.write_bytes(spoil)
        assert {row.id for row in list_runs(workspace)} == expected
    workspace.store.unlink()
    assert {row.id for row in list_runs(workspace)} == expected


def test_a_store_damaged_in_its_middle_is_made_anew(make_run: Callable[[], RunFolder], workspace: Workspace) -> None:
    expected = {make_run().id for _ in range(30)}
    list_runs(workspace)
    with sqlite3.connect(workspace.store) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    data = bytearray(workspace.store.read_bytes())
    data[4096:] = b"\xaa" * (len(data) - 4096)
    workspace.store.write_bytes(data)
    assert {row.id for row in list_runs(workspace)} == expected


def test_a_store_that_cannot_be_opened_still_lists_the_runs(
    make_run: Callable[[], RunFolder], workspace: Workspace
) -> None:
    run = make_run()
    workspace.store.mkdir()
    assert [row.id for row in list_runs(workspace)] == [run.id]
    assert workspace.store.is_dir()  # what lorapod did not write is not deleted


def test_a_run_that_counts_further_than_a_database_can_is_listed(
    make_run: Callable[[], RunFolder], workspace: Workspace
) -> None:
    run, other = make_run(), make_run()
    journal = Journal(run)
    journal.add({"t": 1.0, "type": "step", "step": 1, "total": 10**23, "loss": 0.5, "seconds": 0.5})
    journal.close()
    assert {row.id for row in list_runs(workspace)} == {run.id, other.id}


def test_the_list_has_a_line_a_run_for_programs_and_fits_a_narrow_terminal(
    make_run: Callable[[], RunFolder], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    command = ["--workspace", str(workspace.root), "runs", "list"]
    monkeypatch.delenv("COLUMNS", raising=False)
    _, row = CliRunner().invoke(app, command).stdout.splitlines()
    assert row.split()[:3] == [run.id, run.name, "tiny-z-image"] and "0/0" not in row
    monkeypatch.setenv("COLUMNS", "60")
    narrow = CliRunner().invoke(app, command).stdout
    assert run.id in narrow and "loss" not in narrow and max(map(len, narrow.splitlines())) <= 60
    shown = CliRunner().invoke(app, ["--workspace", str(workspace.root), "runs", "show"]).stdout
    assert "before the first step" in shown


def test_runs_that_start_at_once_share_a_new_store(make_run: Callable[[], RunFolder], workspace: Workspace) -> None:
    runs = [make_run() for _ in range(4)]
    code = (
        "import sys; from pathlib import Path; from lorapod.runs.folder import RunFolder\n"
        "from lorapod.runs.store import record; from lorapod.workspace import Workspace\n"
        "for _ in range(20): record(RunFolder(Path(sys.argv[1])), Workspace(Path(sys.argv[2])))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(run.path), str(workspace.root)], stderr=subprocess.PIPE)
        for run in runs
    ]
    assert [writer.communicate(timeout=60)[1] for writer in writers] == [b""] * 4
    with sqlite3.connect(workspace.store) as store:
        assert {row[0] for row in store.execute("SELECT id FROM runs")} == {run.id for run in runs}
    store.close()


def test_previews_and_losses_seen_again_after_a_resume_count_once(make_run: Callable[[], RunFolder]) -> None:
    straight, resumed = make_run(), make_run()
    preview = event("preview", step=2, path="previews/2.png", prompt="a", seed=1)
    for run, items in (
        (straight, [step(1, 0.5), step(2, 0.3), preview, step(3, 0.2)]),
        (resumed, [step(1, 0.5), step(2, 9.0), preview, step(3, 9.0), step(2, 0.3), preview, step(3, 0.2)]),
    ):
        journal = Journal(run)
        for item in items:
            journal.add(item)
        journal.close()
    assert len(state_of(resumed).previews) == 1
    assert state_of(resumed).smooth_loss == pytest.approx(state_of(straight).smooth_loss)


def test_the_newest_lora_is_that_of_each_expert_in_the_first_layout(make_run: Callable[[], RunFolder]) -> None:
    run = make_run()
    journal = Journal(run)
    for step, name in ((2, "high-step2"), (4, "high"), (4, "high-kohya"), (8, "low"), (8, "low-kohya")):
        expert = name.partition("-")[0]
        journal.add(event("lora", step=step, path=f"{name}.safetensors", format="?", expert=expert))
    state = state_of(run)
    assert state.newest_loras == {"high": (4, "high.safetensors"), "low": (8, "low.safetensors")}
    assert len(state.loras) == 5


def test_an_event_that_lacks_fields_hides_no_other(make_run: Callable[[], RunFolder]) -> None:
    run = make_run()
    run.events.write_text('{"type":"step"}\n{"t":1,"type":"eval","step":1}\n{"t":"x","type":"info"}\n')
    journal = Journal(run)
    journal.add(step(4, 0.5))
    journal.close()
    assert state_of(run).step == 4


def test_a_misspelt_run_is_answered_with_the_nearest(make_run: Callable[[], RunFolder], workspace: Workspace) -> None:
    run = make_run()
    with pytest.raises(RunError) as caught:
        find_run(run.name[:-1] + "x", workspace)
    assert run.name in caught.value.remedy

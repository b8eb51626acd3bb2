"""Events on disk, what they add up to, and the store that repeats them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lorapod import recipe as recipes
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

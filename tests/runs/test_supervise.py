"""The supervisor as a process: ends, failures, stops, kills."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lorapod import recipe as recipes
from lorapod.errors import RunError
from lorapod.events import event
from lorapod.runs import RunFolder, list_runs, read_events, resume_run, state_of, stop_run
from lorapod.runs.folder import create_run
from lorapod.runs.journal import Journal
from lorapod.workspace import Workspace

DRIVER = Path(__file__).parents[1] / "fakes/supervise_stage.py"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def run(workspace: Workspace, recipe_file: Callable[..., Path]) -> RunFolder:
    return create_run(recipes.load(recipe_file()), workspace)


def supervise(
    run: RunFolder, workspace: Workspace, *modes: str, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    argv = [sys.executable, str(DRIVER), str(run.path), str(workspace.root), *modes]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env=os.environ | (env or {}), start_new_session=True
    )


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def steps(run: RunFolder) -> int:
    return state_of(run).step


def stage_processes(run: RunFolder) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            is_stage = any("fakes/stage.py" in part for part in process.cmdline()) and process.cwd() == str(run.path)
        except psutil.Error:
            continue
        if is_stage and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_a_run_that_is_done_says_so_everywhere(run: RunFolder, workspace: Workspace) -> None:
    assert supervise(run, workspace, "done").wait(60) == 0
    state = state_of(run)
    assert (state.status, state.step, state.total, state.loras) == ("done", 5, 5, ["lora/x.safetensors"])
    assert run.report.is_file()
    assert [(row.id, row.status, row.step) for row in list_runs(workspace)] == [(run.id, "done", 5)]


def test_the_failure_that_a_stage_explains_is_what_is_shown(run: RunFolder, workspace: Workspace) -> None:
    supervise(run, workspace, "fail", "done").wait(60)
    state = state_of(run)
    assert state.status == "failed" and state.error
    assert state.error["hint"] == "Lower the learning rate."
    assert sum(e["type"] == "error" for e in read_events(run)) == 1
    assert not state.loras  # the stage after a failed one is not started


def test_a_failure_without_words_is_shown_with_the_last_of_the_log(run: RunFolder, workspace: Workspace) -> None:
    supervise(run, workspace, "crash").wait(60)
    error = state_of(run).error
    assert error and "exit status 3" in error["message"] and "something unheard of" in error["hint"]


def test_a_stage_that_the_system_killed_is_told_from_a_crash(run: RunFolder, workspace: Workspace) -> None:
    supervise(run, workspace, "killed").wait(60)
    error = state_of(run).error
    assert error and "SIGKILL" in error["message"] and "memory" in error["hint"]


def test_a_stop_lets_the_stage_write_its_checkpoint(run: RunFolder, workspace: Workspace) -> None:
    process = supervise(run, workspace, "endless")
    until(lambda: steps(run) > 2)
    stop_run(run)
    process.wait(60)
    state = state_of(run)
    assert state.status == "stopped" and len(state.checkpoints) == 1


def test_a_stage_that_will_not_stop_is_ended_after_patience(run: RunFolder, workspace: Workspace) -> None:
    process = supervise(run, workspace, "stubborn")
    until(lambda: steps(run) > 2)
    stop_run(run)
    process.wait(30)
    assert state_of(run).status == "stopped" and not stage_processes(run)


def test_a_second_stop_does_not_wait(run: RunFolder, workspace: Workspace) -> None:
    process = supervise(run, workspace, "stubborn")
    until(lambda: steps(run) > 2)
    began = time.monotonic()
    stop_run(run, now=True)
    process.wait(30)
    assert time.monotonic() - began < 2.5 and state_of(run).status == "stopped"


def test_a_terminal_that_goes_away_does_not_end_the_run(run: RunFolder, workspace: Workspace) -> None:
    process = supervise(run, workspace, "endless")
    until(lambda: steps(run) > 2)
    process.send_signal(signal.SIGHUP)
    before = steps(run)
    until(lambda: steps(run) > before + 3)
    assert process.poll() is None
    stop_run(run)
    process.wait(60)


def test_a_killed_supervisor_leaves_no_orphan_and_an_interrupted_run(run: RunFolder, workspace: Workspace) -> None:
    process = supervise(run, workspace, "endless")
    until(lambda: steps(run) > 2)
    assert stage_processes(run)
    process.kill()
    process.wait(10)
    until(lambda: not stage_processes(run), 10)
    assert state_of(run).status == "interrupted"


def test_a_run_has_one_supervisor_at_a_time(run: RunFolder, workspace: Workspace) -> None:
    first = supervise(run, workspace, "endless")
    until(lambda: steps(run) > 2)
    argv = [sys.executable, str(DRIVER), str(run.path), str(workspace.root), "done"]
    second = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert "already going on" in second.stderr and first.poll() is None
    stop_run(run)
    first.wait(60)


def test_whatever_a_stage_prints_is_kept_and_secrets_are_masked(run: RunFolder, workspace: Workspace) -> None:
    process = supervise(run, workspace, "noise", env={"SOME_API_KEY": "sk-secret-value-1234"})
    assert process.wait(60) == 0
    log = run.log.read_text(encoding="utf-8")
    assert "100%" in log and "broken" in log and "sk-secret" not in log and "***" in log
    assert log.count("x") >= 3_000_000
    assert steps(run) == 5


def test_stopping_a_run_that_is_over_is_an_error(run: RunFolder, workspace: Workspace) -> None:
    supervise(run, workspace, "done").wait(60)
    with pytest.raises(RunError, match="not going on"):
        stop_run(run)


def test_an_event_behind_a_progress_bar_without_a_line_end_is_an_event(run: RunFolder, workspace: Workspace) -> None:
    assert supervise(run, workspace, "bar").wait(60) == 0
    assert [e["step"] for e in read_events(run) if e["type"] == "step"] == [1, 2, 3, 4, 5]
    assert "loading shards: 100%" in run.log.read_text(encoding="utf-8")


def test_a_secret_made_of_digits_or_a_field_name_spoils_no_event(run: RunFolder, workspace: Workspace) -> None:
    clock = str(int(time.time()))[:6]  # stands in the time of every event
    env = {"A_PASSWORD": clock, "B_PASSWORD": "message", "C_PASSWORD": "learning rate"}
    supervise(run, workspace, "fail", env=env).wait(60)
    state = state_of(run)
    assert state.status == "failed" and state.error
    assert state.error["hint"] == "Lower the ***."
    assert abs(state.error["t"] - time.time()) < 120


def test_a_supervisor_that_cannot_write_its_log_does_not_call_the_run_done(
    run: RunFolder, workspace: Workspace
) -> None:
    run.log.mkdir()
    supervise(run, workspace, "done").wait(60)
    state = state_of(run)
    assert state.status == "failed" and state.error and "log.txt" in state.error["message"]


def test_a_full_disk_stops_the_stage_before_the_run_fails(run: RunFolder, workspace: Workspace) -> None:
    argv = [sys.executable, str(DRIVER), str(run.path), str(workspace.root), "endless"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # noqa: E731
    process = subprocess.Popen(argv, preexec_fn=limit, start_new_session=True, stderr=subprocess.DEVNULL)
    process.wait(60)
    assert not stage_processes(run) and state_of(run).status in ("failed", "interrupted")
    assert all(line.endswith("}") for line in run.events.read_text().split("\n")[:-1])


def test_asking_a_run_to_stop_twice_still_lets_it_write_its_checkpoint(run: RunFolder, workspace: Workspace) -> None:
    process = supervise(run, workspace, "slow")
    until(lambda: steps(run) > 2)
    stop_run(run)
    time.sleep(0.8)
    stop_run(run)
    process.wait(60)
    state = state_of(run)
    assert state.status == "stopped" and len(state.checkpoints) == 1


def test_a_stage_that_closed_its_output_and_will_not_stop_is_ended_after_patience(
    run: RunFolder, workspace: Workspace
) -> None:
    process = supervise(run, workspace, "deaf")
    until(lambda: steps(run) == 1)
    stop_run(run)
    process.wait(20)
    state = state_of(run)
    assert state.status == "stopped" and not stage_processes(run)
    assert any("checkpoint" in w["hint"] for w in state.warnings)  # what was lost is said


def test_a_run_that_goes_on_again_is_listed_as_running(run: RunFolder, workspace: Workspace) -> None:
    supervise(run, workspace, "fail").wait(60)
    assert [row.status for row in list_runs(workspace)] == ["failed"]
    process = supervise(run, workspace, "endless")
    until(lambda: steps(run) > 2)
    (row,) = list_runs(workspace)
    stop_run(run)
    process.wait(60)
    assert row.status == "running" and row.step > 2
    assert [row.status for row in list_runs(workspace)] == ["stopped"]


def test_a_report_that_cannot_be_written_does_not_change_how_the_run_ended(
    run: RunFolder, workspace: Workspace
) -> None:
    run.report.mkdir()
    assert supervise(run, workspace, "done").wait(60) == 0
    state = state_of(run)
    assert state.status == "done" and any("report" in w["message"] for w in state.warnings)
    assert [row.status for row in list_runs(workspace)] == ["done"]


def test_resuming_a_run_that_is_going_on_is_refused_and_leaves_it_alone(run: RunFolder, workspace: Workspace) -> None:
    process = supervise(run, workspace, "endless")
    until(lambda: steps(run) > 2)
    with pytest.raises(RunError, match="still going on"):
        resume_run(run, workspace)
    assert process.poll() is None and state_of(run).status == "running"
    stop_run(run)
    process.wait(60)


def test_resuming_a_run_that_is_done_is_refused(run: RunFolder, workspace: Workspace) -> None:
    journal = Journal(run)
    journal.add(event("stage", name="train", index=1, count=1))
    journal.add(event("end", status="done", seconds=1))
    journal.close()
    with pytest.raises(RunError, match="is done"):
        resume_run(run, workspace)


def test_the_list_shows_a_run_while_it_goes_on_again(run: RunFolder, workspace: Workspace) -> None:
    first = supervise(run, workspace, "endless")
    until(lambda: steps(run) > 2)
    stop_run(run)
    first.wait(60)
    assert [row.status for row in list_runs(workspace)] == ["stopped"]
    second = supervise(run, workspace, "endless")
    until(lambda: [row.status for row in list_runs(workspace)] == ["running"])
    stop_run(run)
    second.wait(60)


def test_a_secret_that_looks_like_a_number_does_not_break_events(run: RunFolder, workspace: Workspace) -> None:
    process = supervise(run, workspace, "done", env={"MY_PASSWORD": str(int(time.time()) // 100)})
    assert process.wait(60) == 0
    assert state_of(run).status == "done"


def test_a_run_goes_on_without_a_usable_store(run: RunFolder, workspace: Workspace) -> None:
    workspace.store.mkdir()
    assert supervise(run, workspace, "done").wait(60) == 0
    assert state_of(run).status == "done"


def test_a_kill_by_the_system_during_a_stop_is_not_called_a_stop(run: RunFolder, workspace: Workspace) -> None:
    process = supervise(run, workspace, "slow")
    until(lambda: steps(run) > 2)
    stop_run(run)
    (stage,) = stage_processes(run)
    stage.kill()
    process.wait(60)
    state = state_of(run)
    assert state.status == "failed" and state.error and "memory" in state.error["hint"]

"""Pulling from a hub over HTTP: faults, resuming, sharing, gates, space. Every byte sent is counted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
import tomlkit

from fakes.hub import FakeHub, Fault, Repo
from fakes.hub_models import entry, safetensors
from lorapod.errors import BaseModelError, DiskError, FetchError
from lorapod.models.fetch import Options, Progress, pull
from lorapod.models.hub import RemoteFile
from lorapod.models.store import Store
from lorapod.models.transfer import Patience
from lorapod.models.upkeep import verify
from lorapod.workspace import Workspace

QUICK = Options(patience=Patience(tries=4, first=0.01, longest=0.05))
WEIGHTS = "weights-1.safetensors"


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.bytes = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, file: RemoteFile, count: int) -> None:
        self.bytes += count


def contents(workspace: Workspace, model: str = "toy") -> dict[str, bytes]:
    folder = workspace.models / model / "diffusers"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def total(repo: Repo) -> int:
    return sum(len(c) for c in repo.files.values())


def test_a_pull_gives_the_files_as_they_are_at_the_hub_and_asks_for_each_byte_once(
    hub: FakeHub, toy: Repo, workspace: Workspace
) -> None:
    progress = Notes()
    pull(entry(), "builtin", workspace, progress, QUICK)
    assert contents(workspace) == toy.files
    assert hub.sent_bytes == total(toy) == progress.bytes
    pull(entry(), "builtin", workspace, None, QUICK)
    assert hub.sent_bytes == total(toy), "what is there was fetched again"


def test_a_workspace_that_cannot_be_written_is_refused_before_the_hub_is_asked(
    hub: FakeHub, toy: Repo, workspace: Workspace
) -> None:
    workspace.root.mkdir(parents=True, exist_ok=True)
    workspace.models.write_text("a file in the place of the folder")
    with pytest.raises(DiskError, match="models"):
        pull(entry(), "builtin", workspace, None, QUICK)
    assert not hub.requests


def test_all_faults_at_once_end_with_right_files_and_hardly_a_byte_asked_twice(
    hub: FakeHub, workspace: Workspace
) -> None:
    kinds = ["reset", "truncate", "429", "503", "wrong-range", "no-range", "expired"]
    files = {f"part/{i:02d}.bin_": os.urandom(200_000 * (1 + i % 5) + i) for i in range(18)}
    files |= {f"part/small-{i}.json": b"{%d}" % i for i in range(4)}
    hub.repos["maker/toy"] = Repo(files)
    for i in range(18):
        kind, name = kinds[i % len(kinds)], f"{i:02d}.bin_"
        # a server that ignores the range of a request in mid-file sends all again, whatever is asked of it
        second = kinds[(i + 3) % len(kinds)].replace("no-range", "reset")
        hub.faults[name] = [Fault(kind, at=90_000 + i), Fault(second, at=40_000)]
    hub.faults["small-1.json"] = [Fault("429", where="hub"), Fault("truncate", 1, where="hub")]
    hub.faults["toy"] = [Fault("503", where="info"), Fault("429", where="info")]
    started = time.monotonic()
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == files
    met = 2 * 18 + 4 - sum(map(len, hub.faults.values()))
    assert met >= 30, "a whole file without ranges leaves no room for a second fault, all others are met"
    again = hub.sent_bytes - total(hub.repos["maker/toy"])
    assert again < 0.02 * total(hub.repos["maker/toy"]), f"{again} bytes were asked for twice"
    assert time.monotonic() - started < 15


def test_a_large_file_comes_over_several_connections_and_survives_their_faults(
    hub: FakeHub, toy: Repo, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorapod.models.transfer._BYTES_A_CONNECTION", 1 << 20)
    toy.files["transformer/" + WEIGHTS] = safetensors({"a.weight": [3000, 1000]})
    toy.publish()
    hub.faults[WEIGHTS] = [Fault("reset", 300_000), Fault("truncate", 70_000), Fault("503"), Fault("reset", 0)]
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == toy.files
    assert hub.sent_bytes - total(toy) < 0.02 * total(toy)


def test_a_flipped_byte_on_the_way_is_found_and_only_that_file_is_fetched_again(
    hub: FakeHub, toy: Repo, workspace: Workspace
) -> None:
    hub.faults[WEIGHTS] = [Fault("flip", 1000)]
    progress = Notes()
    pull(entry(), "builtin", workspace, progress, QUICK)
    assert contents(workspace) == toy.files
    assert any("damaged" in note for note in progress.notes)
    assert hub.sent_bytes == total(toy) + len(toy.files["transformer/" + WEIGHTS])


def test_a_file_that_is_damaged_every_time_is_refused_and_not_kept(
    hub: FakeHub, toy: Repo, workspace: Workspace
) -> None:
    hub.faults[WEIGHTS] = [Fault("flip", 5) for _ in range(40)]
    with pytest.raises(FetchError, match="arrives damaged"):
        pull(entry(), "builtin", workspace, None, QUICK)
    assert "transformer/" + WEIGHTS not in contents(workspace)
    assert not list((workspace.models / ".store/sha256").rglob("*.part"))


def test_a_server_without_ranges_is_read_in_one_go(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    hub.faults[WEIGHTS] = [Fault("no-range") for _ in range(200)]
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == toy.files


def test_a_server_that_keeps_failing_gets_an_end_and_what_came_is_kept(
    hub: FakeHub, toy: Repo, workspace: Workspace
) -> None:
    hub.faults[WEIGHTS] = [Fault("reset", 400_000), *(Fault("503") for _ in range(30))]
    with pytest.raises(FetchError, match="cannot be fetched") as caught:
        pull(entry(), "builtin", workspace, None, QUICK)
    assert "503" in caught.value.why and "goes on where" in caught.value.remedy
    hub.faults.clear()
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == toy.files
    assert hub.sent_bytes - total(toy) < 0.02 * total(toy) + 65_536  # a block of the small file


def test_a_server_that_asks_to_wait_is_waited_for(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    hub.faults[WEIGHTS] = [Fault("429", retry_after="1")]
    started = time.monotonic()
    pull(entry(), "builtin", workspace, None, Options(patience=Patience(first=0.01)))
    assert time.monotonic() - started >= 1


def test_the_token_goes_to_the_hub_and_to_no_other_host(
    hub: FakeHub, toy: Repo, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.tokens["hf_secret"] = {"maker/toy"}
    toy.gated = True
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == toy.files
    assert hub.leaks == []
    written = b"".join(p.read_bytes() for p in (workspace.models / ".store/records").glob("*"))
    assert b"hf_secret" not in written and b"X-Signature" not in written


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_a_gated_repository_is_refused_before_a_byte_with_the_page_to_ask_at(
    hub: FakeHub, toy: Repo, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    toy.gated = True
    hub.tokens["hf_other"] = set()
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BaseModelError, match="gated") as caught:
        pull(entry(), "builtin", workspace, None, QUICK)
    assert f"{hub.url}/maker/toy" in caught.value.remedy
    assert ("your token" in caught.value.what) == bool(token)
    assert hub.sent_bytes == 0


def test_a_token_that_the_hub_does_not_know_is_said_to_be_wrong(
    hub: FakeHub, toy: Repo, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(BaseModelError, match="does not know the token"):
        pull(entry(), "builtin", workspace, None, QUICK)


def test_a_missing_repository_and_a_missing_file_are_named(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    spec = {"layout": "diffusers", "part": "all", "repo": "maker/nothing", "include": ["*"]}
    with pytest.raises(BaseModelError, match="maker/nothing"):
        pull(entry(files=[spec]), "builtin", workspace, None, QUICK)
    spec = {"layout": "diffusers", "part": "all", "repo": "maker/toy", "path": "gone.safetensors"}
    with pytest.raises(BaseModelError, match=r"no file gone\.safetensors"):
        pull(entry(files=[spec]), "builtin", workspace, None, QUICK)


def test_no_hub_at_all_is_one_clear_error(
    hub: FakeHub, toy: Repo, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    progress = Notes()
    with pytest.raises(FetchError, match="cannot be reached"):
        pull(entry(), "builtin", workspace, progress, QUICK)
    assert [note for note in progress.notes if note.startswith("http://127.0.0.1:9 cannot be reached; asking again")]
    assert len(progress.notes) == QUICK.patience.tries, "each wait is said, so that no one looks at a still screen"


def test_a_busy_hub_is_said_and_asked_again(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    hub.faults["toy"] = [Fault("503", where="info"), Fault("429", where="info")]
    progress = Notes()
    pull(entry(), "builtin", workspace, progress, QUICK)
    asked = [note for note in progress.notes if "asking again" in note]
    assert ["answered 503" in asked[0], "answered 429" in asked[1]] == [True, True], asked


def test_a_revision_that_is_gone_at_a_second_pull_is_asked_for_anew(
    hub: FakeHub, toy: Repo, workspace: Workspace
) -> None:
    pull(entry(), "builtin", workspace, None, QUICK)
    before = hub.sent_bytes
    toy.files["transformer/config.json"] = b'{"new": 1}'
    toy.publish()
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == toy.files
    assert hub.sent_bytes == before + len(b'{"new": 1}')


def test_a_revision_that_goes_while_it_is_fetched_is_asked_for_anew(
    hub: FakeHub, toy: Repo, workspace: Workspace
) -> None:
    class Publishes(Progress):
        done = False

        def begin(self, plan: object) -> None:
            if not self.done:
                self.done = True
                toy.files["model_index.json"] = b'{"_class_name": "ZImagePipeline", "x": 1}'
                toy.publish()

    pull(entry(), "builtin", workspace, Publishes(), QUICK)
    assert contents(workspace) == toy.files


def test_a_file_that_two_models_share_is_fetched_and_stored_once(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    hub.repos["other/toy"] = Repo({"transformer/w.safetensors": toy.files["transformer/" + WEIGHTS]})
    spec = {"layout": "diffusers", "part": "all", "repo": "other/toy", "include": ["*"]}
    pull(entry(), "builtin", workspace, None, QUICK)
    before = hub.sent_bytes
    pull(entry("second", files=[spec]), "builtin", workspace, None, QUICK)
    assert hub.sent_bytes == before
    assert (workspace.models / "second/diffusers/transformer/w.safetensors").samefile(
        workspace.models / "toy/diffusers/transformer" / WEIGHTS
    )


def test_weights_of_another_model_are_refused_when_they_arrive(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    shapes = [{"layout": "diffusers", "part": "transformer", "tensors": {"a.weight": [500, 999], "c.weight": [3]}}]
    with pytest.raises(BaseModelError, match="not one of Toy") as caught:
        pull(entry(shapes=shapes), "builtin", workspace, None, QUICK)
    assert "[500, 1000]" in caught.value.why and "c.weight is missing" in caught.value.why


def test_half_of_the_weights_is_not_a_model(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    del toy.files["transformer/weights-2.safetensors"]
    toy.publish()
    with pytest.raises(BaseModelError, match="not one of Toy") as caught:
        pull(entry(parameters=750_000), "builtin", workspace, None, QUICK)
    assert "500,000" in caught.value.why


def test_a_file_that_is_no_safetensors_is_refused(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    toy.files["transformer/" + WEIGHTS] = b"<html>" + bytes(30_000)
    toy.publish()
    with pytest.raises(BaseModelError, match="not a whole safetensors file"):
        pull(entry(), "builtin", workspace, None, QUICK)


Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_said_before_a_byte(
    hub: FakeHub, toy: Repo, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 2_000_000))
    with pytest.raises(DiskError, match="no space for toy") as caught:
        pull(entry(), "builtin", workspace, None, QUICK)
    assert "3.2 MB are needed, 2.0 MB are free" in caught.value.what
    assert hub.sent_bytes == 0


def test_a_disk_that_fills_up_in_mid_file_is_one_clear_error_and_the_pull_goes_on_later(
    hub: FakeHub, toy: Repo, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = os.pwrite, [1_500_000]

    def full(handle: int, content: bytes, at: int) -> int:
        left[0] -= len(content)
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(handle, content, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskError, match="No space left"):
        pull(entry(), "builtin", workspace, None, QUICK)
    left[0] = 10**12
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == toy.files


def test_verify_finds_a_flipped_byte_and_pull_mends_it(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    pull(entry(), "builtin", workspace, None, QUICK)
    assert not any(v.problem for v in verify(entry(), workspace))
    place = (workspace.models / "toy/diffusers/transformer" / WEIGHTS).resolve()
    place.chmod(0o644)
    content = bytearray(place.read_bytes())
    content[-5] ^= 1
    place.write_bytes(content)
    bad = [v for v in verify(entry(), workspace) if v.problem]
    assert [v.what for v in bad] == ["diffusers/transformer/" + WEIGHTS] and bad[0].removed
    before = hub.sent_bytes
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == toy.files
    assert hub.sent_bytes - before == len(toy.files["transformer/" + WEIGHTS])


def test_stored_files_cannot_be_edited_by_accident(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    pull(entry(), "builtin", workspace, None, QUICK)
    assert all(path.stat().st_mode & 0o222 == 0 for _, path in Store(workspace).objects())


PULL = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from fakes.hub_models import entry
from lorapod.models.fetch import pull
from lorapod.workspace import Workspace
pull(entry(), "builtin", Workspace(Path({root!r})))
print("done")
"""


def start_pull(workspace: Workspace) -> subprocess.Popen[str]:
    code = PULL.format(tests=str(Path(__file__).parents[1]), root=str(workspace.root))
    env = {**os.environ, "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)


def until(condition, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_a_killed_pull_goes_on_where_it_was(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    toy.files["transformer/" + WEIGHTS] = safetensors({"a.weight": [5000, 1000]})
    toy.publish()
    hub.bytes_per_second = 12e6
    for share in (0.3, 0.6):
        process = start_pull(workspace)
        until(lambda share=share: hub.sent_bytes > share * total(toy))
        process.send_signal(signal.SIGKILL)
        process.wait()
    hub.bytes_per_second = None
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == toy.files
    # a kill loses what was on the way: up to a block of 64 kB and what the sockets held, which a real file dwarfs
    assert hub.sent_bytes - total(toy) < 2 * (65_536 + 1_000_000)


def test_two_processes_share_one_download(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    hub.bytes_per_second = 4e6
    both = [start_pull(workspace), start_pull(workspace)]
    assert [p.communicate(timeout=30)[0].strip() for p in both] == ["done", "done"]
    assert contents(workspace) == toy.files
    assert hub.sent_bytes == total(toy)


def test_ctrl_c_ends_at_once_though_the_server_says_nothing(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    hub.faults[WEIGHTS] = [Fault("stall", 200_000)]
    command = [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(workspace.root), "models", "pull", "toy"]
    (workspace.models / "entries").mkdir(parents=True)
    text = tomlkit.dumps(json.loads(entry().model_dump_json(exclude_defaults=True, exclude_none=True)))
    (workspace.models / "entries/toy.toml").write_text(text, encoding="utf-8")
    env = {**os.environ, "HF_HUB_OFFLINE": "0"}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, preexec_fn=heed)
    until(lambda: hub.stalled.is_set())
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - asked < 2, output
    assert process.returncode == 130 and "goes on" in output
    sent = hub.sent_bytes
    hub.go_on.set()
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == toy.files and hub.sent_bytes - sent < total(toy) - 100_000, "what came was kept"


def test_a_stop_ends_soon_and_keeps_what_came(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    hub.bytes_per_second = 1e6

    class Stops(Progress):
        def advance(self, file: RemoteFile, count: int) -> None:
            if threading.current_thread() is not threading.main_thread() and hub.sent_bytes > 300_000:
                raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pull(entry(), "builtin", workspace, Stops(), QUICK)
    assert time.monotonic() - started < 10
    hub.bytes_per_second = None
    pull(entry(), "builtin", workspace, None, QUICK)
    assert contents(workspace) == toy.files

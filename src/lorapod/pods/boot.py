"""`lorapod pod boot`: what a container does from its start to its end.

    workspace -> revision -> GPU verdict -> services -> ready -> (runs go on) -> SIGTERM: checkpoint, services end

Nothing is upgraded or fetched, but for another revision of lorapod where one is asked for. What goes wrong is told and
gone on from: a container that ends at once is started again by the provider for ever, and lets nobody in to repair it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lorapod import __version__
from lorapod.errors import DiskError, LorapodError, RunError
from lorapod.machine import (
    Disk,
    Finding,
    Gpus,
    Host,
    Severity,
    TorchBuild,
    disk_of,
    find_gpus,
    find_host,
    find_torch,
    gpu_findings,
    host_findings,
)
from lorapod.pods import revision
from lorapod.pods.keeper import Keeper
from lorapod.pods.place import Place, prepare
from lorapod.pods.runtime import Running, runtime_folder, write_running
from lorapod.pods.services import Ports, Service, services
from lorapod.runs import RunFolder, all_runs, stop_run, supervisor_of
from lorapod.settings import KEYS, adopt_aliases
from lorapod.workspace import DATASET_FOLDERS, Workspace

GB = 1_000_000_000
GIB = 1 << 30
RUN_SECONDS = 300.0
"""How long a run may take to write its checkpoint after SIGTERM; providers mostly kill the container before that."""
_HOSTS = ("huggingface.co", "github.com")
_NAMES_SECONDS = 4.0
_TEND_SECONDS = 0.25
_WIDTH = 12
_LINE = 100

Say = Callable[[str], None]


class _Terminated(Exception):
    """SIGTERM or SIGINT came."""


def boot(workspace: Workspace, say: Say, ports: Ports = Ports()) -> int:  # noqa: B008
    """Boots the container and stays until SIGTERM or SIGINT.

    Args:
        say: Shows a line to whoever reads the container's log.

    Returns:
        The exit status: 0 after a clean stop.

    Raises:
        RunError: Another boot runs in this container.
        DiskError: Not even a folder for temporary files can be written.
    """
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise)
    runtime = runtime_folder()
    try:
        with _only_one(runtime):
            adopt_aliases(os.environ)
            os.environ["NETWORK_VOLUME"] = str(workspace.root)  # what is started from here finds the same workspace
            place, findings = prepare(workspace)
            say = _told_twice(say, workspace)
            source = revision.other_revision(workspace, os.environ, say)
            if source is not None:
                revision.run_in(source, revision.wished(os.environ))
            return _live(place, findings, runtime, say, ports, began)
    except _Terminated:
        return 0


def _live(place: Place, findings: list[Finding], runtime: Path, say: Say, ports: Ports, began: float) -> int:
    gpus, torch, host, disk = find_gpus(), find_torch(), find_host(), disk_of(place.workspace.root)
    made, about_services = services(place.workspace, runtime, os.environ, ports)
    for line in screen(place, gpus, torch, host, disk):
        say(line)
    keeper = Keeper(made, runtime / "logs", say, lambda running: _note(runtime, running))
    try:
        keeper.start()
        ready = keeper.wait_until_ready()
        findings += gpu_findings(gpus, torch) + host_findings(host, disk) + about_services
        findings += [_not_ready(service, runtime) for service in made if service not in ready]
        for line in links(ready):
            say(line)
        for line in told(findings + network_findings()):
            say(line)
        say("")
        say(f"Ready after {time.monotonic() - began:.1f} s. In a terminal of JupyterLab or SSH, type: lorapod start")
        while True:
            time.sleep(_TEND_SECONDS)
            keeper.tend()
    except _Terminated:
        say("")
        say("Asked to stop.")
        _stop_runs(place.workspace, say, keeper)
        return 0
    finally:
        keeper.stop()


def screen(place: Place, gpus: Gpus, torch: TorchBuild | None, host: Host, disk: Disk) -> Iterator[str]:
    """The facts of this machine, a line each."""
    yield f"lorapod {__version__}" + (f" on the pod {host.pod}" if host.pod else "")
    yield ""
    yield _row("workspace", f"{place.workspace.root}, on a {disk.keeping.value}, {disk.free / GB:.0f} GB free")
    kinds = {DATASET_FOLDERS[0]: "pictures", DATASET_FOLDERS[1]: "clips"}
    for name, kind in kinds.items():
        there = f"{place.media[name]} there" if place.media.get(name) else "none yet"
        yield _row("", f"{kind} go into {name}/ ({there})")
    if place.adopted:
        yield _row("", "It is that of an older template; everything stays as it is.")
    for number, gpu in enumerate(gpus.found):
        memory = f"{gpu.memory_total / GIB:.0f} GB" if gpu.memory_total else "memory shared with the machine"
        yield _row(
            "" if number else "GPU", f"{gpu.name}, {memory}" + (f", {gpu.architecture}" if gpu.architecture else "")
        )
    if not gpus.found:
        yield _row("GPU", "none")
    if gpus.driver:
        cuda = f", CUDA up to {gpus.cuda[0]}.{gpus.cuda[1]}" if gpus.cuda else ""
        yield _row("driver", f"{gpus.driver}{cuda}")
    yield _row("torch", torch.shown if torch else "not installed")
    yield _row("machine", f"{host.cpus:g} processors, {host.memory_total / GIB:.0f} GB of memory")
    have = [key.name for key in KEYS if key.is_set(os.environ)]
    lack = [key.name for key in KEYS if key.name not in have]
    shown = [f"set: {', '.join(have)}"] * bool(have) + [f"not set: {', '.join(lack)}"] * bool(lack)
    yield _row("keys", "; ".join(shown))


def links(ready: Sequence[Service]) -> Iterator[str]:
    """A ready link for each service."""
    for service in ready:
        yield ""
        yield _row(service.title, f"port {service.port}, asks for {service.asks_for}")
        yield service.link  # from the first column, so that it stays whole on a narrow screen


def told(findings: Sequence[Finding]) -> Iterator[str]:
    """Findings as a person reads them in a log: what, why, what to do."""
    order = list(Severity)
    for finding in sorted(findings, key=lambda one: order.index(one.severity)):
        loud = finding.about == "workspace"
        yield "!" * _LINE if loud else ""
        for text, label in ((finding.what, finding.severity.value.upper()), (finding.why, ""), (finding.remedy, "")):
            for number, line in enumerate(textwrap.wrap(text, _LINE - _WIDTH, break_long_words=False)):
                yield _row("" if number else label, line)
        if loud:
            yield "!" * _LINE


def network_findings() -> list[Finding]:
    """Whether names of hosts can be found; lorapod boots without, but cannot fetch a base model."""
    found = threading.Event()

    def ask(host: str) -> None:
        with suppress(OSError):
            socket.getaddrinfo(host, 443)
            found.set()

    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in _HOSTS]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _NAMES_SECONDS
    while not found.wait(0.02) and time.monotonic() < deadline and any(thread.is_alive() for thread in threads):
        pass
    if found.is_set():
        return []
    return [
        Finding(
            Severity.WARNING, "network", "There is no way to the internet",
            f"The names {' and '.join(_HOSTS)} are not found. Pods with RunPod's global networking have no public names.",
            "Base models that are here already can be used. Else create the pod without global networking.",
        )
    ]  # fmt: skip


def _not_ready(service: Service, runtime: Path) -> Finding:
    return Finding(
        Severity.FAULT, "service", f"{service.title} does not answer", "",
        f"What it printed is in {runtime / 'logs' / service.name}.log.",
    )  # fmt: skip


def _stop_runs(workspace: Workspace, say: Say, keeper: Keeper) -> None:
    """Lets every run of this machine write a checkpoint, for as long as the provider lets us live."""
    going: list[RunFolder] = []
    for run in all_runs(workspace):
        if supervisor_of(run) is not None:
            with suppress(RunError):  # it ended by itself meanwhile, or is another user's
                stop_run(run)
                going.append(run)
                say(f"The run {run.id} ({run.name}) writes a checkpoint.")
    deadline = time.monotonic() + RUN_SECONDS
    while going and time.monotonic() < deadline:
        for run in list(going):
            if supervisor_of(run) is None:
                going.remove(run)
                say(f"The run {run.id} has stopped. Go on later with: lorapod train --resume {run.id}")
        keeper.reap()
        time.sleep(0.05)


@contextmanager
def _only_one(runtime: Path) -> Iterator[None]:
    """Two boots in one container would fight for the ports. The lock ends with the process, so none is ever stale."""
    try:
        lock = (runtime / "boot.lock").open("w")
    except OSError:  # no room for a lock is no reason not to boot
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                "This container has booted already", "Another `lorapod pod boot` runs in it.",
                "See what runs with `lorapod status`.",
            ) from error  # fmt: skip
        yield


def _told_twice(say: Say, workspace: Workspace) -> Say:
    """Also writes what is said to a file of the workspace, closed to others since links hold tokens."""
    path = workspace.private / "boot.log"

    def both(text: str) -> None:
        say(text)
        with suppress(OSError):  # a full volume: the container's own log still has it
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "a", encoding="utf-8") as log:
                log.write(text + "\n")

    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    return both


def _note(runtime: Path, running: list[Running]) -> None:
    with suppress(DiskError, LorapodError):  # `lorapod status` then shows no links; the services run all the same
        write_running(runtime, running)


def _row(label: str, text: str) -> str:
    return f"{label:<{_WIDTH}}{text}"


def _raise(number: int, frame: object) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # the stop itself is not to be broken off; the provider's SIGKILL ends it
    raise _Terminated

"""What a pod listens on: each service as data, so that a test can list every port with what it asks for.

Jupyter gets its token in the environment and sshd its settings in a file of mode 600: a secret is never in an argument,
which every user of the machine can read. No origin but its own may talk to Jupyter.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lorapod.errors import DiskError
from lorapod.files import write_text_whole
from lorapod.machine import Finding, Severity
from lorapod.pods.runtime import Secret, token
from lorapod.workspace import Workspace

JUPYTER_PORT = 8888
SSH_PORT = 22

_PUBLIC_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-\S+|sk-\S+) [A-Za-z0-9+/=]+( .*)?")
_NOT_FOR_SHELLS = frozenset(
    {
        "JUPYTER_PASSWORD",
        "JUPYTER_TOKEN",
        "PUBLIC_KEY",
        "SSH_PUBLIC_KEY",
        "HOME",
        "HOSTNAME",
        "LOGNAME",
        "OLDPWD",
        "PWD",
    }
    | {"SHELL", "SHLVL", "TERM", "USER", "_"}
)


@dataclass(frozen=True)
class Service:
    """A process that listens.

    Attributes:
        argv: What is run; never holds a secret.
        environment: All of its environment.
        protocol: `http` or `tcp`.
        asks_for: What a caller must have, in words.
        link: A ready link or command.
        closed_path: Of HTTP: must answer 401 or 403 to a caller without the token, or the service is ended.
        alive_path: Of HTTP: answers 200 once it is up.
    """

    name: str
    title: str
    argv: tuple[str, ...]
    port: int
    protocol: str
    asks_for: str
    link: str
    environment: Mapping[str, str] = field(repr=False)
    alive_path: str = ""
    closed_path: str = ""


@dataclass(frozen=True)
class Ports:
    """Which ports to listen on."""

    jupyter: int = JUPYTER_PORT
    ssh: int = SSH_PORT


def services(
    workspace: Workspace, runtime: Path, environment: Mapping[str, str], ports: Ports
) -> tuple[list[Service], list[Finding]]:
    """The services of this pod, ready to be started, and why one is left out. The studio's will be one more of them.

    Args:
        environment: What the provider and the person set; tokens and keys are taken from it.
    """
    made: list[Service] = []
    findings: list[Finding] = []
    for make, port in ((_jupyter, ports.jupyter), (_ssh, ports.ssh)):
        service, found = make(workspace, runtime, environment, port)
        findings += found
        if service is not None:
            made.append(service)
    return made, findings


def address(environment: Mapping[str, str], port: int) -> str:
    """Where a web service is reached from outside: the pod's proxy, else this machine."""
    pod = environment.get("RUNPOD_POD_ID", "").strip()
    return f"https://{pod}-{port}.proxy.runpod.net" if pod else f"http://localhost:{port}"


_Made = tuple[Service | None, list[Finding]]


def _jupyter(workspace: Workspace, runtime: Path, environment: Mapping[str, str], port: int) -> _Made:
    if importlib.util.find_spec("jupyterlab") is None:
        return None, [
            Finding(
                Severity.WARNING, "service", "JupyterLab is not installed", "", "Install it: `pip install jupyterlab`."
            )
        ]
    given = environment.get("JUPYTER_PASSWORD", "").strip() or environment.get("JUPYTER_TOKEN", "").strip()
    secret = token("jupyter.token", given, workspace.private, runtime)
    home = runtime / "jupyter"
    argv = [
        sys.executable, "-m", "jupyterlab", "--ip=0.0.0.0", f"--port={port}", "--ServerApp.port_retries=0", "--no-browser",
        f"--ServerApp.root_dir={workspace.root}", "--FileContentsManager.delete_to_trash=False",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None",
        "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    if os.geteuid() == 0:
        argv.append("--allow-root")
    kept = {key: value for key, value in environment.items() if key not in ("JUPYTER_PASSWORD", "PUBLIC_KEY")}
    own = {
        "JUPYTER_TOKEN": secret.value,
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),  # on the container's disk: no stale files of an earlier pod
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(workspace.private / "jupyter/settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(workspace.private / "jupyter/workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "SHELL": environment.get("SHELL") or shutil.which("bash") or "/bin/sh",
    }
    base = address(environment, port)
    service = Service(
        name="jupyter",
        title="JupyterLab",
        argv=tuple(argv),
        environment=kept | own,
        port=port,
        protocol="http",
        asks_for="the password that you set" if secret.given else "a token",
        link=f"{base}/lab" if secret.given else f"{base}/lab?token={secret.value}",
        alive_path="/api",
        closed_path="/api/contents",
    )
    return service, _about(secret, "JupyterLab", "JUPYTER_PASSWORD")


def _about(secret: Secret, title: str, variable: str) -> list[Finding]:
    found = []
    if secret.given and len(secret.value) < 12:
        found.append(
            Finding(
                Severity.WARNING, "service", f"The password of {title} has only {len(secret.value)} characters",
                "The pod's address is open to the whole internet.",
                f"Set a longer {variable}, or leave it away: lorapod then makes a token.",
            )
        )  # fmt: skip
    if secret.kept is None and not secret.given:
        found.append(
            Finding(
                Severity.WARNING, "service", f"The token of {title} could not be kept", "No disk could be written.",
                "It changes with the next boot.",
            )
        )  # fmt: skip
    if secret.open_to:
        found.append(
            Finding(
                Severity.NOTE, "service", f"The token of {title} can be read by {secret.open_to}",
                f"The volume does not heed permissions of files ({secret.kept}).",
                f"Set {variable} as a secret of the pod if that matters.",
            )
        )  # fmt: skip
    return found


def _ssh(workspace: Workspace, runtime: Path, environment: Mapping[str, str], port: int) -> _Made:
    given = environment.get("SSH_PUBLIC_KEY", "").strip() or environment.get("PUBLIC_KEY", "").strip()
    lines = [line.strip() for line in given.replace("\\n", "\n").splitlines() if line.strip()]
    keys = [line for line in lines if _PUBLIC_KEY.fullmatch(line)]
    own = _own_keys()
    found = []
    if len(keys) < len(lines):
        found.append(
            Finding(
                Severity.WARNING, "service", f"{len(lines) - len(keys)} of {len(lines)} SSH public keys cannot be read",
                "A key is one line such as `ssh-ed25519 AAAA... name`; a private key does not belong there.",
                "Copy the content of your `id_ed25519.pub` again.",
            )
        )  # fmt: skip
    if not keys and not own:
        return None, found
    daemon, maker = shutil.which("sshd", path=_SBIN), shutil.which("ssh-keygen", path=_SBIN)
    if daemon is None or maker is None:
        found.append(Finding(Severity.WARNING, "service", "SSH is not installed", "", "Install openssh-server."))
        return None, found
    try:
        host_key = _host_key(maker, workspace.private, runtime)
        write_text_whole(runtime / "authorized_keys", "".join(f"{key}\n" for key in keys), mode=0o600)
        setting = _sshd_settings(port, host_key, runtime, _shell_environment(environment, workspace))
        write_text_whole(runtime / "sshd_config", setting, mode=0o600)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(
                mode=0o755, parents=True, exist_ok=True
            )  # sshd's own, where its children are locked in
    except (DiskError, OSError, subprocess.CalledProcessError) as error:
        found.append(
            Finding(
                Severity.WARNING,
                "service",
                "SSH was not started",
                str(error).splitlines()[0],
                "Use JupyterLab's terminal.",
            )
        )
        return None, found
    user = environment.get("USER") or "root"
    service = Service(
        name="ssh",
        title="SSH",
        argv=(daemon, "-D", "-e", "-f", str(runtime / "sshd_config")),
        environment=dict(environment),
        port=port,
        protocol="tcp",
        asks_for="your SSH key",
        link=_ssh_command(user, environment, port),
    )
    return service, found


_SBIN = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/usr/local/sbin"))


def _own_keys() -> bool:
    """Whether this user's home has authorized keys already."""
    with suppress(OSError, RuntimeError):
        return (Path.home() / ".ssh/authorized_keys").stat().st_size > 0
    return False


def _host_key(maker: str, private: Path, runtime: Path) -> Path:
    """The host key, made once and kept with the workspace, so that it stays the same on the next pod.

    sshd wants it closed to others, which network volumes may not heed: it uses a copy on the container's disk.
    """
    name, copy = "ssh_host_ed25519_key", runtime / "ssh_host_ed25519_key"
    text = ""
    with suppress(OSError):
        text = (private / name).read_text(encoding="ascii", errors="replace")
    if "-----END OPENSSH PRIVATE KEY-----" not in text:  # none yet, or a torn one
        fresh = runtime / "fresh_host_key"
        for old in (fresh, fresh.with_suffix(".pub")):
            old.unlink(missing_ok=True)
        making = [maker, "-q", "-t", "ed25519", "-N", "", "-C", "lorapod", "-f", str(fresh)]
        subprocess.run(making, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        text = fresh.read_text(encoding="ascii")
        fresh.unlink()
        fresh.with_suffix(".pub").unlink()
        with suppress(DiskError, OSError):  # a workspace that cannot be written: the key lasts as long as the container
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_text_whole(private / name, text, mode=0o600)
    write_text_whole(copy, text, mode=0o600)
    return copy


def _sshd_settings(port: int, host_key: Path, runtime: Path, environment: Mapping[str, str]) -> str:
    """sshd_config(5): keys only; `SetEnv` gives shells the container's environment, all on one line as it must be."""
    words = " ".join(f'"{name}={_quoted(value)}"' for name, value in environment.items())
    lines = [
        f"Port {port}",
        f"HostKey {host_key}",
        f"PidFile {runtime / 'sshd.pid'}",
        f"AuthorizedKeysFile {runtime / 'authorized_keys'} .ssh/authorized_keys",
        # sshd refuses a file below a folder that others may write, as /tmp; ours is closed in itself
        f"StrictModes {'no' if any(p.stat().st_mode & 0o022 for p in runtime.parents) else 'yes'}",
        "AuthenticationMethods publickey",
        "PubkeyAuthentication yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "PermitEmptyPasswords no",
        "UsePAM no",
        "X11Forwarding no",
        "PrintMotd no",
        "Subsystem sftp internal-sftp",
    ]
    return "\n".join([*lines, *([f"SetEnv {words}"] if words else [])]) + "\n"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _shell_environment(environment: Mapping[str, str], workspace: Workspace) -> dict[str, str]:
    """What a shell over SSH needs of the container's environment, which sshd does not hand on by itself."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in _NOT_FOR_SHELLS and re.fullmatch(r"\w+", name) and value.isprintable()
    }
    return kept | {"NETWORK_VOLUME": str(workspace.root)}


def _ssh_command(user: str, environment: Mapping[str, str], port: int) -> str:
    host, outside = environment.get("RUNPOD_PUBLIC_IP", ""), environment.get(f"RUNPOD_TCP_PORT_{port}", "")
    if host and outside:
        return f"ssh {user}@{host} -p {outside}"
    if environment.get("RUNPOD_POD_ID"):
        return "see Connect, SSH, in the console (direct SSH needs the TCP port 22 in the pod's ports)"
    return f"ssh {user}@localhost -p {port}"

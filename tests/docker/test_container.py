"""The container's files: the Dockerfile is sound, the lock pins everything, and the template says what the image does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lorapod.machine.torch_build import read_version_file
from lorapod.pods import services as pod_services
from lorapod.settings import KEYS, secret_values
from lorapod.workspace import POD_VOLUME, Workspace

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
TEMPLATE = tomllib.loads((ROOT / "docker/runpod-template.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "docker/requirements.lock").read_text(encoding="utf-8")
STAGES = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)


def locked() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", LOCK, re.MULTILINE))


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).parent
    hadolint = shutil.which("hadolint", path=f"{beside}:/usr/local/bin:/usr/bin")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    argv = [hadolint, "-c", str(ROOT / "docker/hadolint.yaml"), "-t", "style", str(ROOT / "docker/Dockerfile")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_is_pinned_by_its_digest() -> None:
    images = re.findall(r"^ARG \w+_IMAGE=(\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) == 3 and all(re.search(r"@sha256:[0-9a-f]{64}$", image) for image in images)
    assert all(re.match(r"\$\{\w+_IMAGE\} AS \w+", stage) for stage in STAGES[1:])


def test_the_last_stage_has_an_init_no_compiler_and_no_secret() -> None:
    last = STAGES[-1]
    assert 'ENTRYPOINT ["/usr/bin/tini", "--", "lorapod", "pod", "boot"]' in last
    assert not re.search(r"\b(gcc|g\+\+|build-essential|nvcc|python3\.12-dev|devel)\b", last)
    assert last.count("rm -rf /var/lib/apt/lists/*") == last.count("apt-get install")
    variables = dict(re.findall(r"\b([A-Z_]+)=(\S+)", DOCKERFILE))
    assert secret_values(variables) == []
    assert not any(f"{kind} {key.name}" in DOCKERFILE for key in KEYS for kind in ("ARG", "ENV"))
    assert last.index("/tmp/torch.lock") < last.index("-r /opt/requirements.lock") < last.index("/wheels/*.whl")
    assert last.count("--require-hashes") == 2


def test_only_what_is_copied_reaches_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    }
    assert "*" in ignore and allowed == copied


def test_everything_is_locked_by_hash_and_fits_what_lorapod_asks_for() -> None:
    from packaging.requirements import Requirement

    versions = locked()
    assert LOCK.count("--hash=sha256:") >= len(versions) > 100
    for block in re.split(r"\n(?=\S)", LOCK.split("\n", 1)[1].strip()):
        assert "--hash=sha256:" in block, block
    assert "http" not in LOCK.replace("httpcore", "").replace("httpx", "") or "://" not in LOCK
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [
        *project["dependencies"],
        *(r for name in ("engine", "captions", "tagger", "optimizers", "pod") for r in extras[name]),
    ]
    for text in asked:
        requirement = Requirement(text)
        version = versions[requirement.name.replace("_", "-").lower()]
        assert requirement.specifier.contains(version), f"{text} is locked at {version}: run `make lock`"


def test_what_builds_the_wheel_is_locked_by_hash_too() -> None:
    from packaging.requirements import Requirement

    lock = (ROOT / "docker/build.lock").read_text(encoding="utf-8")
    versions = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, re.MULTILINE))
    assert lock.count("--hash=sha256:") >= len(versions) > 1
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert all(Requirement(text).specifier.contains(versions[Requirement(text).name]) for text in backend)
    assert "uv build --wheel --python /usr/bin/python3.12 --build-constraints build.lock --require-hashes" in DOCKERFILE


def test_torch_is_the_one_for_the_driver_floor_that_the_docs_state() -> None:
    versions = locked()
    runtime = versions["nvidia-cuda-runtime-cu12"]
    assert runtime.startswith("12.8.")
    build = read_version_file(f"__version__ = '{versions['torch']}'\ncuda = '12.8'\n")
    assert build is not None and {70, 80, 86, 90, 100, 120} <= set(build.architectures)
    assert "nvidia/cuda:12.8." in DOCKERFILE
    docs = (ROOT / "docs/pods.md").read_text(encoding="utf-8")
    assert f"torch {versions['torch']}" in docs and "driver 525" in docs and "CUDA 12.8" in docs


def test_the_template_opens_the_ports_that_services_listen_on_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sshd", "ssh-keygen"):  # stand-ins: this test starts nothing
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text('#!/bin/sh\nwhile [ "$1" != -f ]; do shift; done\n'
                        'echo "-----END OPENSSH PRIVATE KEY-----" > "$2"; touch "$2.pub"\n')  # fmt: skip
        tool.chmod(0o755)
    monkeypatch.setattr(pod_services, "_SBIN", str(tmp_path / "bin"))
    monkeypatch.setattr(pod_services.importlib.util, "find_spec", lambda name: object())
    environment = {
        "PUBLIC_KEY": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0 me",
        "HF_TOKEN": "hf_secret_12345",
        "A": 'x"y\\z',
    }
    (tmp_path / "run").mkdir()
    made, findings = pod_services.services(
        Workspace(tmp_path / "w"), tmp_path / "run", environment, pod_services.Ports()
    )
    assert findings == []
    listing = {(one.name, one.port, one.protocol): one.asks_for for one in made}
    assert listing == {("jupyter", 8888, "http"): "a token", ("ssh", 22, "tcp"): "your SSH key"}
    assert TEMPLATE["ports"] == [f"{one.port}/{one.protocol}" for one in made]
    exposed = re.search(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)
    assert exposed and exposed[1].split() == [f"{one.port}/tcp" for one in made]
    for one in made:
        assert not any(
            secret in word for word in one.argv for secret in (made[0].environment["JUPYTER_TOKEN"], "hf_secret")
        )
        assert "allow_origin" not in " ".join(one.argv)
    config = (tmp_path / "run/sshd_config").read_text()
    assert "PasswordAuthentication no" in config and "AuthenticationMethods publickey" in config
    assert config.count("SetEnv") == 1 and r'"A=x\"y\\z"' in config and "PUBLIC_KEY=" not in config
    assert (tmp_path / "run/sshd_config").stat().st_mode & 0o077 == 0
    nobody, _ = pod_services.services(
        Workspace(tmp_path / "w"), tmp_path / "run", {"HOME": "/nowhere"}, pod_services.Ports()
    )
    assert [one.name for one in nobody] in (["jupyter"], ["jupyter", "ssh"])


def test_the_template_names_the_volume_the_keys_and_the_start_that_the_image_has() -> None:
    assert TEMPLATE["mounts"]["persistent"]["path"] == str(POD_VOLUME)
    assert f"WORKDIR {POD_VOLUME}" in DOCKERFILE and "VOLUME" not in DOCKERFILE.replace("NETWORK_VOLUME", "")
    known = {key.name for key in KEYS} | {"JUPYTER_PASSWORD"}
    assert set(TEMPLATE["env"]) <= known and not any(TEMPLATE["env"].values())
    assert TEMPLATE["args"] == "" and TEMPLATE["startJupyter"] is False and TEMPLATE["startSsh"] is True
    assert min(TEMPLATE["allowedCudaVersions"], key=lambda v: tuple(map(int, v.split(".")))) == "12.8"
    fields = {"name", "image", "category", "args", "disk", "ports", "startJupyter", "startSsh", "env", "mounts"}
    assert set(TEMPLATE) == fields | {"allowedCudaVersions"}  # RunPod refuses others with 422


def test_torchs_own_layer_holds_torch_and_what_it_brings() -> None:
    program = re.search(r"awk '([^']+)'", DOCKERFILE)
    assert program is not None
    taken = subprocess.run(
        ["awk", program[1], str(ROOT / "docker/requirements.lock")], capture_output=True, text=True
    ).stdout
    names = set(re.findall(r"^([a-z0-9-]+)==", taken, re.MULTILINE))
    brought = {name for name in locked() if name.endswith("-cu12")} | {"torch", "triton"}
    assert brought <= names and "nvidia-ml-py" not in names and "transformers" not in names
    assert taken.count("--hash=sha256:") >= len(names)


def test_a_trainer_that_the_image_brings_is_used_until_the_workspace_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapod.recipe import TrainerName
    from lorapod.trainers.installs import find_installation

    def put(folder: Path, commit: str) -> None:
        home = folder / "musubi/checkout"
        (folder / "musubi/venv/bin").mkdir(parents=True)
        python = folder / "musubi/venv/bin/python"
        python.touch()
        home.mkdir()
        noted = {"name": "musubi", "home": str(home), "python": str(python), "commit": commit, "done": ["checked"]}
        (folder / "musubi/install.json").write_text(json.dumps(noted))

    baked = re.search(r"LORAPOD_TRAINERS=(\S+)", DOCKERFILE)
    assert baked and f"COPY --from=trainers {baked[1]} {baked[1]}" in DOCKERFILE
    put(tmp_path / "baked", "a" * 40)
    monkeypatch.setenv("LORAPOD_TRAINERS", str(tmp_path / "baked"))
    found = find_installation(TrainerName.MUSUBI, Workspace(tmp_path / "w"))
    assert found.home == str(tmp_path / "baked/musubi/checkout")
    put(tmp_path / "w/trainers", "b" * 40)
    assert find_installation(TrainerName.MUSUBI, Workspace(tmp_path / "w")).commit == "b" * 40

"""GPUs as the driver tells of them: NVIDIA's own client over a stand-in library, and nvidia-smi."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes import gpus as fakes
from lorapod.machine import Gpus, Severity, TorchBuild, find_gpus, gpu_findings
from lorapod.machine.torch_build import read_version_file

CU128 = TorchBuild("2.11.0+cu128", (12, 8), (70, 75, 80, 86, 90, 100, 120))
CU130 = TorchBuild("2.13.0+cu130", (13, 0), (75, 80, 86, 90, 100, 120))
CU126 = TorchBuild("2.9.1+cu126", (12, 6), (50, 60, 70, 75, 80, 86, 90))

_ASK = """
import json
from lorapod.machine import find_gpus
found = find_gpus()
print(json.dumps({"asked": found.asked, "driver": found.driver, "cuda": found.cuda, "trouble": found.trouble,
  "divided": found.divided, "gpus": [[g.name, g.memory_total, g.memory_free, g.capability, g.slice_of, g.virtual, g.uuid]
  for g in found.found]}))
"""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    if fakes.library(folder) is None:
        pytest.skip("no C compiler")
    return folder


def ask(environment: dict[str, str]) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", _ASK],
        env=os.environ | {"PATH": "/nowhere"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("card", fakes.GENERATIONS, ids=lambda card: card.name)
def test_every_generation_is_known_by_its_capability_through_the_library(nvml: Path, card: fakes.Card) -> None:
    answer = ask(fakes.nvml_environment(nvml, (card,)))
    total = card.mebibytes * fakes.MIB
    assert answer["asked"] == "nvml" and answer["driver"] == "570.86.15" and answer["cuda"] == [12, 8]
    assert answer["gpus"] == [
        [card.name, total, total - 500 * fakes.MIB, list(card.capability), "", False, "GPU-00000000"]
    ]


def test_slices_stand_in_place_of_a_divided_gpu(nvml: Path) -> None:
    divided = fakes.A100.but(mig=1, slices=2, slice_mebibytes=10 * 1024)
    answer = ask(fakes.nvml_environment(nvml, (divided, fakes.H100)))
    assert [gpu[0] for gpu in answer["gpus"]] == [
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA H100 80GB HBM3",
    ]  # fmt: skip
    assert answer["gpus"][0][1] == 10 * 1024 * fakes.MIB and answer["gpus"][0][4] == "NVIDIA A100-SXM4-80GB"
    bare = ask(fakes.nvml_environment(nvml, (fakes.A100.but(mig=1),)))
    assert bare["gpus"] == [] and bare["divided"] == ["NVIDIA A100-SXM4-80GB"]


def test_shared_memory_and_virtual_gpus_are_told_apart(nvml: Path) -> None:
    spark = fakes.Card("NVIDIA GB10", 0, (12, 1))
    answer = ask(fakes.nvml_environment(nvml, (spark, fakes.A100.but(virtual=2))))
    assert answer["gpus"][0][1:4] == [None, None, [12, 1]]
    assert answer["gpus"][1][5] is True


@pytest.mark.parametrize(
    ("status", "trouble"), [(9, "driver not loaded"), (18, "versions differ"), (15, "lost"), (4, "no permission")]
)
def test_a_driver_in_trouble_is_named(nvml: Path, status: int, trouble: str) -> None:
    answer = ask(fakes.nvml_environment(nvml, (), fakes.Driver(status=status)))
    assert answer["trouble"] == trouble and not answer["gpus"]
    (finding, *_) = gpu_findings(Gpus(trouble=trouble), CU128)
    assert finding.severity is Severity.FAULT and finding.remedy


def test_nvidia_smi_is_asked_where_the_library_is_not_there(tmp_path: Path) -> None:
    fakes.smi(tmp_path, fakes.GENERATIONS)
    answer = ask(fakes.on_path(tmp_path))
    assert answer["asked"] == "nvidia-smi" and answer["cuda"] == [12, 8]
    assert [gpu[3] for gpu in answer["gpus"]] == [list(card.capability) for card in fakes.GENERATIONS]
    assert answer["gpus"][4][1] == 24564 * fakes.MIB


def test_an_nvidia_smi_too_old_for_capabilities_still_names_the_cards(tmp_path: Path) -> None:
    fakes.smi(tmp_path, (fakes.V100,), fakes.Driver("450.80.02", (11, 0)), lacks=("compute_cap", "mig.mode.current"))
    answer = ask(fakes.on_path(tmp_path))
    assert answer["gpus"][0][0] == "Tesla V100-SXM2-16GB" and answer["gpus"][0][3] is None
    assert answer["driver"] == "450.80.02"


def test_the_trouble_that_nvidia_smi_has_is_named(tmp_path: Path) -> None:
    said = {
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.": "driver not loaded",
        "Failed to initialize NVML: Driver/library version mismatch": "versions differ",
        "No devices were found": "no GPU given",
        "Something new": "Something new",
    }
    for words, trouble in said.items():
        fakes.smi(tmp_path, (), words=words)
        assert ask(fakes.on_path(tmp_path))["trouble"] == trouble


def test_a_container_without_the_toolkit_is_told_from_a_machine_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    if find_gpus().asked:
        pytest.skip("a real GPU is here")
    assert find_gpus(tmp_path).trouble == ""
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version\n")
    gpus = find_gpus(tmp_path)
    assert gpus.trouble == "no toolkit"
    assert "--gpus all" in gpu_findings(gpus, CU128)[0].remedy


def _of(card: fakes.Card, driver: str = "570.86.15", cuda: tuple[int, int] = (12, 8)) -> Gpus:
    from lorapod.machine import Gpu

    total = card.mebibytes * fakes.MIB
    return Gpus((Gpu(card.name, "GPU-0", total, total, card.capability),), driver, cuda, "nvml")


@pytest.mark.parametrize("card", fakes.GENERATIONS[2:], ids=lambda card: card.name)
def test_from_ampere_to_blackwell_nothing_is_off_with_cuda_12_8(card: fakes.Card) -> None:
    assert gpu_findings(_of(card), CU128) == []


def test_blackwell_needs_a_build_for_12_8() -> None:
    for card in (fakes.B200, fakes.RTX5090):
        (finding,) = gpu_findings(_of(card), CU126)
        assert finding.severity is Severity.FAULT and finding.about == "torch"
        assert "sm_" in finding.what and "12.8" in finding.remedy


def test_volta_is_told_that_cuda_13_has_no_code_for_it_and_turing_that_it_lacks_bf16() -> None:
    faults = gpu_findings(_of(fakes.V100, "580.82.07", (13, 0)), CU130)
    assert [f.severity for f in faults] == [Severity.FAULT, Severity.WARNING]
    assert "sm_70" in faults[0].what and "older torch" in faults[0].remedy
    (warning,) = gpu_findings(_of(fakes.T4), CU128)
    assert "bfloat16" in warning.what and "precision=fp32" in warning.remedy


@pytest.mark.parametrize(
    ("driver", "cuda", "torch", "fault"),
    [
        ("570.86.15", (12, 8), CU130, True),
        ("580.82.07", (13, 0), CU130, False),
        ("535.104.05", (12, 2), CU128, False),
        ("515.65.01", (11, 7), CU128, True),
        ("580.82.07", (13, 0), CU128, False),
    ],
)
def test_the_driver_floor_of_each_cuda(driver: str, cuda: tuple[int, int], torch: TorchBuild, fault: bool) -> None:
    findings = gpu_findings(_of(fakes.RTX4090, driver, cuda), torch)
    assert [f.severity for f in findings] == ([Severity.FAULT] if fault else [])
    if fault:
        assert driver in findings[0].what and "minCudaVersion" in findings[0].remedy


def test_ada_runs_code_of_ampere_and_hopper_code_never_runs_on_blackwell() -> None:
    assert CU128.runs_on((8, 9)) and CU128.runs_on((10, 3)) and CU128.runs_on((12, 1))
    assert not CU126.runs_on((10, 0)) and not CU130.runs_on((7, 0))
    assert TorchBuild("2.99.0", (14, 0)).runs_on((15, 0))  # unknown builds are not accused


def test_a_cpu_build_and_hidden_gpus_are_faults() -> None:
    (finding,) = gpu_findings(_of(fakes.RTX4090), TorchBuild("2.13.0+cpu"))
    assert "processors only" in finding.why
    hidden = Gpus(_of(fakes.RTX4090).found, "570.86.15", (12, 8), "nvml", hidden=True)
    assert "CUDA_VISIBLE_DEVICES" in gpu_findings(hidden, CU128)[0].what


def test_the_build_is_read_from_torchs_own_file() -> None:
    new = "from typing import Optional\n__version__ = '2.11.0+cu128'\ncuda: Optional[str] = '12.8'\n"
    assert read_version_file(new) == CU128
    assert read_version_file("__version__ = '2.13.0+cpu'\ncuda = None\n") == TorchBuild("2.13.0+cpu")
    assert read_version_file("") is None

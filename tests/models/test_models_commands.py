"""`lorapod models`: what a person types, from adding to removing."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.hub import FakeHub, Fault, Repo
from fakes.hub_models import entry, safetensors
from lorapod.cli.main import app
from lorapod.errors import BaseModelError, LorapodError, MissingPackageError
from lorapod.models import entries, find_base_model, find_files
from lorapod.models.fetch import pull
from lorapod.models.upkeep import space
from lorapod.workspace import Workspace

DEMO = Path(__file__).parents[2] / "src/lorapod/demo/model"


def run(workspace: Workspace, *words: str, ok: bool = True) -> str:
    result = CliRunner().invoke(app, ["--workspace", str(workspace.root), "models", *words], env={"COLUMNS": "100"})
    if isinstance(result.exception, LorapodError):
        raise result.exception
    assert (result.exit_code == 0) == ok, result.output
    return result.output


@pytest.fixture
def demo_repo(hub: FakeHub) -> Repo:
    """The demo model as a repository of the hub, beside files that no training needs."""
    files = {str(p.relative_to(DEMO)): p.read_bytes() for p in DEMO.rglob("*") if p.is_file()}
    hub.repos["maker/demo"] = Repo(files | {"assets/banner.png": b"png" * 9000, "pytorch_model.bin": b"x" * 90_000})
    return hub.repos["maker/demo"]


def test_list_and_show_say_the_same_to_people_and_to_programs(workspace: Workspace) -> None:
    rows = {row["name"]: row for row in json.loads(run(workspace, "list", "--json"))}
    assert rows["flux-dev"]["gated"] and rows["flux-dev"]["commercial_use"] is False
    text = run(workspace, "list")
    assert all(name in text for name in rows)
    assert (rows["sdxl"]["gpu_from"], rows["sdxl"]["gpu_exact_from"]) == (8, 12) and rows["demo"]["gpu_from"] is None
    least, exact = rows["flux-dev"]["gpu_from"], rows["flux-dev"]["gpu_exact_from"]
    assert least < exact and f" {least}-{exact} " in text and f"from {exact} GB: " in run(workspace, "show", "flux-dev")
    assert rows["qwen-image-edit-2509"]["control"] == "needed" and " edits " in text
    assert "each item needs one or more" in run(workspace, "show", "qwen-image-edit-2509")
    shown = run(workspace, "show", "flux-dev")
    assert "non-commercial" in shown and "gated" in shown and "black-forest-labs/FLUX.1-dev" in shown
    assert json.loads(run(workspace, "show", "flux-dev", "--json"))["files"]


def test_an_unknown_model_gets_the_nearest_name(workspace: Workspace) -> None:
    for command in ("show", "pull", "verify"):
        with pytest.raises(BaseModelError) as caught:
            run(workspace, command, "flux-dv")
        assert "flux-dev" in caught.value.why


def test_a_hub_model_is_added_pulled_found_by_the_engine_verified_and_removed(
    hub: FakeHub, demo_repo: Repo, workspace: Workspace
) -> None:
    run(workspace, "add", "my-demo", "--family", "z_image", "--hub", "maker/demo")
    with pytest.raises(BaseModelError) as caught:
        find_base_model("my-demo", workspace)
    assert caught.value.remedy.endswith("lorapod models pull my-demo")
    assert hub.sent_bytes == 0
    assert "to be fetched" in run(workspace, "pull", "my-demo", "--dry-run") and hub.sent_bytes == 0
    hub.faults["model.safetensors"] = [Fault("reset", 100_000), Fault("503")]
    output = run(workspace, "pull", "my-demo")
    assert "here and checked" in output and "Licence" in output
    base = find_base_model("my-demo", workspace)
    assert (base.name, base.family) == ("my-demo", "z_image")
    assert base.fingerprint("transformer") == find_base_model("demo", workspace).fingerprint("transformer")
    assert not any("banner" in name or name.endswith(".bin") for name in hub.sent), "what no trainer needs was fetched"
    assert "are right" in run(workspace, "verify", "my-demo")
    assert "my-demo" in run(workspace)
    run(workspace, "remove", "my-demo", ok=False)  # nobody answers the question
    assert find_base_model("my-demo", workspace)
    run(workspace, "remove", "my-demo", "--yes")
    assert "my-demo" not in entries(workspace) and not (workspace.models / "my-demo").exists()
    assert space(workspace).unused == 0 and space(workspace).models == ()


def test_verify_exits_with_1_and_names_what_is_damaged(hub: FakeHub, demo_repo: Repo, workspace: Workspace) -> None:
    run(workspace, "add", "my-demo", "--family", "z_image", "--hub", "maker/demo")
    run(workspace, "pull", "my-demo")
    place = find_base_model("my-demo", workspace).folder / "vae/diffusion_pytorch_model.safetensors"
    target = place.resolve()
    target.chmod(0o644)
    target.write_bytes(target.read_bytes()[:-1] + b"\x7f")
    output = run(workspace, "verify", "my-demo", ok=False)
    assert "vae/diffusion_pytorch_model.safetensors" in output and "lorapod models pull my-demo" in output
    run(workspace, "pull", "my-demo")
    assert "are right" in run(workspace, "verify", "my-demo")


def test_a_local_folder_is_used_where_it_is_and_never_removed(tiny_z_image: Path, workspace: Workspace) -> None:
    run(workspace, "add", "mine", "--family", "z_image", "--local", str(tiny_z_image))
    base = find_base_model("mine", workspace)
    assert (base.folder / "model_index.json").samefile(tiny_z_image / "model_index.json")
    before = sorted(tiny_z_image.rglob("*"))
    run(workspace, "remove", "mine", "--yes")
    assert sorted(tiny_z_image.rglob("*")) == before
    assert "mine" not in entries(workspace)


def test_a_local_single_file_takes_the_rest_from_its_base(hub: FakeHub, workspace: Workspace, tmp_path: Path) -> None:
    fine_tune = tmp_path / "tuned.safetensors"
    fine_tune.write_bytes(safetensors({"layers.0.weight": [4, 4]}))
    with pytest.raises(BaseModelError, match="not one of"):
        run(workspace, "add", "tuned", "--family", "z_image", "--base", "z-image", "--local", str(fine_tune))
    fine_tune.write_bytes(safetensors({"layers.0.weight": [4, 4]}))
    run(workspace, "add", "tuned", "--family", "z_image", "--local", str(fine_tune))
    assert entries(workspace)["tuned"].trainers == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "Bad Name", "--family", "z_image", "--local", "."], "cannot be the name"),
        (["add", "demo", "--family", "z_image", "--local", "."], "already"),
        (["add", "x", "--family", "wax", "--local", "."], "No family"),
        (["add", "x", "--family", "z_image"], "not clear"),
        (["add", "x", "--family", "z_image", "--local", "/nowhere/x.safetensors"], "nothing at"),
        (["add", "x", "--family", "z_image", "--local", "/tmp"], "not a base model in diffusers layout"),
        (["add", "x", "--family", "z_image", "--hub", "no-slash"], "not where a base model"),
        (["add", "x", "--family", "z_image", "--url", "http://example.org/a.safetensors"], "not where a base model"),
        (["add", "x", "--family", "sdxl", "--base", "z-image", "--local", "."], "not a base model of the family"),
        (["pull", "demo"], "comes with lorapod"),
        (["pull", "sdxl", "--for", "musubi"], "cannot train"),
        (["verify", "z-image"], "Nothing of z-image"),
        (["remove", "z-image", "--yes"], "fetched nothing"),
        (["remove"], "not clear"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    hub: FakeHub, workspace: Workspace, words: list[str], said: str
) -> None:
    with pytest.raises(LorapodError, match=said) as caught:
        run(workspace, *words)
    assert caught.value.exit_code == 2 and caught.value.remedy


def test_a_local_pickle_is_never_opened(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    with pytest.raises(BaseModelError, match=r"not a \.safetensors"):
        run(workspace, "add", "x", "--family", "sdxl", "--local", str(tmp_path / "model.ckpt"))


def civitai(hub: FakeHub, content: bytes, token: str | None = None, **changes: object) -> None:
    file = {
        "name": "tuned.safetensors", "primary": True, "metadata": {"format": "SafeTensor"},
        "hashes": {"SHA256": hashlib.sha256(content).hexdigest().upper()},
        "downloadUrl": f"{hub.url}/api/download/models/77",
    }  # fmt: skip
    pickled = {"name": "tuned.ckpt", "primary": False, "metadata": {"format": "PickleTensor"}, "hashes": {}}
    hub.civitai[77] = {
        "id": 77,
        "baseModel": "SDXL 1.0",
        "files": [pickled, file],
        "_content": content,
        "_token": token,
    }
    hub.civitai[77] |= changes


def test_a_civitai_version_is_fetched_with_the_token_in_a_header_only(
    hub: FakeHub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = safetensors({"input_blocks.0.0.weight": [320, 4, 3, 3]})
    civitai(hub, content, token="civ_secret")
    with pytest.raises(BaseModelError, match="does not hand out") as caught:
        run(workspace, "add", "tuned", "--family", "sdxl", "--civitai", "77")
    assert "CIVITAI_TOKEN" in caught.value.remedy
    monkeypatch.setenv("CIVITAI_TOKEN", "civ_secret")
    with pytest.raises(BaseModelError, match="not of the family flux"):
        run(workspace, "add", "tuned", "--family", "flux", "--civitai", "77")
    run(workspace, "add", "tuned", "--family", "sdxl", "--civitai", "77")
    run(workspace, "pull", "tuned")
    assert (workspace.models / "tuned/single-files/checkpoints/tuned.safetensors").read_bytes() == content
    assert hub.leaks == [] and not any("civ_secret" in path for _, _, path in hub.requests)
    written = b"".join(p.read_bytes() for p in workspace.models.rglob("*") if p.is_file())
    assert b"civ_secret" not in written and b"X-Signature" not in written


def test_a_civitai_version_without_safetensors_is_refused(hub: FakeHub, workspace: Workspace) -> None:
    civitai(hub, b"x", files=[{"name": "a.ckpt", "metadata": {"format": "PickleTensor"}}])
    with pytest.raises(BaseModelError, match="no safetensors") as caught:
        run(workspace, "add", "tuned", "--family", "sdxl", "--civitai", "77")
    assert "a.ckpt" in caught.value.why


def test_a_plain_address_is_fetched_and_a_login_page_is_not_taken_for_a_model(
    hub: FakeHub, workspace: Workspace
) -> None:
    content = safetensors({"a": [300, 300]})
    hub.repos["plain/files"] = Repo({"tuned.safetensors": content})
    with pytest.raises(BaseModelError, match="web page"):
        run(workspace, "add", "page", "--family", "sdxl", "--url", f"{hub.url}/plain/login.html")
    run(workspace, "add", "tuned", "--family", "sdxl", "--url", f"{hub.url}/plain/tuned.safetensors")
    hub.faults["tuned.safetensors"] = [Fault("reset", 100_000, where="hub")]
    run(workspace, "pull", "tuned")
    assert (workspace.models / "tuned/single-files/checkpoints/tuned.safetensors").read_bytes() == content


def test_a_plain_file_that_changes_in_mid_download_is_begun_anew(hub: FakeHub, workspace: Workspace) -> None:
    first, second = safetensors({"a": [300, 300]}, 1), safetensors({"a": [300, 300]}, 2)
    hub.repos["plain/files"] = Repo({"tuned.safetensors": first})
    run(workspace, "add", "tuned", "--family", "sdxl", "--url", f"{hub.url}/plain/tuned.safetensors")
    hub.faults["tuned.safetensors"] = [Fault("reset", 150_000, where="hub"), *[Fault("503", where="hub")] * 1]
    original = hub.count

    def swap(name: str, sent: int) -> None:
        original(name, sent)
        if hub.sent_bytes > 100_000:
            hub.repos["plain/files"].files["tuned.safetensors"] = second

    hub.count = swap  # type: ignore[method-assign]
    run(workspace, "pull", "tuned")
    assert (workspace.models / "tuned/single-files/checkpoints/tuned.safetensors").read_bytes() == second


def torch_file(value: object) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def pickled(target: str = "original", mode: str = "convert") -> dict[str, object]:
    return {
        "files": [{"layout": target, "part": "vae", "repo": "maker/toy", "path": "vae.pth", "pickle": mode}],
        "trainers": {"musubi": {"needs": ["original/vae"]}},
    }


def test_a_pickle_is_converted_once_and_one_that_a_trainer_needs_is_kept(
    hub: FakeHub, toy: Repo, workspace: Workspace, tmp_path: Path
) -> None:
    import torch

    weights = {"a": torch.arange(6000.0).reshape(60, 100), "b": torch.ones(3, dtype=torch.bfloat16)}
    toy.files["vae.pth"] = torch_file({"state_dict": weights})
    toy.publish()
    model = entry(**pickled())
    pull(model, "musubi", workspace)
    (place,) = (workspace.models / "toy/original").rglob("*")
    assert place.name == "vae.safetensors"
    from safetensors import safe_open

    with safe_open(place, "pt") as file:
        assert set(file.keys()) == {"a", "b"} and file.get_tensor("a")[1, 0] == 100
    before = hub.sent_bytes
    pull(model, "musubi", workspace)
    assert hub.sent_bytes == before
    assert space(workspace).unused == 0, "the pickle is stored beside what it became"
    kept = entry("kept", **pickled(mode="keep"))
    pull(kept, "musubi", workspace)
    assert (workspace.models / "kept/original/vae.pth").read_bytes() == toy.files["vae.pth"]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/lorapod-was-here",)


def test_a_pickle_with_code_in_it_is_refused_by_name_and_not_opened(
    hub: FakeHub, toy: Repo, workspace: Workspace, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Evil()}, protocol=2))
        archive.writestr("archive/padding", bytes(30_000))
    toy.files["vae.pth"] = buffer.getvalue()
    toy.publish()
    for mode in ("convert", "keep"):
        with pytest.raises(BaseModelError, match="more than weights") as caught:
            pull(entry(**pickled(mode=mode)), "musubi", workspace)
        assert "system" in caught.value.why
    assert not (workspace.models / "toy/original").exists()


def test_without_torch_a_pickle_is_one_clear_error_and_is_not_fetched_again(
    hub: FakeHub, toy: Repo, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    toy.files["vae.pth"] = torch_file({"a": torch.zeros(6000)})
    toy.publish()
    with monkeypatch.context() as patch:
        patch.setattr("lorapod.models.pickles.find_spec", lambda name: None)
        with pytest.raises(MissingPackageError, match="needs torch"):
            pull(entry(**pickled()), "musubi", workspace)
    before = hub.sent_bytes
    converted = safetensors({"a": [6000]})
    monkeypatch.setattr("lorapod.models.fetch.open_weights", lambda source, target: target.write_bytes(converted))
    pull(entry(**pickled()), "musubi", workspace)
    assert hub.sent_bytes == before


def test_a_trainer_finds_its_files_by_layout_and_part(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    (workspace.models / "entries").mkdir(parents=True)
    toy.files["config.json"] = b"{}"
    toy.publish()
    files = [
        {
            "layout": "single-files",
            "part": "transformer",
            "repo": "maker/toy",
            "path": "transformer/weights-1.safetensors",
        },
        {"layout": "original", "part": "config", "repo": "maker/toy", "path": "config.json"},
    ]
    model = entry(files=files, trainers={"musubi": {"needs": ["single-files/transformer", "original/config"]}})
    (workspace.models / "entries/toy.toml").write_text(
        "\n".join(
            ['name = "toy"', 'title = "Toy"', 'family = "z_image"', 'modality = "picture"', 'licence = "x"']
            + ["[trainers.musubi]", 'needs = ["single-files/transformer", "original/config"]']
            + ["[[files]]\n" + "\n".join(f'{k} = "{v}"' for k, v in spec.items()) for spec in files]
        )
    )
    with pytest.raises(BaseModelError, match="as musubi needs it") as caught:
        find_files("toy", workspace, "musubi")
    assert "lorapod models pull toy --for musubi" in caught.value.remedy
    pull(model, "musubi", workspace)
    found = find_files("toy", workspace, "musubi")
    folder = workspace.models / "toy"
    assert found == {
        "single-files/transformer": [folder / "single-files/diffusion_models/weights-1.safetensors"],
        "original/config": [folder / "original/config.json"],
    }


def test_space_counts_shared_files_once_and_says_what_would_go(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    pull(entry(), "builtin", workspace)
    toy.files["transformer/extra.safetensors"] = safetensors({"c": [100, 100]})
    toy.publish()
    pull(entry("second"), "builtin", workspace)
    uses = {use.model: use for use in space(workspace).models}
    assert uses["toy"].alone == 0 and uses["toy"].shared_with == ("second",)
    assert uses["second"].alone == len(toy.files["transformer/extra.safetensors"])
    output = run(workspace, "remove", "toy", "--yes")
    assert "toy is removed" in output
    assert (workspace.models / "second/diffusers/transformer/weights-1.safetensors").is_file()


def test_unfinished_downloads_are_shown_and_can_go(hub: FakeHub, toy: Repo, workspace: Workspace) -> None:
    from lorapod.errors import FetchError
    from lorapod.models.fetch import Options
    from lorapod.models.transfer import Patience

    hub.faults["weights-1.safetensors"] = [Fault("reset", 500_000), *(Fault("503") for _ in range(9))]
    with pytest.raises(FetchError):
        pull(entry(), "builtin", workspace, None, Options(patience=Patience(tries=2, first=0.01)))
    assert space(workspace).unfinished > 0
    assert "could go" in run(workspace)
    run(workspace, "remove", "--unused", "--yes")
    assert space(workspace).unfinished == 0
